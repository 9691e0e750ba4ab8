"""Which layers become sparse, and why the others don't."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from ..methods import SparseConfig, method_of
from .adapters import adapter_layers
from .kinds import dense_kind_of, require_kind
from .quantised import quantised_weight
from .sparse import REMEDY, SparseLayer, own_forward


@dataclass
class Selection:
    """Which layers become sparse.

    Attributes:
        sparse: name -> layer to convert.
        dense: name of a weight's module -> why it stays dense.
        unsuited: those of `dense` that the configuration selects, but whose weight's values or shape do not allow it.
    """

    sparse: dict[str, nn.Module] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)
    unsuited: dict[str, str] = field(default_factory=dict)


def some_names(names: Sequence[str]) -> str:
    """Names for a message: the first three, and how many more follow."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


def qualified(module_name: str, attribute: str) -> str:
    """The full name of a module's attribute; the root module has the name ""."""
    return f"{module_name}.{attribute}" if module_name else attribute


def select_layers(model: nn.Module, config: SparseConfig) -> Selection:
    """Apply the first/last rule, the patterns and the technical limits to every weight of two or more dimensions.

    Raises:
        ValueError: a pattern matches no layer, no layer is left, or a layer has a forward of its own.
    """
    selection = Selection()
    candidates: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if dense_kind_of(module) is not None:
            candidates[name] = module
        elif reason := _unsupported(module):
            selection.dense[name] = reason
    _check_patterns("target_modules", config.target_modules or [], candidates)
    _check_patterns("dense_modules", config.dense_modules, candidates)

    limits = _technical_limits(model, candidates)
    edges = _first_and_last(model, candidates, config.first_last)
    adapters = adapter_layers(model)
    for name, module in candidates.items():
        reason = limits.get(name) or edges.get(name)
        if reason is None and (pattern := _matching(name, config.dense_modules)):
            reason = f"matches dense_modules pattern {pattern!r}"
        if reason is None and config.target_modules is not None and not _matching(name, config.target_modules):
            reason = "matches no target_modules pattern"
        if reason is None and config.target_modules is None and name in adapters:
            reason = "belongs to an adapter (target_modules can name it)"
        if reason is None and (reason := _unsuited(module, config)):
            selection.unsuited[name] = reason
        if reason is None:
            selection.sparse[name] = module
        else:
            selection.dense[name] = reason
    if not selection.sparse:
        reasons = [f"{name}: {reason}" for name, reason in selection.dense.items()] or [_without_matrix(model)]
        listed = "".join(f"\n  {reason}" for reason in reasons)
        raise ValueError(f"no layer of {type(model).__name__} is left to sparsify:{listed}")
    if hooked := [name for name, module in selection.sparse.items() if own_forward(module)]:
        raise ValueError(f"{some_names(hooked)} has{REMEDY}, or list such layers in dense_modules")
    return selection


def _unsupported(module: nn.Module) -> str | None:
    """Why a module that is no candidate stays dense, or None where it holds no weight matrix of its own."""
    if isinstance(module, SparseLayer):
        raise ValueError("the model is already sparse: call finalize(model) first, or use it as it is")
    kind = type(module).__name__
    if quantised := quantised_weight(module):
        return f"{kind} is quantised ({quantised}): load the model without quantisation to make it sparse"
    for base in (nn.Linear, nn.Conv2d):
        if isinstance(module, base):
            return f"{kind} is a subclass of nn.{base.__name__} with its own forward or weight"
    if not any(p.dim() >= 2 for p in module.parameters(recurse=False)):
        return None
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.MultiheadAttention):
        return "nn.MultiheadAttention uses its weights without calling a layer"
    if any(p.dim() >= 3 for p in module.parameters(recurse=False)) and not isinstance(module, nn.modules.conv._ConvNd):
        return f"{kind} holds stacked weights (such as a mixture's experts), not layers"
    return f"{kind} is no nn.Linear, nn.Conv2d or Conv1D"


