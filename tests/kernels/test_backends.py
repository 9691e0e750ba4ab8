"""The registry of backends, and the example of docs/add_a_backend.md."""

import dataclasses
import re

import pytest
import torch

from hf_autosparse.kernels import backends as registry
from hf_autosparse.kernels import get_backend, register_backend, registered_backends
from paths import ROOT


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is forgotten."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def test_what_is_registered():
    assert {"sparse", "sparse_bfloat16"} <= {backend.name for backend in registered_backends("cpu")}
    assert {backend.name for backend in registered_backends("cuda")} == {"bitmask", "semi_structured"}
    assert not registered_backends("mps") and len(registered_backends()) == len(registry._registered)
    assert get_backend("sparse").dtypes == (torch.float32,)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="backend 'fast' is unknown: registered are .*'sparse', .*import"):
        get_backend("fast")


@pytest.mark.parametrize("name", ["sparse", "auto", "dense"])
def test_a_name_that_is_taken_is_refused(name):
    other = dataclasses.replace(get_backend("sparse"), name=name)
    with pytest.raises(ValueError, match=f"Backend.name = '{name}' is taken: choose another name than 'auto', 'd"):
        register_backend(other)
    assert get_backend("sparse") is not other


def test_defaults():
    bitmask, weight = get_backend("bitmask"), torch.randn(4, 4)
    assert bitmask.refusal(weight) is None and bitmask.exact(weight) and bitmask.restrict(weight) is weight
    restricted = get_backend("semi_structured").restrict(torch.tensor([[1.0, -3.0, 2.0, 0.5]]))
    assert restricted.tolist() == [[0.0, -3.0, 2.0, 0.0]]


def test_exactness():
    assert get_backend("sparse").exact(torch.tensor([1 + 2**-12]))
    assert get_backend("sparse_bfloat16").exact(torch.tensor([1.5]))
    assert not get_backend("sparse_bfloat16").exact(torch.tensor([1 + 2**-12]))


@pytest.mark.filterwarnings("default::UserWarning")
def test_the_page_about_adding_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_AUTOSPARSE_CACHE", str(tmp_path))
    page = (ROOT / "docs" / "add_a_backend.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert "nonzero_rows" in [backend.name for backend in registered_backends("cpu")]
    fields = {field.name for field in dataclasses.fields(get_backend("sparse"))}
    table = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    assert table == fields, "the page lists every field"
