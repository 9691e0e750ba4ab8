"""The model card: the sections of a README.md, put in place, and the metadata that the Hub indexes.

A section stands between two comments that name it, so that writing a card again replaces it and leaves the rest alone.
A figure that was not measured is left out. The words are in `card_text`, the figures come from `measured`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.modelcard import TASK_MAPPING

from ..methods import SparseConfig
from .card_text import Loading, loading_section, sections
from .measured import Measured

PACKED_LIBRARY = "hf_autosparse"
_BEGIN, _END = "<!-- hf_autosparse: {} -->", "<!-- end of {} -->"
_BASE_RESULTS = re.compile(r"\nIt achieves the following results on the evaluation set:\n(?:- .*\n)+")


def new_card(measured: Measured, loading: Loading) -> ModelCard:
    """A card for a model of which no Trainer wrote one."""
    data = ModelCardData(library_name="transformers" if loading.model_class else None, tags=[])
    name = loading.repo_id.split("/")[-1]
    return extend(ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n"), measured, loading)


def extend(
    card: ModelCard, measured: Measured, loading: Loading, *, task: str | None = None, replace: bool = True
) -> ModelCard:
    """The card with our sections and metadata: what was measured, and how to load the model.

    Args:
        task: the Hub's task; None for that of the model's class.
        replace: False keeps the sections that the card has, but for the evaluation where there is one.
    """
    data = _data(card)
    data.tags = list(dict.fromkeys([*(data.tags or []), *tags(measured.config)]))
    task = task or task_of(loading.model_class)
    if task is not None and data.get("pipeline_tag") is None:
        data.pipeline_tag = task
    if task is not None and measured.evaluation.metrics:
        data.model_name = data.model_name or loading.repo_id.split("/")[-1]
        data.eval_results = _eval_results(data, task, measured.evaluation.metrics)
    wanted = sections(measured)
    if not replace:
        wanted = {n: body for n, body in wanted.items() if n == "evaluation" or _BEGIN.format(n) not in card.text}
    card.text = insert(_BASE_RESULTS.sub("\n", card.text), wanted)  # our table says which weights the results are of
    return describe_loading(card, loading)


def describe_loading(card: ModelCard, loading: Loading) -> ModelCard:
    """Say how this model is loaded, and let the Hub offer no code that could not load it."""
    card.text = insert(card.text, {"loading": loading_section(loading)})
    if loading.packed:
        # The Hub's own snippet for transformers would not import this package: it would load random weights.
        _data(card).library_name = PACKED_LIBRARY
    elif card.data.get("library_name") == PACKED_LIBRARY:
        _data(card).library_name = "transformers"
    return card


def _data(card: ModelCard) -> ModelCardData:
    """A model card's metadata; huggingface_hub declares the type that all kinds of cards share."""
    return cast(ModelCardData, card.data)


def insert(text: str, named: Mapping[str, str]) -> str:
    """Replace the named sections of a card's text; new ones go before its second heading, in the order given."""
    for name, body in named.items():
        begin, end = _BEGIN.format(name), _END.format(name)
        block = f"{begin}\n{body.strip()}\n{end}"
        if begin in text and end in text:
            text = text[: text.index(begin)] + block + text[text.index(end) + len(end) :]
            continue
        ours = [match.end() for match in re.finditer(r"<!-- end of \w+ -->\n", text)]
        place = ours[-1] if ours else _second_heading(text)
        text = f"{text[:place].rstrip()}\n\n{block}\n\n{text[place:].lstrip()}".rstrip() + "\n"
    return text


def _second_heading(text: str) -> int:
    """Where the introduction ends: at the second heading outside code, or at the end of the text."""
    position, headings, in_code = 0, 0, False
    for line in text.splitlines(keepends=True):
        in_code ^= line.startswith(("```", "~~~"))
        headings += not in_code and re.match(r"#{1,6} ", line) is not None
        if headings == 2:
            return position
        position += len(line)
    return position


def _eval_results(data: ModelCardData, task: str, metrics: Mapping[str, float]) -> list[EvalResult]:
    """One result per metric, on the data set that the base card names. Without one the Hub still wants a word there."""
    base = data.eval_results[0] if data.eval_results else None
    named = ([data.datasets] if isinstance(data.datasets, str) else data.datasets) or ["unknown"]
    return [
        EvalResult(
            task_type=base.task_type if base else task,
            task_name=base.task_name if base else None,
            dataset_type=base.dataset_type if base else named[0],
            dataset_name=base.dataset_name if base else named[0],
            dataset_config=base.dataset_config if base else None,
            dataset_split=base.dataset_split if base else None,
            dataset_args=base.dataset_args if base else None,
            metric_type=re.sub(r"^(eval|test)_", "", name),
            metric_name=name,
            metric_value=value,
        )
        for name, value in metrics.items()
    ]


def task_of(model_class: str | None) -> str | None:
    """The Hub's task of a transformers model class ("text-classification"), or None if it has none."""
    for task, classes in cast(dict[str, dict[str, Any]], TASK_MAPPING).items():
        for names in classes.values():
            if model_class == names or (isinstance(names, (tuple, list)) and model_class in names):
                return task
    return None


def tags(config: SparseConfig | None) -> list[str]:
    """What the Hub finds the model by; the method's name is among them."""
    return list(dict.fromkeys(["sparse", "autosparse", *([config.method] if config is not None else [])]))
