"""The table of layer types."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_autosparse import AutoSparseConfig, finalize, sparsify, to_inference
from hf_autosparse.inference.layers import InferenceConv2d, InferenceLinear
from hf_autosparse.layers import kinds
from hf_autosparse.layers.sparse import SparseConv2d, SparseLinear


@pytest.mark.parametrize(
    ("layer", "kind", "shape"),
    [
        (nn.Linear(3, 5), kinds.LINEAR, (5, 3)),
        (nn.Conv2d(4, 6, (2, 3)), kinds.CONV2D, (6, 24)),
        (Conv1D(5, 3), kinds.CONV1D, (5, 3)),
    ],
    ids=["Linear", "Conv2d", "Conv1D"],
)
def test_a_layer_keeps_its_kind_in_every_form(layer, kind, shape):
    dense = type(layer)
    for form in (None, "sparse", "inference"):
        if form is not None:
            kinds.swap_in(layer, form)
            assert type(layer) is not dense and isinstance(layer, dense)
        assert kinds.kind_of(layer) is kind
        assert kinds.dense_kind_of(layer) is (kind if form is None else None)
        assert kinds.matrix_of(layer).shape == shape
        assert kinds.matrix_of(layer).data_ptr() == layer.weight.data_ptr()
        kinds.swap_out(layer)
        assert type(layer) is dense


def test_forms_are_subclasses_that_are_registered_once():
    assert kinds.LINEAR.forms == {"sparse": SparseLinear, "inference": InferenceLinear}
    assert kinds.CONV2D.forms == {"sparse": SparseConv2d, "inference": InferenceConv2d}
    with pytest.raises(ValueError, match="sparse form of Linear is .*SparseLinear.* already: .*Other"):
        kinds.LINEAR.add_form("sparse", type("Other", (nn.Linear,), {}))
    kinds.LINEAR.add_form("sparse", SparseLinear)  # the same again changes nothing


def test_subclasses_and_other_modules_have_no_kind():
    class Scaled(nn.Linear):
        pass

    for module in (Scaled(2, 2), nn.LayerNorm(2), nn.Conv1d(2, 2, 1)):
        assert kinds.kind_of(module) is None and kinds.dense_kind_of(module) is None
        for refused in (kinds.matrix_of, kinds.swap_out):
            with pytest.raises(TypeError, match="is no layer of a known kind: Linear, Conv2d, Conv1D"):
                refused(module)
        with pytest.raises(TypeError, match="has no 'sparse' form; layer types with one: Linear, Conv2d, Conv1D"):
            kinds.swap_in(module, "sparse")
    with pytest.raises(TypeError, match="Linear has no 'quantised' form; layer types with one: none"):
        kinds.swap_in(nn.Linear(2, 2), "quantised")


def test_a_layer_type_can_be_added(monkeypatch):
    class Doubled(nn.Linear):
        pass

    class SparseDoubled(Doubled):
        pass

    kind = kinds.LayerKind("Doubled", Doubled, output_dim=0, forms={"sparse": SparseDoubled})
    monkeypatch.setattr(kinds, "KINDS", [*kinds.KINDS, kind])
    layer = Doubled(2, 3)
    kinds.swap_in(layer, "sparse")
    assert type(layer) is SparseDoubled and kinds.kind_of(layer) is kind
    kinds.swap_out(layer)
    assert type(layer) is Doubled


def test_a_class_that_is_not_imported_stays_so():
    program = """
import sys
from torch import nn
from hf_autosparse import AutoSparseConfig, sparsify
sparsify(nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 3)), AutoSparseConfig(first_last="none"))
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unpickled_conv1d_becomes_plain_again_in_a_new_process(tmp_path):
    model = sparsify(nn.Sequential(Conv1D(4, 3)), AutoSparseConfig(first_last="none"))
    (tmp_path / "model").write_bytes(pickle.dumps(model))
    program = f"""
import pickle
from hf_autosparse import finalize
model = finalize(pickle.loads(open({str(tmp_path / "model")!r}, "rb").read()))
from transformers.pytorch_utils import Conv1D
assert type(model[0]) is Conv1D
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_conv1d_computes_the_same_sparse_and_for_inference():
    model = sparsify(nn.Sequential(Conv1D(40, 30)), AutoSparseConfig(first_last="none")).eval()
    x = torch.randn(5, 30)
    with torch.no_grad():
        expected = model(x)
        plain = finalize(copy.deepcopy(model))
        torch.testing.assert_close(plain(x), expected)
        torch.testing.assert_close(to_inference(plain, "dense")(x), expected)
