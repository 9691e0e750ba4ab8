"""Sparse products in training compute what dense ones do, up to rounding."""

import copy
import dataclasses
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed
from transformers.pytorch_utils import Conv1D

from hf_autosparse import (
    AutoSparseConfig,
    AutoSparseTrainer,
    SparseConfig,
    SparseTraining,
    finalize,
    folded,
    kernels,
    sparsify,
)
from hf_autosparse.kernels.autotune import Measurement
from hf_autosparse.kernels.cpu import library as c_library
from hf_autosparse.kernels.cpu import sparse_matrix
from hf_autosparse.layers import crossover as training_crossover
from hf_autosparse.layers import product as sparse_product
from hf_autosparse.methods import Annealing, Budget, Progress, available_methods, config_class
from tiny import StopAt, assert_same_state, history, tiny_trainer

pytestmark = pytest.mark.skipif(
    kernels.library() is None, reason=f"needs the C kernels, and this machine has none: {kernels.status()}"
)
STR = {"method": "str", "threshold_init": {"sparsity": 0.8}}
SHAPES = [(1, 1), (7, 5), (64, 32), (30, 300), (257, 70)]
GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture
def calls(monkeypatch):
    """What ran sparsely: "product", "input" and "weight" gradient, and "made" for the forms."""
    counted = []

    def count(target, name, kind):
        original = getattr(target, name)

        def counting(*args, **kwargs):
            counted.append(kind)
            return original(*args, **kwargs)

        monkeypatch.setattr(target, name, counting)

    count(kernels.SparseMatrix, "gradient", "weight")
    count(sparse_product.Forms, "__init__", "made")
    count(sparse_product.Forms, "input_gradient", "input")
    count(kernels.SparseMatrix, "product", "product")
    return counted


def config_of(**settings) -> SparseConfig:
    return SparseConfig.from_dict({"method": "autosparse"} | settings)