def _without_matrix(model: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"its {count:,} parameters are all in vectors and scalars" if count else "it has no parameters"


def _technical_limits(model: nn.Module, candidates: dict[str, nn.Module]) -> dict[str, str]:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    fast_path = {
        id(child): "nn.TransformerEncoderLayer bypasses the layer in its fast path"
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
        for child in (module.linear1, module.linear2)
    }
    limits = {}
    for name, module in candidates.items():
        weight = module._parameters.get("weight")
        if weight is None:
            limits[name] = "its weight is computed by another module (weight norm, pruning)"
        elif quantised := quantised_weight(module):
            limits[name] = f"quantised ({quantised}): load the model without quantisation to make it sparse"
        elif not weight.requires_grad:
            limits[name] = "frozen (requires_grad=False)"
        elif id(module) in fast_path:
            limits[name] = fast_path[id(module)]
        else:
            others = [n for n in owners[id(weight)] if n != qualified(name, "weight")]
            if others and not _same_module(model, others, module):
                limits[name] = f"its weight is tied to {others[0]}"
    return limits


def _unsuited(module: nn.Module, config: SparseConfig) -> str | None:
    weight = module.get_parameter("weight")
    if not weight.is_meta and not weight.any():
        return "all its weights are 0: it is freshly initialised, not pruned"
    return method_of(config).unsuited(weight, config, require_kind(module).output_dim)


def _same_module(model: nn.Module, parameter_names: list[str], module: nn.Module) -> bool:
    """Whether all these names reach the one module by different paths: such a module is used twice, not tied."""
    return all(model.get_submodule(name.rpartition(".")[0]) is module for name in parameter_names)


def _first_and_last(model: nn.Module, candidates: dict[str, nn.Module], rule: str) -> dict[str, str]:
    if rule == "none" or not candidates:
        return {}
    # A subclass is no candidate, but it may be the first or last layer, and then its neighbour is not.
    layers = {n: m for n, m in model.named_modules() if n in candidates or isinstance(m, (nn.Linear, nn.Conv2d))}
    names = list(layers)
    by_id = {id(module): name for name, module in layers.items()}
    output = _embeddings(model, "get_output_embeddings")
    last = by_id.get(id(output)) if output is not None else names[-1]
    edges = {} if last is None else {last: f"last layer (first_last={rule!r})"}
    if not _starts_with_embedding(model, names[0]):
        edges.setdefault(names[0], f"first layer (first_last={rule!r})")
    if rule == "blocks":
        blocks = _blocks(model, candidates)
        for position, prefix in (("first", blocks[0]), ("last", blocks[-1])):
            for name in names:
                if name.startswith(prefix + "."):
                    edges.setdefault(name, f"in the {position} block {prefix} (first_last='blocks')")
    return edges


def _embeddings(model: nn.Module, getter: str) -> nn.Module | None:
    try:
        return getattr(model, getter)() if hasattr(model, getter) else None
    except NotImplementedError:  # vision models of transformers have the method but raise
        return None


def _starts_with_embedding(model: nn.Module, first_candidate: str) -> bool:
    """Whether the input goes through an embedding table, so that the first Linear is not the first layer."""
    if isinstance(_embeddings(model, "get_input_embeddings"), nn.Embedding):
        return True
    if hasattr(model, "get_input_embeddings"):
        return False
    for name, module in model.named_modules():
        if name == first_candidate:
            return False
        if isinstance(module, nn.Embedding):
            return True
    return False


def _blocks(model: nn.Module, candidates: dict[str, nn.Module]) -> list[str]:
    """Names of the entries of the outermost ModuleLists of equal modules that hold candidates, in order."""
    blocks: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2 or len({type(m) for m in module}) > 1:
            continue
        if any(name.startswith(block + ".") for block in blocks):
            continue
        entries = [f"{name}.{i}" for i in range(len(module))]
        blocks += [e for e in entries if any(c.startswith(e + ".") for c in candidates)]
    if len(blocks) < 2:
        raise ValueError(
            f"first_last='blocks' finds no repeated blocks in {type(model).__name__}: use 'modules' or 'none', and list"
            " the layers to keep dense in dense_modules"
        )
    return blocks


def _matching(name: str, patterns: Sequence[str]) -> str | None:
    """The first pattern that covers `name`, or None."""
    parts = name.split(".")
    paths = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    for pattern in patterns:
        for path in paths:
            if path == pattern or path.endswith("." + pattern) or fnmatch.fnmatchcase(path, pattern):
                return pattern
    return None


def _check_patterns(field_name: str, patterns: Sequence[str], candidates: dict[str, nn.Module]) -> None:
    for pattern in patterns:
        if any(_matching(name, [pattern]) for name in candidates):
            continue
        endings = {".".join(n.split(".")[i:]) for n in candidates for i in range(n.count(".") + 1)}
        near = difflib.get_close_matches(pattern, sorted(endings), n=5, cutoff=0.5) or sorted(candidates)[:5]
        raise ValueError(f"{field_name} pattern {pattern!r} matches no layer. Near names: {near}")
