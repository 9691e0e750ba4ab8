"""Theoretical FLOPs: hand-worked counts, torch's own counter, and the figures that papers print."""

import csv
import json
import math

import pytest
import torch
import transformers as tf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from architectures import ARCHITECTURES
from hf_autosparse import AutoSparseConfig, FlopsReport, finalize, flops, folded, sparsify
from hf_autosparse.reports.flops import layer_fraction, step_fraction, training_fraction
from hf_autosparse.reports.trajectory import LayerCost, Moment, Trajectory

# ---- Fractions ----


def run(moments, **changes) -> Trajectory:
    """A dense layer of 100 MACs and a sparse one of 300."""
    layers = {"first": LayerCost(100, 10), "second": LayerCost(300, 30)}
    moments = [Moment(step, 0.0, alpha, (s,), (b,), None) for step, alpha, s, b in moments]
    return Trajectory(**({"max_steps": 10, "sparse": ["second"], "layers": layers, "moments": moments} | changes))


MOMENTS = [(0, 0.5, 0.5, 0.0), (4, 0.0, 0.75, 0.75)]


def test_fractions_by_hand():
    assert layer_fraction([100, 300], [1.0, 0.5]) == 0.625
    assert step_fraction(0.625, 1.0) == 0.75
    # four steps at (2 * .625 + 1) / 3 = .75, six at .4375
    assert training_fraction(run(MOMENTS)) == pytest.approx((4 * 0.75 + 6 * 0.4375) / 10)
    assert training_fraction(run(MOMENTS, steps_done=5)) == pytest.approx((4 * 0.75 + 1 * 0.4375) / 5)
    other_costs = {"first": 300, "second": 300}
    assert training_fraction(run(MOMENTS), other_costs) == pytest.approx((4 * (2 * 0.75 + 1) / 3 + 6 * 0.625) / 10)


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (run(MOMENTS, layers={}), r"no MACs are known for the trajectory's sparse layers \['second'\]"),
        (run(MOMENTS[1:]), "does not begin at step 0"),
        (run([]), "does not begin at step 0"),
        (run(MOMENTS[:1], steps_done=0), "no optimizer step yet"),
        (run(MOMENTS, layers={"second": LayerCost(0, 30)}), "no layer has MACs"),
    ],
)
def test_training_fraction_that_is_not_known(trajectory, message):
    with pytest.raises(ValueError, match=message):
        training_fraction(trajectory)


# ---- The papers ----


@pytest.fixture(scope="module")
def resnet50() -> FlopsReport:
    """Version 1.5: the stride is in the 3x3 convolutions."""
    model = tf.ResNetForImageClassification(tf.ResNetConfig(num_labels=1000))
    return flops(model, torch.zeros(1, 3, 224, 224))


def test_resnet50(resnet50):
    assert resnet50.macs == 4_089_184_256
    assert (resnet50.attention_macs, resnet50.other_macs) == (0, 0)
    assert resnet50.inference_fraction == pytest.approx(1, abs=1e-5)  # a few of 25 million random weights are 0
    assert len(resnet50.layers) == 54 and sum(row.weights for row in resnet50.layers) == 25_502_912


def uniform(report: FlopsReport, sparsity: float) -> float:
    """F at one sparsity for all layers but the first and the last."""
    density = [1.0] + [1 - sparsity] * (len(report.layers) - 2) + [1.0]
    return layer_fraction([row.macs for row in report.layers], density)


def test_uniform_80_percent(resnet50):
    forward, half = uniform(resnet50, 0.8), uniform(resnet50, 0.5)
    assert forward == pytest.approx(0.2235, abs=5e-5)
    assert step_fraction(forward, 1.0) == pytest.approx(0.482, abs=5e-4)  # TopKAST*: a dense weight gradient
    assert step_fraction(forward, half) == pytest.approx(0.3206, abs=5e-5)  # TopKAST: one that is 50 % sparse
    every = 100  # RigL: a dense gradient in one of 101 steps
    rigl = (every * 3 * forward + 2 * forward + 1) / (3 * (every + 1))
    assert rigl == pytest.approx(0.226, abs=5e-4)


