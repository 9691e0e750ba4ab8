"""`is_mean_over_labels`: whether a model's loss is known to be the mean over its labels other than -100.

The answer is read off the source of the model's `forward`, because no attribute of a model tells it. A loss that the
reading does not understand is not known: the trainer then does what transformers' Trainer does.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from torch import nn

from ._trainer_compat import known_loss_function

IGNORED_LABEL = -100
_CLASSES = {"CrossEntropyLoss", "BCEWithLogitsLoss", "MSELoss"}
_FUNCTIONS = {"cross_entropy", "binary_cross_entropy_with_logits", "mse_loss"}
_SAME_ELEMENTS = {"view", "reshape", "flatten", "squeeze", "contiguous", "to", "long", "float"}
_ANYTHING_BUT_A_LOSS = {"loss_fct", "loss_fn", "loss_function", "criterion"}  # names of functions, not of values


def is_mean_over_labels(model: nn.Module) -> bool:
    """Whether `model(labels=labels)["loss"]` is known to be the mean over all entries of `labels` that are not -100.

    It is where the model's `forward` assigns its loss once, or once for each kind of problem, from `labels` as they
    were given, and returns it unchanged, by
    - `self.loss_function`, one of transformers' for language models, tokens, sequences, images, videos and audio; or
    - `CrossEntropyLoss`, `BCEWithLogitsLoss`, `MSELoss` or their functional forms, with default settings.

    Args:
        model: without what PEFT, DDP or `torch.compile` put around it.
    """
    if "forward" in vars(model):
        return False
    try:
        source = inspect.getsource(inspect.unwrap(type(model).forward))
    except (OSError, TypeError):  # no file to read: typed in, compiled or built in
        return False
    (function,) = ast.parse(textwrap.dedent(source)).body
    return _Reading(function, model).understood()


def innermost(model: nn.Module) -> nn.Module:
    """The model inside a PEFT wrapper; the wrapper itself if it feeds tokens of its own to the model (prompt tuning),
    since they change which label is the first."""
    base: Any = getattr(model, "get_base_model", None)
    config: Any = getattr(model, "active_peft_config", None)
    if base is None or config is None or config.is_prompt_learning:
        return model
    found: nn.Module = base()
    return found


class _Reading:
    """What a forward does with its labels and its loss."""

    def __init__(self, function: ast.stmt, model: nn.Module):
        self._nodes = list(ast.walk(function))
        self._model = model
        self._criteria: set[str] = set()  # local names of CrossEntropyLoss() and the others
        self._losses: set[str] = set()  # local names of losses

    def understood(self) -> bool:
        for name, value in self._assignments():
            if self._makes_criterion(value):
                self._criteria.add(name)
        found = sum(self._is_loss(node) for node in self._nodes)
        placed = 0
        for name, value in self._assignments():
            if self._is_loss(value):
                self._losses.add(name)
                placed += 1
            elif self._looks_like_loss(name) and not self._is_harmless(value):
                return False
            elif name == "labels" and not self._is_labels(value):
                return False
        for value in self._returned():
            if self._is_loss(value):
                placed += 1
            elif not (isinstance(value, ast.Name) and value.id in self._losses) and not self._is_harmless(value):
                return False
        return found > 0 and placed == found and not self._is_calculated_with()

    def _assignments(self) -> Iterator[tuple[str, ast.expr]]:
        for node in self._nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        yield target.id, node.value
                    elif isinstance(target, (ast.Tuple, ast.List)):
                        yield from ((part.id, node.value) for part in target.elts if isinstance(part, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                yield node.target.id, node.value

    def _returned(self) -> Iterator[ast.expr]:
        """What an output's `loss` is, as a keyword or as the value of a dictionary."""
        for node in self._nodes:
            if isinstance(node, ast.keyword) and node.arg == "loss":
                yield node.value
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "loss":
                        yield value

    def _makes_criterion(self, value: ast.expr) -> bool:
        return isinstance(value, ast.Call) and _last_name(value.func) in _CLASSES and _has_default_settings(value)

    def _is_loss(self, node: ast.AST) -> bool:
        """Whether a node is a call that computes the mean over `labels`."""
        if not isinstance(node, ast.Call):
            return False
        function, name = node.func, _last_name(node.func)
        if isinstance(function, ast.Attribute) and _last_name(function.value) == "self":
            known = known_loss_function(self._model) if name == "loss_function" else self._has_criterion(name)
        elif isinstance(function, ast.Call):
            known = self._makes_criterion(function)
        else:
            known = name in _FUNCTIONS or (isinstance(function, ast.Name) and name in self._criteria)
        arguments = [*node.args, *(k.value for k in node.keywords if k.arg in ("labels", "target", "input", "logits"))]
        return known and any(self._is_labels(argument) for argument in arguments) and _has_default_settings(node)

    def _has_criterion(self, name: str) -> bool:
        """Whether `self.<name>` is a CrossEntropyLoss, or one of the others, with default settings."""
        criterion: Any = getattr(self._model, name, None)
        if type(criterion) not in (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss):
            return False
        tensors = (criterion.weight, getattr(criterion, "pos_weight", None)) if hasattr(criterion, "weight") else ()
        return all(tensor is None for tensor in tensors) and all(
            getattr(criterion, name, default) == default for name, default in _DEFAULTS.items()
        )

    def _is_labels(self, value: ast.expr) -> bool:
        """Whether an expression holds the labels that were given, all of them and nothing else."""
        while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            if value.func.attr not in _SAME_ELEMENTS:
                return False
            value = value.func.value
        return isinstance(value, ast.Name) and value.id == "labels"

    def _looks_like_loss(self, name: str) -> bool:
        return "loss" in name and name not in _ANYTHING_BUT_A_LOSS and name not in self._criteria

    def _is_harmless(self, value: ast.expr) -> bool:
        if isinstance(value, ast.Constant):
            return value.value is None
        moved = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "to"
        return moved and isinstance(value.func.value, ast.Name) and value.func.value.id in self._losses  # type: ignore[attr-defined]

    def _is_calculated_with(self) -> bool:
        """Whether something is added to a loss, or it is scaled: several losses, an auxiliary loss of a router."""
        for node in self._nodes:
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                if self._looks_like_loss(node.target.id):
                    return True
            elif isinstance(node, ast.BinOp):
                for side in (node.left, node.right):
                    if isinstance(side, ast.Name) and side.id in self._losses or self._is_loss(side):
                        return True
        return False


def _last_name(node: ast.expr) -> str:
    """`cross_entropy` of `torch.nn.functional.cross_entropy`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _has_default_settings(call: ast.Call) -> bool:
    """Whether a call has neither weights, nor another reduction, ignored label or smoothing."""
    settings = {keyword.arg: keyword.value for keyword in call.keywords}
    for name in ("weight", "pos_weight", "reduction", "label_smoothing", "ignore_index", "size_average", "reduce"):
        if name in settings and _constant(settings[name]) != _DEFAULTS.get(name):
            return False
    is_class = _last_name(call.func) in _CLASSES
    return len(call.args) == 0 if is_class else True


_DEFAULTS: dict[str, Any] = {"reduction": "mean", "label_smoothing": 0.0, "ignore_index": IGNORED_LABEL}


def _constant(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...
