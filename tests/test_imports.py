"""Imports run one way: this list of rooms is the rule, for imports inside functions too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_autosparse

PACKAGE = Path(hf_autosparse.__file__).parent

# A room imports from its own and from those above it in this list, never from one on its own line or below.
ROOMS = [
    {"utils", "functional"},
    {"kernels"},
    {"methods"},
    {"layers"},
    {"serialization", "inference"},
    {"reports", "oneshot"},
    {"plots", "hub", "metrics"},
    {"training"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
TORCH_ONLY = {"functional", "kernels", "methods", "layers"}
# The adapter of a layer type that transformers defines: loaded by layers/kinds.py for a model that has such a layer.
ADAPTERS = {"layers.sparse_conv1d"}


def name_of(path: Path) -> str:
    """Dotted name of a module inside the package; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path, for_types: bool = True):
    """Every module that a file imports, wherever the import stands: inside the package with a dot in front.

    Without `for_types`, what stands under `if TYPE_CHECKING` is left out: it is never executed.
    """
    own = name_of(path).split(".") if name_of(path) else []
    package = own if path.name == "__init__.py" else own[:-1]
    tree = ast.parse(path.read_text())
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typing_only = {id(node) for block in blocks for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in typing_only and not for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield node.module
                continue
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                inside = ".".join([*base, alias.name])
                yield "." + (inside if inside in MODULES else ".".join(base))


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_rooms_import_one_way(name):
    room = name.split(".")[0]
    for target in imports(MODULES[name]):
        if target.startswith("."):
            other = target[1:].split(".")[0]
            assert other == room or LEVEL[other] < LEVEL[room], f"{name} imports {target[1:] or 'the package itself'}"


def test_no_circle():
    graph = {
        name: {target[1:] for target in imports(path, for_types=False) if target.startswith(".")} - {name}
        for name, path in MODULES.items()
    }
    graph.pop("")  # its lazy attributes name everything
    while free := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph, {name: targets & graph.keys() for name, targets in graph.items()}


@pytest.mark.parametrize(
    "name", [name for name in MODULES if name.split(".")[0] in TORCH_ONLY and name not in ADAPTERS]
)
def test_lower_rooms_need_torch_only(name):
    for target in imports(MODULES[name]):
        if not target.startswith("."):
            top = target.split(".")[0]
            assert top in {"torch", "triton"} or top in sys.stdlib_module_names, f"{name} imports {target}"


def test_import_is_lean():
    """No transformers, no CUDA initialisation, no compiler; the trainer comes at first use."""
    program = """
import sys, torch
import hf_autosparse
heavy = {"transformers", "datasets", "accelerate", "evaluate", "rich", "triton", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
assert not torch.cuda.is_initialized()
assert "torch._inductor" not in sys.modules
assert hf_autosparse.kernels.cpu.library._choice is None  # neither compiled nor loaded
assert set(hf_autosparse.__all__) <= {n for n in hf_autosparse.__all__ if getattr(hf_autosparse, n) is not None}
assert "transformers" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hf_autosparse.nothing  # noqa: B018