def papers_rows(shared_data, table: str) -> dict[tuple, dict]:
    tables = json.loads((shared_data / "paper" / "tables.json").read_text())
    rows = [dict(zip(tables["columns"], row, strict=True)) for row in tables[table]]
    return {(row["method"], row["sparsity"]): row for row in rows}


def test_uniform_80_percent_as_printed(resnet50, shared_data):
    rows = papers_rows(shared_data, "resnet50_imagenet")
    half = papers_rows(shared_data, "resnet50_imagenet_back_sparsity_50")
    forward = uniform(resnet50, 0.8)
    assert forward == pytest.approx(rows["TopKAST*", 80]["test_flops"], abs=5e-3)
    assert step_fraction(forward, 1.0) == pytest.approx(rows["TopKAST*", 80]["train_flops"], abs=5e-3)
    assert step_fraction(forward, uniform(resnet50, 0.5)) == pytest.approx(half["TopKAST", 80]["train_flops"], abs=5e-3)
    # docs/flops.md has the arithmetic of those that do not follow from the definition.
    assert step_fraction(forward, forward) < rows["SWAT-U", 80]["train_flops"] < rows["RigL", 80]["train_flops"]


def test_mest_as_printed(resnet50, shared_data):
    rows = papers_rows(shared_data, "resnet50_imagenet")
    printed = {s: rows["MEST1.7x+EM", s] for s in (80, 90)}
    forward = {s: uniform(resnet50, s / 100) for s in (80, 90)}
    assert forward[90] == pytest.approx(0.1264, abs=5e-5)
    assert [1.7 * forward[s] for s in (80, 90)] == pytest.approx([0.380, 0.215], abs=5e-4)
    low, high = ((printed[80]["train_flops"] + a) / (printed[90]["train_flops"] - a) for a in (-5e-3, 5e-3))
    assert (low, high) == pytest.approx((2.22, 2.35), abs=5e-3)  # 2 at most, were it a multiple of F
    gradients = {80: (0.55, 0.57), 90: (0.18, 0.20)}  # the weight gradient's density at 1.7 times the steps
    for sparsity, expected in gradients.items():
        ends = [3 * (printed[sparsity]["train_flops"] + a) / 1.7 - 2 * forward[sparsity] for a in (-5e-3, 5e-3)]
        assert ends == pytest.approx(expected, abs=5e-3)
    for sparsity, ends in {80: (0.006, 0.019), 90: (0.0056, 0.0167)}.items():  # the share that is dense in Test F
        density = 1 - sparsity / 100
        shares = [(printed[sparsity]["test_flops"] + a - density) / (1 - density) for a in (-5e-3, 5e-3)]
        assert shares == pytest.approx(ends, abs=5e-4)


def transformers_name(name: str) -> str:
    """`layer2.0.conv3` -> the name in transformers' ResNet."""
    if name in ("conv1", "fc"):
        return {"conv1": "resnet.embedder.embedder.convolution", "fc": "classifier.1"}[name]
    stage, block, part = name.removeprefix("layer").split(".", 2)
    part = "shortcut" if part == "downsample.0" else f"layer.{int(part[-1]) - 1}"
    return f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.{part}.convolution"


def test_str_models_layer_by_layer(resnet50, shared_data):
    text = (shared_data / "paper" / "str_resnet50_layers.csv").read_text(encoding="utf-8-sig")
    lines = list(csv.reader(text.splitlines()))
    overall = next(line for line in lines if line[0] == "Overall")
    layers = [line for line in lines if line[0].startswith("Layer ")]
    found = {row.name: row for row in resnet50.layers}
    for line in layers:
        row = found.pop(transformers_name(line[0].partition(" - ")[2]))
        assert (row.weights, row.macs) == (int(line[1]), int(line[2])), line[0]
    assert not found
    pooling = 100_352  # the file's total includes its average pooling
    assert resnet50.macs + pooling == int(overall[2]) == 4_089_284_608

    rows = papers_rows(shared_data, "resnet50_imagenet")
    for sparsity, expected in ((79.55, 0.1875), (90.23, 0.0838), (95.03, 0.0388)):
        column = overall.index(str(sparsity))
        density = [1 - float(line[column]) / 100 for line in layers]
        fraction = layer_fraction([int(line[2]) for line in layers], density)
        assert fraction == pytest.approx(expected, abs=5e-5)
        assert fraction == pytest.approx(rows["STR", sparsity]["test_flops"], abs=1e-2)


