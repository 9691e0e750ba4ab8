"""Where a model's weights are while it is pruned, and the case that all are in memory."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from ..serialization.files import CARD, PRUNING
from ..utils.io import write_text
from .calibration import Calibration
from .report import PrunedLayer, PruneReport
from .units import Unit


class Storage(ABC):
    """The model that is pruned, and what happens to a unit's weights before and after.

    `tokenizer`: for texts; None if there is none. `device`: where batches have to be; None for where they are.
    """

    model: nn.Module
    tokenizer: Any
    device: torch.device | None = None

    @abstractmethod
    def begin(self, units: list[Unit], settings: Mapping[str, Any], calibration: Calibration | None) -> None:
        """Called once, before the first unit."""

    @abstractmethod
    def finished(self, unit: Unit) -> list[PrunedLayer] | None:
        """The rows of a unit that an earlier run finished; None for the others."""

    @abstractmethod
    def load(self, unit: Unit) -> None:
        """Make the unit's weights available: those that were finished if they are."""

    @abstractmethod
    def finish(self, unit: Unit, rows: list[PrunedLayer]) -> None:
        """Keep the unit's weights as they are now: they are final."""

    @abstractmethod
    def release(self, unit: Unit) -> None:
        """The unit's weights are not needed until they are loaded again."""

    @abstractmethod
    def recall_outliers(self) -> dict[str, float] | None:
        """Unit -> its fraction of outliers, if an earlier run has kept them."""

    @abstractmethod
    def keep_outliers(self, outliers: dict[str, float]) -> None:
        """For a run that goes on later."""

    @abstractmethod
    def publish(self, report: PruneReport) -> None:
        """Write the output directory, if one is asked for, whole or not at all."""


class InMemory(Storage):
    """A model in memory, pruned in place."""

    def __init__(self, model: nn.Module, tokenizer: Any, output: Path | None):
        if output is not None and not hasattr(model, "save_pretrained"):
            raise ValueError(
                f"output = {str(output)!r} is not allowed for a {type(model).__name__}, which has no save_pretrained:"
                " leave it out and save the model's state_dict"
            )
        self.model, self.tokenizer, self._output = model, tokenizer, output

    def begin(self, units: list[Unit], settings: Mapping[str, Any], calibration: Calibration | None) -> None:
        pass

    def finished(self, unit: Unit) -> list[PrunedLayer] | None:
        return None

    def load(self, unit: Unit) -> None:
        pass

    def finish(self, unit: Unit, rows: list[PrunedLayer]) -> None:
        pass

    def release(self, unit: Unit) -> None:
        pass

    def recall_outliers(self) -> dict[str, float] | None:
        return None

    def keep_outliers(self, outliers: dict[str, float]) -> None:
        pass

    def publish(self, report: PruneReport) -> None:
        if self._output is None:
            return
        draft = draft_beside(self._output)
        shutil.rmtree(draft, ignore_errors=True)  # what a killed run left
        save: Any = self.model.save_pretrained
        save(draft)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(draft)
        describe(draft, self._output.name, report)
        draft.rename(self._output)


def draft_beside(output: Path) -> Path:
    """The directory that is filled before it becomes the output."""
    return output.with_name(f".{output.name}-pruning")


def describe(directory: Path, name: str, report: PruneReport) -> None:
    """Write the report, and a section on the pruning into the model card; a new card if there is none."""
    write_text(directory / PRUNING, report.to_json())
    path = directory / CARD
    if path.is_file():
        card = ModelCard.load(path)
    else:
        data = ModelCardData(library_name="transformers")
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n")
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), "sparse", report.settings["method"]["name"]]))
    card.text = f"{card.text.rstrip()}\n\n{report.to_markdown()}"
    write_text(path, str(card))
