import copy
import dataclasses
import io
import logging
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers import AutoModelForSeq2SeqLM
from transformers.pytorch_utils import Conv1D

import hf_autosparse.inference.layers as inference_layers
import hf_autosparse.inference.measure as measuring
from hf_autosparse import (
    AutoSparseConfig,
    finalize,
    inference_report,
    kernels,
    layer_sparsity,
    sparse_layers,
    sparsify,
    sparsity,
    to_inference,
)
from hf_autosparse.inference.layers import InferenceConv2d, InferenceLayer, InferenceLinear
from hf_autosparse.kernels import backends as registry
from hf_autosparse.kernels import get_backend
from hf_autosparse.kernels.autotune import EVERY_NUMBER, Measurement, ranges
from hf_autosparse.kernels.cpu import library as c_library
from tiny import tiny_translator

pytestmark = pytest.mark.skipif(
    kernels.library() is None, reason=f"needs the C kernels, and this machine has none: {kernels.status()}"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_AUTOSPARSE_CACHE", str(tmp_path))


@pytest.fixture
def fast_measuring(monkeypatch):
    """Measures little: what is picked then depends on noise, and the tests that use this don't depend on the pick."""
    monkeypatch.setattr(measuring, "TOKENS", (1, 16))
    monkeypatch.setattr(measuring, "_ROUNDS", 2)
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)


@pytest.fixture
def speedups(monkeypatch):
    """Makes `_measure` give what a test wants, and counts its calls."""
    given = {"result": {1: 2.0, 16: 3.0}, "calls": 0}

    def measure(layer, sparsity, mebibytes, backend):
        given["calls"] += 1
        return Measurement(given["result"], spread=0.0)

    monkeypatch.setattr(measuring, "_measure", measure)
    return given


def pruned(layer, sparsity=0.8):
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape) >= sparsity)
    return layer


def network():
    torch.manual_seed(0)
    return nn.Sequential(pruned(nn.Linear(40, 70)), nn.ReLU(), pruned(nn.Linear(70, 30, bias=False), 0.5))


def kernel_calls(monkeypatch):
    """A list that grows by one at every product of the kernel."""
    calls = []
    for name in ("product", "convolution"):
        original = getattr(kernels.SparseMatrix, name)
        monkeypatch.setattr(kernels.SparseMatrix, name, lambda *a, original=original: calls.append(1) or original(*a))
    return calls


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(50, 33), (50,)),
        (nn.Linear(50, 33), (1, 50)),
        (nn.Linear(50, 33, bias=False), (2, 9, 50)),
        (Conv1D(33, 50), (2, 9, 50)),
        (nn.Conv2d(50, 33, 1), (2, 50, 5, 7)),
        (nn.Conv2d(50, 33, 1, bias=False), (1, 50, 1, 1)),
        (nn.Conv2d(50, 33, 3, padding=1), (2, 50, 14, 14)),
        (nn.Conv2d(50, 33, 3, stride=2, padding="valid", dilation=(1, 2)), (2, 50, 9, 14)),
        (nn.Conv2d(50, 33, (2, 3), padding="same", padding_mode="reflect", bias=False), (1, 50, 6, 5)),
        (nn.Conv2d(50, 33, 1, stride=2, padding=(0, 1)), (1, 50, 6, 6)),
    ],
    ids=str,
)
def test_layer_computes_what_the_dense_one_does(layer, shape, monkeypatch):
    dense = nn.Sequential(pruned(layer))
    model = to_inference(copy.deepcopy(dense), "sparse")
    assert isinstance(model[0], InferenceLayer) and isinstance(model[0], type(layer)) and not model.training
    calls = kernel_calls(monkeypatch)
    with torch.inference_mode():
        x = torch.randn(shape)
        torch.testing.assert_close(model(x), dense(x))
        assert len(calls) == 1
        other = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
        torch.testing.assert_close(model(other), dense(other))
        empty = torch.randn(0, *shape[1:]) if len(shape) > 1 else x
        assert model(empty).shape == dense(empty).shape