# ---- Counting ----


class Hand(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=False)
        self.conv1d = nn.Conv1d(6, 2, 3)
        self.twice = nn.Linear(2, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, image):
        x = self.conv1d(self.conv(image).flatten(2))  # (batch, 6, 16) -> (batch, 2, 14)
        return self.twice(self.twice(x.mT))


def test_macs_by_hand():
    """One example of an 8x8 image, counted in a batch of two."""
    report = flops(Hand(), torch.randn(2, 4, 8, 8))
    # 4x4 outputs of 6 channels, 4/2 * 3 * 3 weights each; 14 of 2, 6 * 3 each; two calls of 14 positions, 2 * 2
    assert [row.macs for row in report.layers] == [16 * 6 * 18, 14 * 2 * 18, 2 * 14 * 4, 0]
    assert [row.kind for row in report.layers] == ["Conv2d", "Conv1d", "Linear", "Linear"]
    assert [row.weights for row in report.layers] == [108, 36, 4, 4]


def batch_of(architecture, count: int = 2) -> dict[str, torch.Tensor]:
    examples = architecture.examples(count)
    return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_equals_torchs_counter(architecture):
    model, batch = architecture.model().eval(), batch_of(architecture)
    report = flops(model, batch)
    if architecture.kind != "image" or architecture.name == "vit":
        model.set_attn_implementation("eager")  # torch knows no FLOPs of its fused CPU attention
    if "moe" in architecture.name:
        model.set_experts_implementation("eager")
    assert flops(model, batch) == report
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**batch)
    assert 2 * 2 * (report.macs + report.attention_macs + report.other_macs) == counter.get_total_flops()


def test_attention_and_tied_output_by_hand():
    (bert,) = (a for a in ARCHITECTURES if a.name == "bert-masked")
    report = flops(bert.model(), batch_of(bert))
    length, hidden, inner, vocabulary, layers = 6, 8, 12, 40, 2
    assert report.attention_macs == layers * 2 * length**2 * hidden
    assert report.macs == length * (layers * (4 * hidden**2 + 2 * hidden * inner) + hidden**2 + hidden * vocabulary)
    assert (
        report.layers[-1].name == "cls.predictions.decoder" and report.layers[-1].macs == length * hidden * vocabulary
    )


def test_weights_outside_layers_are_counted_apart():
    (mixtral,) = (a for a in ARCHITECTURES if a.name == "mixtral-moe")
    length, hidden, inner, layers, chosen, experts = 6, 8, 12, 2, 2, 3
    report = flops(mixtral.model(), batch_of(mixtral))
    assert report.other_macs == layers * length * (chosen * 3 * hidden * inner + hidden * experts)  # and the router
    assert f"weights outside the layers, {report.other_macs:,} MACs" in str(report)

    encoder = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=12, batch_first=True).eval()
    report = flops(encoder, torch.randn(2, 6, 8))  # whose fast path would call no layer
    assert report.macs == 6 * 2 * 8 * 12
    assert report.other_macs == 6 * 4 * 8**2
    assert report.attention_macs == 2 * 6**2 * 8


