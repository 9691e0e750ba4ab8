"""Calibration data of many forms as batches that a model is called with."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .lockstep import Batch

FORMS = (
    "a text file, or an iterable of texts, of batches (tensors, tuples of tensors, dictionaries of tensors) or of rows"
    " of a data set"
)


@dataclass(frozen=True)
class Calibration:
    """`batches`: what the model is called with. `source`: where they come from, in words."""

    batches: list[Batch]
    source: str

    def to(self, device: torch.device) -> Calibration:
        return Calibration([batch.to(device) for batch in self.batches], self.source)

    def digest(self) -> str:
        """A hash of all values, by which a resumed run knows its data."""
        hashed = hashlib.sha256()
        for batch in self.batches:
            for name, value in [*enumerate(batch.args), *batch.kwargs.items()]:
                hashed.update(f"{name}:".encode())
                is_tensor = isinstance(value, Tensor)
                hashed.update(
                    value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                    if is_tensor and value.numel()
                    else repr(value).encode()
                )
        return hashed.hexdigest()


def read_calibration(
    data: Any, model: nn.Module, tokenizer: Any, *, samples: int, max_length: int, batch_size: int
) -> Calibration:
    """The first `samples` items of the data as batches for the model.

    Texts are cut off at `max_length` tokens, and at the length that the model takes. Texts and rows of equal length go
    together, `batch_size` at most, so that nothing is padded: padding would count as data.

    Args:
        data: the path of a text file with a text a line; an iterable of texts; of batches: a tensor, a tuple of
            tensors, or a dictionary of tensors with a batch dimension each; of rows, dictionaries of numbers and lists,
            or with a text; a `datasets.Dataset`. For an encoder-decoder a text is "source<tab>target".
        tokenizer: called with each text; None if there are none.

    Raises:
        FileNotFoundError: the file does not exist.
        TypeError: an item has another type.
        ValueError: there are no items, or texts without a tokenizer or without a target.
    """
    rows_of_data = False
    if isinstance(data, (str, Path)):
        path = Path(data)
        if not path.is_file():
            raise FileNotFoundError(f"calibration = {str(data)!r} is no file: use {FORMS}")
        with path.open(encoding="utf-8") as file:
            items: list[Any] = list(islice((line.rstrip("\n") for line in file if line.strip()), samples))
        source = path.name
    elif isinstance(data, Iterable) and not isinstance(data, (Mapping, Tensor)):
        rows_of_data = type(data).__module__.partition(".")[0] == "datasets"
        items = list(islice(data, samples))
        source = f"a {type(data).__name__}"
    else:
        raise TypeError(f"calibration is a {type(data).__name__}: use {FORMS}")
    if not items:
        raise ValueError(f"calibration = {source} is empty: give a few examples at least")

    tokenize = _tokenizer(model, tokenizer, max_length)
    batches: list[Batch] = []
    rows: list[dict[str, Tensor]] = []
    for number, item in enumerate(items):
        if isinstance(item, str):
            rows.append(tokenize(item))
        elif isinstance(item, Tensor):
            batches.append(Batch((item,), {}))
        elif isinstance(item, Mapping) and not rows_of_data and _is_batch(item):
            batches.append(Batch((), dict(item)))
        elif isinstance(item, Mapping):
            rows.append(_row(item, model, tokenize))
        elif isinstance(item, (tuple, list)) and item and all(isinstance(value, Tensor) for value in item):
            batches.append(Batch(tuple(item), {}))
        else:
            raise TypeError(f"calibration item {number} is a {type(item).__name__}: use {FORMS}")
    batches += [Batch((), batch) for batch in _of_equal_shape(rows, batch_size)]
    return Calibration(batches, f"{len(items)} examples of {source}")


def _is_batch(item: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in item.values())


def _tokenizer(model: nn.Module, tokenizer: Any, max_length: int) -> Callable[[str], dict[str, Tensor]]:
    config = getattr(model, "config", None)
    taken = getattr(config, "max_position_embeddings", None)
    length = min(max_length, taken) if isinstance(taken, int) else max_length
    translates = bool(getattr(config, "is_encoder_decoder", False))

    def tokenize(text: str) -> dict[str, Tensor]:
        if tokenizer is None:
            raise ValueError("calibration has texts, but there is no tokenizer: give prune(tokenizer=...)")
        target: dict[str, Any] = {}
        if translates:
            text, tab, goal = text.partition("\t")
            if not tab:
                raise ValueError(
                    f"calibration text {text!r:.80} has no target, which an encoder-decoder needs: write"
                    " source<tab>target, or give batches with labels"
                )
            target = {"text_target": goal}
        encoded = tokenizer(text, **target, truncation=True, max_length=length)
        return {name: torch.tensor(value) for name, value in encoded.items()}

    return tokenize


def _row(item: Mapping[str, Any], model: nn.Module, tokenize: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    """A data set's row as arguments of the model, without a batch dimension. Other columns are left out."""
    texts = [name for name, value in item.items() if isinstance(value, str)]
    if texts:
        name = "text" if "text" in texts else texts[0]
        if name != "text" and len(texts) > 1:
            raise ValueError(f"calibration rows have several texts, {texts}: rename the one to use to 'text'")
        return tokenize(item[name])
    taken = inspect.signature(model.forward).parameters
    row = {name: torch.as_tensor(value) for name, value in item.items() if name in taken}
    if not row:
        raise ValueError(f"calibration rows have the columns {list(item)}, of which {type(model).__name__} takes none")
    return row


def _of_equal_shape(rows: Iterable[dict[str, Tensor]], batch_size: int) -> Iterator[dict[str, Tensor]]:
    groups: dict[tuple[Any, ...], list[dict[str, Tensor]]] = {}
    for row in rows:
        groups.setdefault(tuple((name, value.shape) for name, value in row.items()), []).append(row)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            yield {name: torch.stack([row[name] for row in part]) for name in part[0]}