def test_images_in_any_form(monkeypatch):
    dense = pruned(nn.Conv2d(16, 33, 3, padding=1, stride=2)).eval()
    layer = to_inference(copy.deepcopy(dense), "sparse")
    image = torch.randn(2, 16, 9, 11)
    calls = kernel_calls(monkeypatch)
    with torch.inference_mode():
        expected = dense(image)
        torch.testing.assert_close(layer(image.to(memory_format=torch.channels_last)), expected)
        torch.testing.assert_close(layer.to(memory_format=torch.channels_last)(image), expected)
        assert len(calls) == 2
        torch.testing.assert_close(layer(image[0]), expected[0])  # without a batch: the dense layer's
        image[1, 3, 4, 5] = float("nan")
        assert torch.equal(layer(image).isnan(), dense(image).isnan())
        with pytest.raises(RuntimeError, match="channels"):
            layer(image[:, :5])
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            to_inference(pruned(nn.Conv2d(16, 4, 5)), "sparse")(image[:, :, :3])


def test_in_the_model_nothing_but_the_class_changes(tmp_path):
    model = tiny_translator().eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.lm_head:
            pruned(module)
    before, names = copy.deepcopy(model), list(model.state_dict())
    ids = torch.randint(4, 60, (2, 7))
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    to_inference(model, "sparse")
    converted = [name for name, module in model.named_modules() if isinstance(module, InferenceLayer)]
    assert len(converted) == 16 and "lm_head" not in converted
    assert list(model.state_dict()) == names
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), expected)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert sparsity(to_inference(loaded, "sparse")) == sparsity(before)
    to_inference(model, "dense")
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert not any("_packed" in vars(m) for m in model.modules())


def test_a_model_that_is_still_sparse_is_finalized():
    model = sparsify(network(), AutoSparseConfig(first_last="none", threshold_init={"sparsity": 0.9}))
    expected = finalize(copy.deepcopy(model))
    to_inference(model, "sparse")
    assert not sparse_layers(model)
    x = torch.randn(3, 40)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x))
    assert layer_sparsity(model) == layer_sparsity(expected)


def test_copies_and_pickles(monkeypatch):
    model = to_inference(network(), "sparse")
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    x = torch.randn(3, 40)
    calls = kernel_calls(monkeypatch)
    with torch.inference_mode():
        expected = model(x)
        for other in copies:
            assert torch.equal(other(x), expected)
            assert other[0]._handle != model[0]._handle
            assert inference_report(other) == inference_report(model)
    assert len(calls) == 2 * 4
    assert len(pickle.dumps(model)) < 2 * len(pickle.dumps(network()))  # the sparse form is not stored


def test_a_changed_weight_is_noticed():
    model = to_inference(network(), "sparse")
    x = torch.randn(3, 40)
    other = network()
    with torch.no_grad():
        other[0].weight.mul_(2)
        model(x)
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model(x), other(x))
        model[0].weight = nn.Parameter(torch.zeros(70, 40))
        torch.testing.assert_close(model(x), other[2](other[0].bias.relu()).expand(3, -1))
    assert model.double()(x.double()).dtype == torch.float64
    with torch.inference_mode():
        made = to_inference(nn.Sequential(pruned(nn.Linear(8, 8))), "sparse")  # its weight has no version to look at
        assert made(torch.randn(2, 8)).shape == (2, 8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_come_out_as_of_the_dense_layer(bad):
    dense = network()
    model = to_inference(copy.deepcopy(dense), "sparse")
    for shape in ((1, 40), (5, 40)):
        x = torch.randn(shape)
        x[-1, 3] = bad
        with torch.inference_mode():
            assert torch.equal(model(x).isnan(), dense(x).isnan()) and dense(x).isnan().any()


def test_gradients_take_the_dense_product_and_a_warning(monkeypatch, caplog):
    dense = network()
    model = to_inference(copy.deepcopy(dense), "sparse")
    monkeypatch.setattr(inference_layers, "_warned_of_gradients", False)
    calls = kernel_calls(monkeypatch)
    x = torch.randn(3, 40)
    for network_ in (model, dense):
        network_(x).square().sum().backward()
    assert torch.equal(model[0].weight.grad, dense[0].weight.grad)
    assert not calls
    assert caplog.text.count("with gradients enabled, which takes the dense product") == 1
    model.requires_grad_(False)
    model(x)
    assert calls  # no gradient is asked for


def test_where_the_kernel_does_not_apply_the_layer_is_the_dense_one(monkeypatch):
    dense = network()
    model = to_inference(copy.deepcopy(dense), "sparse")
    calls = kernel_calls(monkeypatch)
    x = torch.randn(3, 40)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(x), dense(x))
        assert torch.equal(torch.func.vmap(model)(x), torch.func.vmap(dense)(x))
        assert model.to("meta")(x.to("meta")).is_meta
    assert not calls
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        to_inference(network(), "sparse")(torch.randn(3, 41))