def layer_of(compute, layer=None, **settings):
    """One sparse layer, the same weights every time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24) if layer is None else layer())
    return sparsify(model, config_of(first_last="none", compute=compute, **(settings or STR))).train()


def both(layer=None, input=None, between=lambda model: None, **settings):
    """(dense, sparse) results of a forward and backward: the output, the input's gradient, all parameters'."""
    results = []
    for compute in ("dense", "sparse"):
        model = layer_of(compute, layer, **settings)
        between(model)
        generator = torch.Generator().manual_seed(1)
        x = (torch.randn(3, 11, 32, generator=generator) if input is None else input.clone()).requires_grad_()
        output = model(x)
        output.backward(torch.randn(output.shape, generator=generator))
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append({"output": output.detach(), "input": x.grad} | gradients)
    return results


def assert_close(dense, sparse):
    assert dense.keys() == sparse.keys()
    for name, expected in dense.items():
        if expected is None:
            assert sparse[name] is None
            continue
        scale = expected.abs().max().item() if expected.numel() else 0.0
        if name.endswith("sparsifier.threshold"):  # a sum over the weight's gradient, whose terms may cancel
            scale = dense[name.replace("sparsifier.threshold", "weight")].norm().item()
        torch.testing.assert_close(
            sparse[name], expected, rtol=1e-5, atol=2e-6 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["Linear", "no bias", "Conv1D"])
def test_output_and_gradients_are_those_of_dense_products(shape, kind, calls):
    outputs, inputs = shape
    made = {
        "Linear": lambda: nn.Linear(inputs, outputs),
        "no bias": lambda: nn.Linear(inputs, outputs, bias=False),
        "Conv1D": lambda: Conv1D(outputs, inputs),
    }[kind]

    def prune(model):  # thresholds of every kind of row
        model[0].weight.data.mul_(torch.rand(model[0].weight.shape, generator=torch.Generator().manual_seed(2)))
        model[0].weight.data[: 1 + outputs // 4] = 0

    x = torch.randn(2, 5, inputs, generator=torch.Generator().manual_seed(3))
    dense, sparse = both(made, x, prune, method="str", threshold_init=-5.0)
    assert_close(dense, sparse)
    assert {"product", "input", "weight"} <= set(calls)


METHODS = [name for name in available_methods() if config_class(name).trains_with_zeros]
CASES = [
    (name, alpha) for name in METHODS for alpha in (0.0, 0.5) if not alpha or issubclass(config_class(name), Annealing)
]


@pytest.mark.parametrize(("method", "alpha"), CASES)
def test_every_method_gets_the_gradients_that_it_needs(method, alpha):
    """Those of dense products, in the steps that grow weights by their gradient, too."""
    found = config_class(method)
    fields = {field.name for field in dataclasses.fields(found)}
    settings = {"method": method}
    settings |= {"target_sparsity": 0.75} if issubclass(found, Budget) or "target_ramp" in fields else {}
    settings |= {"alpha_init": alpha, "alpha_schedule": "fixed"} if issubclass(found, Annealing) else {}
    settings |= {"threshold_init": {"sparsity": 0.75}} if "threshold_init" in fields else {}
    settings |= {"backward_sparsity": 0.5} if "backward_sparsity" in fields else {}
    collected = []

    def step(model):
        layer = model[0]
        if method == "fixed_mask":
            layer.sparsifier.kept.copy_(torch.rand(24, 32, generator=torch.Generator().manual_seed(4)) < 0.25)
        for step in (99, 100):  # every=100: the first collects the gradient, the mask changes, weights are grown at 0
            layer.sparsifier.begin_step(Progress(step / 100, 4.0, step, 400))
            x = torch.randn(9, 32, generator=torch.Generator().manual_seed(step))
            model(x).square().sum().backward()
            gradient = layer.sparsifier._gradient
            collected.append({"collected": None if gradient is None else gradient.clone()})
            with torch.no_grad():
                layer.sparsifier.end_step(layer.weight, Progress(step / 100, 4.0, step + 1, 400))

    dense, sparse = both(between=step, **settings)
    assert_close(dense, sparse)
    for one, other in zip(collected[:2], collected[2:], strict=True):
        assert_close(one, other)
    if method in ("rigl", "snfs"):
        assert collected[2]["collected"].count_nonzero() > 0.9 * 24 * 32


def test_a_weight_that_was_grown_at_zero_gets_its_gradient(calls):
    model = layer_of("sparse", method="rigl", target_sparsity=0.75)
    layer = model[0]
    with torch.no_grad():
        layer.weight[layer.sparsifier.kept] = 0
    model(torch.randn(9, 32)).sum().backward()
    assert torch.equal(layer.weight.grad != 0, layer.sparsifier.kept)
    assert "weight" in calls


def test_what_is_not_needed_is_not_computed(calls):
    """alpha > 0 needs the whole weight gradient, a frozen layer none, and the first layer no input gradient."""
    x = torch.randn(9, 32)
    model = layer_of("sparse", method="autosparse", alpha_init=0.5, threshold_init={"sparsity": 0.8})
    model(x).sum().backward()
    assert calls == ["made", "product"]
    calls.clear()
    model = layer_of("sparse")
    model.requires_grad_(False)
    model(x.clone().requires_grad_()).sum().backward()
    assert calls == ["made", "product", "input", "product"]
    calls.clear()
    model = layer_of("sparse", threshold_init={"sparsity": 0.2}, method="str")  # too few zeros
    model(x).sum().backward()
    assert calls == []


STEP = Progress(epoch=0.0, epochs=1.0, step=0, steps=100)


def test_forms_are_made_once_for_the_micro_batches_of_a_step(calls):
    model = layer_of("sparse")
    layer = model[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    def step():
        layer.before_optimizer_step()
        optimizer.step()
        layer.end_step(STEP.after_step())
        layer.begin_step(STEP)

    changes = [
        step,
        lambda: (step(), layer.weight.data.mul_(0.5)),
        lambda: layer.weight.detach().mul_(1.1),
        lambda: layer.sparsifier.threshold.detach().sub_(0.1),
        lambda: model.load_state_dict({name: value * 0.9 for name, value in model.state_dict().items()}),
    ]
    layer.begin_step(STEP)
    for i, change in enumerate(changes):
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(9, 32, generator=generator)
            output = model(x)
            torch.testing.assert_close(output, F.linear(x, layer.sparse_weight(), layer.bias))
            output.sum().backward()
        assert calls.count("made") == i + 1
        change()


def test_outside_a_step_forms_are_made_for_every_forward(calls):
    """So that an optimizer may write as it likes, through `.data` too."""
    model, x = layer_of("sparse"), torch.randn(9, 32)
    for i in range(3):
        torch.testing.assert_close(model(x), F.linear(x, model[0].sparse_weight(), model[0].bias))
        assert calls.count("made") == i + 1
        model[0].weight.data.mul_(0.9)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(32, 12, generator=GENERATOR).T,
        torch.randn(4, 6, 64, generator=GENERATOR)[:, ::2, ::2],
        torch.randn(32, generator=GENERATOR),
        torch.randn(1, 32, generator=GENERATOR).expand(7, 32),
        torch.zeros(0, 32),
        torch.zeros(2, 0, 32),
    ],
    ids=["transposed", "strided", "one token", "expanded", "empty", "no tokens"],
)
def test_any_input(x):
    assert_close(*both(input=x))


@pytest.mark.parametrize("weight", [0.0, 1.0], ids=["fully pruned", "fully dense"])
def test_extreme_sparsity(weight):
    assert_close(*both(between=lambda model: model[0].weight.data.fill_(weight), method="str", threshold_init=-3.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_spread_as_in_dense_products(bad):
    x = torch.randn(9, 32)
    x[4, 7] = bad
    dense, sparse = both(input=x)
    for name in ("output", "input", "0.weight", "0.bias"):
        torch.testing.assert_close(sparse[name], dense[name], equal_nan=True)
    assert sparse["output"][4].isfinite().sum() == 0
    results = []
    for compute in ("dense", "sparse"):
        model, x = layer_of(compute), torch.ones(9, 32, requires_grad=True)
        grad = torch.ones(9, 24)
        grad[2, 3] = bad
        model(x).backward(grad)
        results.append((x.grad, model[0].weight.grad))
    torch.testing.assert_close(results[1], results[0], equal_nan=True)


def test_two_forwards_before_a_backward_and_the_same_bits_for_any_number_of_threads(monkeypatch):
    model, x = layer_of("sparse"), torch.randn(2, 200, 32)
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(sparse_matrix, "threads", lambda count=threads: count)
        model.zero_grad()
        (model(x[0]) * model(x[1])).sum().backward()
        results.append([parameter.grad.clone() for parameter in model.parameters() if parameter.dim() == 2])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    dense = layer_of("dense")
    (dense(x[0]) * dense(x[1])).sum().backward()
    torch.testing.assert_close(results[0][0], dense[0].weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    results = []
    for wrap in (lambda model, x: model(x), lambda model, x: checkpoint(model, x, use_reentrant=reentrant)):
        model, x = layer_of("sparse"), torch.randn(9, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        output = wrap(model, x)
        output.square().sum().backward()
        results.append([output.detach(), x.grad, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_second_derivatives_autocast_and_functorch_take_dense_products(calls):
    dense, sparse = layer_of("dense"), layer_of("sparse")
    x, results = torch.randn(5, 32, requires_grad=True), []
    for model in (dense, sparse):
        (first,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), (x, model[0].weight)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
    calls.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sparse(x), dense(x))
    gradient = torch.func.grad(lambda x: sparse(x).sum())(x.detach())
    torch.testing.assert_close(gradient, torch.func.grad(lambda x: dense(x).sum())(x.detach()))
    sparse.double()(x.double())
    layer_of("sparse").eval()(x)
    assert calls == []


def test_without_the_kernels_products_are_dense(monkeypatch, calls):
    monkeypatch.setattr(c_library, "_choice", (None, "not there"))
    dense, sparse = both()
    assert calls == [] and all(torch.equal(a, b) for a, b in zip(dense.values(), sparse.values(), strict=True))


def test_forms_are_no_state():
    model, x = layer_of("sparse"), torch.randn(9, 32)
    keys, layer = set(model.state_dict()), model[0]
    layer.begin_step(STEP)
    model(x)
    assert layer.open_step.forms.forms is not None and layer.open_step.effective is None
    assert set(model.state_dict()) == keys
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other[0].open_step is None
        torch.testing.assert_close(other(x), model(x))
    with folded(model):
        assert layer.open_step is None
    layer.begin_step(STEP)
    model(x)
    finalize(model)
    assert not hasattr(layer, "open_step") and type(layer) is nn.Linear


def test_convolutions_stay_dense(calls):
    model = nn.Sequential(nn.Conv2d(4, 8, 1))
    sparsify(model, config_of(first_last="none", compute="sparse", **STR)).train()
    model(torch.randn(2, 4, 5, 5)).sum().backward()
    assert calls == []


# ---- "auto" ----


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Returns what is said here as if it had been measured; lists what was asked for."""
    asked, answer = [], {}

    def measure(*key):
        asked.append(key)
        return Measurement(dict(answer), 0.0)

    monkeypatch.setattr(training_crossover, "_measure", measure)
    monkeypatch.setattr(training_crossover, "_picked", {})
    monkeypatch.setenv("HF_AUTOSPARSE_CACHE", str(tmp_path))
    return asked, answer


