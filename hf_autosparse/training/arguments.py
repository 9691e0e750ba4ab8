"""What the constructor of our trainers refuses, each in one sentence that says how to do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import has_length

from ..methods import SparseConfig
from .driver import check_single_epoch


def check_bases(trainer: type, mixin: type) -> None:
    """The mixin stands before every Trainer class: only then does it see the arguments and each call first.

    Raises:
        TypeError: names the class that stands before the mixin.
    """
    for base in trainer.__mro__[: trainer.__mro__.index(mixin)]:
        if issubclass(base, Trainer) and not issubclass(base, mixin):
            raise TypeError(
                f"class {trainer.__name__}: {mixin.__name__} must come before {base.__name__}:"
                f" class {trainer.__name__}({mixin.__name__}, {base.__name__})"
            )


def check_arguments(trainer: Any, model: Any, args: Any, sparse_config: Any, others: Sequence[Any]) -> None:
    """Check what was passed for the model, the arguments and the configuration, by position or by name.

    Raises:
        TypeError: names what was passed where, and what belongs there.
    """
    name = type(trainer).__name__
    if not isinstance(trainer, Trainer):
        bases = ", ".join(base.__name__ for base in type(trainer).__bases__)
        raise TypeError(f"class {name}({bases}): AutoSparseMixin must come before a subclass of transformers.Trainer")
    order = f"the order is {name}(model, args, sparse_config), and everything else is passed by keyword"
    if not isinstance(args, TrainingArguments | None):
        raise TypeError(f"args is of type {type(args).__name__}, not TrainingArguments: {order}")
    if others:
        raise TypeError(f"{3 + len(others)} arguments without a keyword: {order}")
    if isinstance(sparse_config, dict):
        raise TypeError("sparse_config is a dict: make a configuration of it with SparseConfig.from_dict(...)")
    if not isinstance(sparse_config, SparseConfig | None):
        kind = sparse_config.__name__ if isinstance(sparse_config, type) else f"of type {type(sparse_config).__name__}"
        raise TypeError(f"sparse_config is {kind}, not a configuration such as AutoSparseConfig(): {order}")
    if isinstance(model, str):
        raise TypeError(f"model = {model!r}: load it first (from_pretrained), AutoSparse trainers take a module")


def check_training_set(train_dataset: Any, config: SparseConfig) -> None:
    """Settings that count epochs need a training set with a length.

    Raises:
        ValueError: names the setting.
    """
    if train_dataset is not None and not has_length(train_dataset):
        check_single_epoch(config)