def test_threads(monkeypatch):
    model = to_inference(network(), "sparse")
    x = torch.randn(9, 40)
    results = []

    def work():
        with torch.inference_mode():
            results.extend(model(x) for _ in range(20))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 80 and all(torch.equal(results[0], result) for result in results)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracer does
def test_compiles_into_one_graph_and_still_skips_zeros(monkeypatch):
    dense = network()
    model = to_inference(copy.deepcopy(dense), "sparse")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    calls = kernel_calls(monkeypatch)
    for tokens in (3, 5, 1):
        x = torch.randn(tokens, 40)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), dense(x))
    assert len(calls) == 2 * 3
    convolution = to_inference(pruned(nn.Conv2d(4, 6, 3, stride=2, padding=1)), "sparse")
    image = torch.randn(2, 4, 9, 7)
    with torch.no_grad():
        expected = convolution(image)
        result = torch.compile(convolution, fullgraph=True, backend="aot_eager")(image)
        torch.testing.assert_close(result, expected)
    x = torch.randn(3, 40)
    compiled(x).sum().backward()
    dense(x).sum().backward()
    torch.testing.assert_close(model[0].weight.grad, dense[0].weight.grad)


# ---- What is picked ----


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ({1: 2.0, 4: 3.0, 16: 4.0}, ((1, float("inf")),)),
        ({1: 0.9, 4: 0.9, 16: 1.04}, ()),
        ({1: 0.9, 4: 1.5, 16: 1.5, 64: 0.8}, ((4, 16),)),
        ({1: 0.9, 4: 1.5, 16: 0.8, 64: 2.0}, ((4, 4), (64, float("inf")))),
    ],
)
def test_ranges_between_measured_points_need_both(speedups, expected):
    assert ranges(speedups) == expected


def test_auto_follows_the_measurement_and_says_so(speedups, monkeypatch):
    speedups["result"] = {1: 0.7, 4: 2.0, 16: 3.0}
    model = to_inference(network())
    assert [layer.sparse_for for layer in (model[0], model[2])] == [((4, float("inf")),)] * 2
    calls = kernel_calls(monkeypatch)
    with torch.inference_mode():
        model(torch.randn(3, 40))
        assert not calls
        model(torch.randn(4, 40))
        assert len(calls) == 2
    rows = inference_report(model).rows
    assert [row.backend for row in rows] == ["sparse", "sparse"]
    assert rows[0].reason == "measured (tokens 1: 0.7x, 4: 2.0x, 16: 3.0x); dense for 1"
    speedups["result"] = {1: 0.7, 4: 1.0}
    model = to_inference(model, remeasure=True)
    assert type(model[0]) is nn.Linear
    assert inference_report(model).rows[0].reason == "not measured faster (tokens 1: 0.7x, 4: 1.0x)"
    table = str(inference_report(model))
    assert "0 of 2 layers sparse" in table and "70 x 40" in table and "kernels: C for" in table


def test_measurements_are_kept_and_shared_by_equal_layers(speedups, tmp_path, caplog):
    def build():
        return nn.Sequential(*(pruned(nn.Linear(64, 64), 0.85) for _ in range(3)))

    to_inference(build())
    assert speedups["calls"] == 1
    (file,) = tmp_path.iterdir()
    to_inference(build())
    assert speedups["calls"] == 1
    to_inference(build(), remeasure=True)
    assert speedups["calls"] == 2
    file.write_text("{")
    to_inference(build())
    assert speedups["calls"] == 3 and "is damaged and will be measured again" in caplog.text
    file.write_text('{"format_version": 99}')
    to_inference(build())
    assert "format_version 99, expected 2" in caplog.text