def test_auto_takes_what_was_measured_faster(measured, calls, caplog):
    asked, answer = measured
    answer.update({64: 0.8, 256: 1.2, 1024: 1.9})
    model = layer_of("auto")
    model(torch.randn(5000, 32))
    assert calls == [] and asked == []  # nothing was measured, and a forward does not measure
    with caplog.at_level("INFO"):
        SparseTraining(model, steps=10, steps_per_epoch=10)
    zeros = [0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    assert asked == [((24, 32), True, fraction, sampled) for sampled in (True, False) for fraction in zeros]
    (line,) = [m for m in caplog.messages if "80 % zeros, its gradient sampled" in m]
    assert line == (
        "compute='auto', a 24 x 32 weight with 80 % zeros, its gradient sampled: sparse products for 256 tokens on"
        " (64 tokens 0.80x, 256 tokens 1.20x, 1,024 tokens 1.90x)"
    )
    for tokens, sparse in ((64, False), (255, False), (256, True), (400, True), (5000, True)):
        calls.clear()
        model(torch.randn(tokens, 32)).sum().backward()
        assert bool(calls) is sparse
    training_crossover._picked.clear()
    training_crossover.measure_layers([model[0]])
    assert len(asked) == 16  # the file knows
    model(torch.randn(256, 32))
    training_crossover.measure_layers([layer_of("dense", lambda: nn.Linear(5, 5))[0]])
    assert len(asked) == 16  # only "auto" measures


def test_auto_does_not_measure_fewer_zeros_than_gain_nothing(measured, calls):
    asked, answer = measured
    answer.update({64: 0.8, 256: 1.0})
    model = layer_of("auto", lambda: Conv1D(24, 32))
    training_crossover.measure_layers([model[0]])
    assert asked == [((24, 32), True, 0.95, True), ((24, 32), True, 0.95, False)]
    model(torch.randn(300, 32)).sum().backward()
    assert calls == []


def test_auto_measures(monkeypatch):
    monkeypatch.setattr(training_crossover, "TOKENS", (8, 64))
    monkeypatch.setattr(training_crossover, "_ROUNDS", 1)
    monkeypatch.setattr(training_crossover, "_SECONDS", 0.0)
    random = torch.get_rng_state()
    for bias, sampled in itertools.product((True, False), (True, False)):
        with torch.no_grad():
            speedups = training_crossover._measure((40, 60), bias, 0.8, sampled).speedups
        assert list(speedups) == [8, 64] and all(ratio > 0 for ratio in speedups.values())
    assert torch.equal(torch.get_rng_state(), random)  # training goes on as if nothing had been


# ---- Whole runs ----


def bert_run(tmp_path, compute, size=8, steps=1, max_steps=20, **settings):
    set_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForSequenceClassification(BertConfig(vocab_size=20, **shape, **dropout))
    ids = torch.randint(1, 20, (64, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": (row == 7).any().long()} for row in ids]
    args = TrainingArguments(
        str(tmp_path / compute),
        max_steps=max_steps,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
        learning_rate=1e-3,
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = AutoSparseTrainer(model, args, config_of(compute=compute, **(settings or STR)), train_dataset=data)
    trainer.train()
    return trainer


def assert_same_run(one, other):
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (one, other)]
    assert len(losses[0]) >= 5 and losses[0] == pytest.approx(losses[1], abs=1e-4)
    for (name, a), b in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_twenty_steps_are_those_of_dense_products(tmp_path, alpha, calls):
    settings = {"alpha_init": alpha, "alpha_schedule": "fixed", "threshold_init": {"sparsity": 0.8}}
    runs = [bert_run(tmp_path, compute, **settings) for compute in ("dense", "sparse")]
    assert_same_run(*runs)
    assert calls.count("made") == 20 * 13  # of 13 sparse layers, in every step anew
    assert ("weight" in calls) is (alpha == 0)


def test_accumulated_8x1_equals_1x8(tmp_path, calls):
    runs = [bert_run(tmp_path, "sparse", size, steps, max_steps=5) for size, steps in ((8, 1), (1, 8))]
    assert_same_run(*runs)
    assert calls.count("made") == 2 * 5 * 13


def test_resumed_equals_uninterrupted(tmp_path, calls):
    settings = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    config = AutoSparseConfig(compute="sparse", threshold_init={"sparsity": 0.7}, alpha_init=0.0)
    whole = tiny_trainer(tmp_path / "whole", config=config, **settings)
    whole.train()
    tiny_trainer(tmp_path / "cut", config=config, callbacks=[StopAt(4)], **settings).train()
    resumed = tiny_trainer(tmp_path / "cut", config=config, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_state(whole.model, resumed.model)
    assert history(whole) == history(resumed)
    assert "weight" in calls


# ---- The setting ----


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"AutoSparseConfig.compute = 'csr'.*'dense', 'sparse', 'auto'"):
        AutoSparseConfig(compute="csr")
    for method in sorted(set(available_methods()) - set(METHODS)):
        with pytest.raises(ValueError, match=f"compute = 'sparse' is not allowed: method '{method}'.*leave it out"):
            config_class(method)(compute="sparse")