def test_density_is_that_of_the_effective_weight():
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4))
    model[0].weight.data = torch.tensor([[0.5, -0.5, 0.1, -0.1], [0.2, 0.6, -0.3, 0.0]])
    inputs = torch.randn(3, 4)
    dense = flops(model, inputs)
    assert (dense.macs, dense.layers[0].density) == (16, 7 / 8)
    threshold = math.log(0.25 / 0.75)  # T = sigmoid of it = .25
    sparsify(model, AutoSparseConfig(threshold_init=threshold, target_modules=["0"], first_last="none"))
    sparse = flops(model, inputs)
    assert sparse.layers[0].density == 0.5 and sparse.layers[1].density == 1.0
    assert (sparse.macs, sparse.sparse_macs, sparse.inference_fraction) == (16, 12, 0.75)
    assert sparse.layers[0].kind == "Linear"
    with folded(model):
        assert flops(model, inputs) == sparse
        assert model[0].folded is not None
    assert flops(finalize(model), inputs) == sparse


class Fails(nn.Linear):
    def forward(self, x):
        raise RuntimeError("no such input")


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_the_model_as_it_was(fails):
    """One half of the model is frozen in evaluation mode; normalisation and dropout would show a trace."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(16, 2))
    model.append(Fails(2, 2) if fails else nn.Linear(2, 2))
    model[1].eval()
    calls = []
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(2, 3, 4, 4)
    model[:5](images).sum().backward()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes, random_state = [m.training for m in model.modules()], torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="no such input"):
            flops(model, images)
    else:
        flops(model, images)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is gradient is None) or torch.equal(parameter.grad, gradient)
    assert calls == [1, 1] and list(model[0]._forward_hooks) == [handle.id]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in list(model.modules())[2:])
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled_model():
    model, inputs = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.randn(3, 4)
    expected = flops(model, inputs)
    compiled = torch.compile(model, backend="eager")
    compiled(inputs)
    assert flops(compiled, inputs) == expected


# ---- The call and what it returns ----


class Named(nn.Linear):
    def forward(self, first, *, second=None):
        return super().forward(first if second is None else first + second)


def test_forms_of_inputs():
    model, x = nn.Sequential(Named(4, 2)), torch.randn(3, 4)
    assert flops(model, x) == flops(model, (x,))
    inputs = tf.BatchEncoding({"first": x, "second": x})
    assert flops(model[0], inputs).macs == flops(model[0], {"first": x, "second": x}).macs == 8


def test_inputs_that_cannot_be_counted():
    model = nn.Linear(4, 2)
    with pytest.raises(TypeError, match="example_inputs is a list: pass a tensor, a tuple of positional inputs"):
        flops(model, [torch.randn(3, 4)])
    for inputs in ({}, (3,), torch.tensor(1.0), torch.randn(0, 4)):
        with pytest.raises(ValueError, match="example_inputs has no batch dimension"):
            flops(model, inputs)
    with pytest.raises(ValueError, match=r"no nn\.Linear, nn\.Conv or Conv1D layer of ReLU ran"):
        flops(nn.ReLU(), torch.randn(3, 4))


def test_report_with_a_trajectory():
    model = nn.Sequential()
    model.add_module("first", nn.Linear(10, 10))
    model.add_module("second", nn.Linear(10, 30))
    report = flops(model, torch.randn(1, 10), run(MOMENTS))
    assert report.training_fraction == training_fraction(run(MOMENTS))
    values = json.loads(json.dumps(report.to_dict()))
    assert values.pop("layers")[1] == {"name": "second", "kind": "Linear", "macs": 300, "weights": 300, "density": 1.0}
    assert values == {
        "macs": 400,
        "sparse_macs": 400,
        "inference_fraction": 1.0,
        "training_fraction": report.training_fraction,
        "attention_macs": 0,
        "other_macs": 0,
    }
    text = str(report)
    for part in ("inference FLOPs 100.00% of dense, training FLOPs 56.25%", "second", "75.00%", "400", "0 MACs"):
        assert part in text
    assert "outside" not in text
    with pytest.raises(ValueError, match=r"sparse layers \['third'\]"):
        flops(model, torch.randn(1, 10), run(MOMENTS, sparse=["third"]))