def test_a_cache_that_cannot_be_written_is_logged(speedups, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_AUTOSPARSE_CACHE", str(tmp_path / "file" / "below"))
    to_inference(network())
    assert "the measurements cannot be kept for the next time" in caplog.text


def test_a_real_measurement(fast_measuring):
    for layer in (nn.Linear(64, 48), Conv1D(48, 64), nn.Conv2d(64, 48, 1)):
        result = measuring._measure(layer, 0.9, 1, get_backend("sparse"))
        assert list(result.speedups) == [1, 16] and all(ratio > 0 for ratio in result.speedups.values())
        assert result.spread >= 0


def test_what_cannot_be_sparse_says_why(speedups):
    model = nn.ModuleDict(
        {
            "few": pruned(nn.Linear(8, 8), 0.1),
            "wide": pruned(nn.Linear(8, 8)).double(),
            "empty": nn.Linear(8, 8),
            "meta": nn.Linear(8, 8, device="meta"),
            "computed": prune.identity(nn.Linear(8, 8), "weight"),
            "grouped": pruned(nn.Conv2d(8, 8, 3, groups=2)),
            "encoder": nn.TransformerEncoderLayer(8, 2, 16),
        }
    )
    model["empty"].weight = nn.Parameter(torch.empty(8, 0))
    reasons = {row.name: row.reason for row in inference_report(to_inference(model)).rows}
    assert reasons == {
        "few": "fewer than 30% zeros",
        "wide": "float64: the kernels compute in bfloat16 and float16 and float32",
        "empty": "empty",
        "meta": "on meta, where no backend computes",
        "computed": "its weight is computed by another module (weight norm, pruning)",
        "grouped": "a convolution with groups",
        "encoder.linear1": "nn.TransformerEncoderLayer bypasses the layer in its fast path",
        "encoder.linear2": "nn.TransformerEncoderLayer bypasses the layer in its fast path",
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_models_are_sparse_where_that_is_faster(dtype, speedups):
    model = network().to(dtype)
    x = torch.randn(3, model[0].in_features).to(dtype)
    with torch.no_grad():
        expected = model(x)
        result = to_inference(model)(x)
    assert {row.backend for row in inference_report(model).rows} == {"bitmask_cpu"}
    assert type(model[0]) is InferenceLinear and model[0]._packed[1] is not None
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_opt_in_and_its_error_is_reported(dtype):
    model = network().to(dtype)
    plain = copy.deepcopy(model)
    to_inference(model, dtype="int8")
    rows = inference_report(model).rows
    assert {row.backend for row in rows} == {"bitmask_int8"}
    assert all(0.001 < row.error < 0.03 for row in rows)
    assert "error" in str(inference_report(model)) and f"{rows[0].error:.2%}" in str(inference_report(model))
    x = torch.randn(50, plain[0].in_features).to(dtype)
    with torch.no_grad():
        found, expected = model(x).float(), plain(x).float()
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()
    x[0, 0] = float("nan")  # takes the dense product
    with torch.no_grad():
        assert torch.equal(model(x)[1:], plain(x)[1:]) and model(x)[0].isnan().all()
    to_inference(plain, "dense")
    assert inference_report(plain).rows[0].error == 0 and "error" not in str(inference_report(plain))


def test_a_dtype_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="dtype = 'int4': allowed are 'int8', and None"):
        to_inference(network(), dtype="int4")
    with pytest.raises(ValueError, match="dtype = 'int8' beside backend = 'sparse': leave one of them out"):
        to_inference(network(), "sparse", dtype="int8")


def test_overrides():
    model = to_inference(network(), "dense", {"2": "sparse"})
    assert type(model[0]) is nn.Linear and type(model[2]) is InferenceLinear
    assert [row.reason for row in inference_report(model).rows] == ["asked for", "overrides"]
    conv = to_inference(nn.Sequential(pruned(nn.Conv2d(4, 4, 1))), "sparse", {"*": "sparse"})
    assert type(conv[0]) is InferenceConv2d and conv[0].sparse_for == EVERY_NUMBER


def test_values_that_bfloat16_would_change_take_it_only_when_asked_for(speedups):
    model = nn.Sequential(nn.Linear(64, 64), nn.Conv2d(1, 4, 1)).eval()
    with torch.no_grad():
        model[0].weight *= torch.rand(64, 64) >= 0.7
    rounded = copy.deepcopy(model)
    rounded[0].weight.data = model[0].weight.bfloat16().float()
    assert [row.backend for row in inference_report(to_inference(model, "auto")).rows] == ["sparse", "dense"]
    to_inference(model, "sparse_bfloat16")
    assert [row.backend for row in inference_report(model).rows] == ["sparse_bfloat16", "dense"]
    with torch.inference_mode():
        x = torch.randn(3, 64)
        torch.testing.assert_close(model[0](x), rounded[0](x), rtol=1e-5, atol=1e-5)
        assert not torch.equal(model[0](x), to_inference(model, "sparse")[0](x))


def test_values_that_bfloat16_keeps_may_take_it(monkeypatch):
    measured = {"sparse": {1: 2.0}, "sparse_bfloat16": {1: 3.0}}
    monkeypatch.setattr(measuring, "_measure", lambda *arguments: Measurement(measured[arguments[-1].name], 0.0))
    layer = pruned(nn.Linear(64, 64))
    layer.weight.data = layer.weight.data.bfloat16().float()
    model = to_inference(nn.Sequential(layer))
    (row,) = inference_report(model).rows
    assert row.backend == "sparse_bfloat16"
    x = torch.randn(1, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), nn.functional.linear(x, layer.weight, layer.bias))
    with torch.no_grad():
        layer.weight[:, 0] = 1.0 + 2.0**-12  # no longer a bfloat16 number: the layer is exact still, but dense
        x = torch.zeros(1, 64)
        x[0, 0] = 1.0
        assert torch.equal(model(x)[0], layer.weight[:, 0] + layer.bias)
    measured["sparse_bfloat16"] = {1: 1.0}
    (row,) = inference_report(to_inference(model, remeasure=True)).rows
    assert row.backend == "sparse"


