import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_autosparse

PACKAGE = Path(hf_autosparse.__file__).parent

# What a module may import: only modules of a lower level (docs/design.md).
LEVELS = {
    "kernels": -1,
    "schedules": 0,
    "validation": 0,
    "distributions": 0,
    "functional": 0,
    "autoload": 0,
    "packed_format": 0,
    "progress": 0,
    "tables": 0,
    "trajectory": 0,
    "layer_types": 0,
    "layer_groups": 0,
    "plot_style": 0,
    "plot_lanes": 1,
    "plots": 2,
    "methods": 1,
    "config": 2,
    "sparse_product": 1,
    "training_crossover": 4,
    "layers": 2,
    "layers_conv1d": 3,
    "inference_layers": 2,
    "inference_conv1d": 3,
    "crossover": 3,
    "decoding": 0,
    "inference": 5,
    "selection": 3,
    "sparsify": 4,
    "report": 5,
    "flop_counter": 5,
    "packed": 5,
    "quantizer": 6,
    "locate": 6,
    "saved_model": 7,
    "checkpoint_report": 8,
    "checkpoint_diff": 8,
    "checkpoint": 5,
    "accuracy": 5,
    "metrics": 5,
    "pipelines": 5,
    "model_card": 6,
    "target": 3,
    "stamp": -1,
    "callbacks": 6,
    "recorder": 6,
    "plot_callback": 6,
    "upload": 7,
    "trainer_hub": 8,
    "trainer": 9,
    "hub": 9,
    "__init__": 10,
    "cli": 11,
}
PACKAGES = {"methods", "kernels"}  # one level for all files of such a folder
TORCH_ONLY = {
    "kernels",
    "schedules",
    "validation",
    "distributions",
    "functional",
    "methods",
    "config",
    "sparse_product",
    "training_crossover",
    "layers",
    "inference_layers",
    "crossover",
    "selection",
    "sparsify",
    "target",
}


def imports(path: Path):
    """(package-relative module name, or absolute top-level name) of every import outside functions."""
    tree = ast.parse(path.read_text())
    deferred = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        or (isinstance(function, ast.If) and "TYPE_CHECKING" in ast.unparse(function.test))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in deferred:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield node.module.split(".")[0]
            elif node.level == 1 and path.parent.name in PACKAGES:
                yield "." + path.parent.name
            elif node.module is None:
                yield from ("." + alias.name for alias in node.names)
            else:
                yield "." + node.module.split(".")[0]


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py"))


def level_name(path: Path) -> str:
    return path.parent.name if path.parent.name in PACKAGES else path.stem


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path):
    own = level_name(path)
    assert own in LEVELS, f"give {path.name} a level"
    for name in imports(path):
        if name.startswith("."):
            target = name[1:]
            assert (target == own and own in PACKAGES) or LEVELS[target] < LEVELS[own], f"{own} imports {target}"
        elif own in TORCH_ONLY:
            allowed = {"torch", "triton"} if path.stem.startswith("triton_") else {"torch"}
            assert name in allowed or name in sys.stdlib_module_names, f"{own} imports {name}"


def test_import_is_lean():
    """No transformers, no CUDA initialisation, no compiler; the trainer comes at first use."""
    program = """
import sys, torch
import hf_autosparse
heavy = {"transformers", "datasets", "accelerate", "evaluate", "rich", "triton", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
assert not torch.cuda.is_initialized()
assert "torch._inductor" not in sys.modules
assert hf_autosparse.kernels._choice is None  # neither compiled nor loaded
assert set(hf_autosparse.__all__) <= {n for n in hf_autosparse.__all__ if getattr(hf_autosparse, n) is not None}
assert "transformers" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hf_autosparse.nothing  # noqa: B018