def test_bad_arguments():
    with pytest.raises(ValueError, match="backend = 'fast': allowed are 'auto', 'dense', .*'sparse'"):
        to_inference(network(), "fast")
    with pytest.raises(
        ValueError, match=r"overrides\['0'\] = 'auto': allowed are 'dense', .*'sparse' on cpu, 'sparse_b"
    ):
        to_inference(network(), overrides={"0": "auto"})
    with pytest.raises(ValueError, match=r"overrides: 'fc\*' matches no layer; there are \['0', '2'\]"):
        to_inference(network(), overrides={"fc*": "sparse"})
    with pytest.raises(ValueError, match="Sequential was not prepared for inference: call to_inference"):
        inference_report(network())


def test_without_kernels(monkeypatch):
    monkeypatch.setattr(c_library, "_choice", (None, "plain torch, because of this test"))
    with pytest.raises(RuntimeError, match="needs the C kernels, but this machine takes plain torch, because of this"):
        to_inference(network(), "sparse")
    model = to_inference(network())
    report = inference_report(model)
    assert type(model[0]) is nn.Linear
    assert report.rows[0].reason == "this machine lacks the C kernels" and report.kernels.startswith("plain torch")


def test_a_model_taken_to_a_machine_without_kernels_computes_densely(monkeypatch):
    model, x = to_inference(network(), "sparse"), torch.randn(3, 40)
    with torch.inference_mode():
        expected = model(x)
        stored = pickle.dumps(model)
        monkeypatch.setattr(c_library, "_choice", (None, "plain torch, because of this test"))
        torch.testing.assert_close(pickle.loads(stored)(x), expected)


def test_a_backend_of_another_device_is_refused_by_name():
    model = network().to("meta")
    with pytest.raises(ValueError, match="'sparse' computes on 'cpu', but 0.weight is on meta: call model.to") as error:
        to_inference(model, "sparse")
    assert str(error.value).endswith("or take one of 'dense'")
    with pytest.raises(ValueError, match="'bitmask' computes on 'cuda'.*or take one of 'dense', .*'sparse', 'spar"):
        to_inference(network(), "bitmask")
    report = inference_report(to_inference(model))
    assert report.kernels == "none for meta" and {row.reason for row in report.rows} == {
        "on meta, where no backend computes"
    }


def test_auto_says_why_it_can_take_no_backend(speedups, monkeypatch):
    form = get_backend("sparse")
    for changed, reason in (
        ({"refusal": lambda weight: "not of its pattern"}, "not of its pattern"),
        ({"exact": lambda weight: False}, "every backend rounds its values: ask for one by name"),
        ({"is_available": lambda: False}, "this machine lacks the C kernels"),
    ):
        monkeypatch.setattr(registry, "_registered", {"sparse": dataclasses.replace(form, **changed)})
        (row,) = inference_report(to_inference(nn.Sequential(pruned(nn.Linear(8, 8))))).rows
        assert (row.backend, row.reason) == ("dense", reason)


def test_a_model_whose_backend_is_not_registered_says_so(monkeypatch):
    stored = pickle.dumps(to_inference(network(), "sparse"))
    monkeypatch.setattr(registry, "_registered", {"other": get_backend("sparse_bfloat16")})
    with pytest.raises(ValueError, match="backend 'sparse' is unknown: registered are 'other'; import the"):
        pickle.loads(stored)


def test_the_log_is_quiet_about_what_went_well(caplog):
    with caplog.at_level(logging.WARNING):
        to_inference(network(), "sparse")
    assert not caplog.records
