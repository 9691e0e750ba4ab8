"""FLOPs of the recipes that no training decides.

MobileNetV1: do the paper's Test F and sparsities (Table 3) say whether its depthwise convolutions are sparse?
../../examples/vision/README.md has the table that is computed here. The rivals with a budget: "ours" in
../../docs/paper_index.md.
"""

import json
import re

import pytest
import torch
from torch import nn

from examples.vision.image_model import build_model, depthwise_layers
from examples.vision.image_recipe import load_recipe
from hf_autosparse import FlopsReport, SparseConfig, flops, sparse_layers, sparsify
from hf_autosparse.methods import Progress
from hf_autosparse.reports.flops import layer_fraction, step_fraction
from tiny_vision import CONFIGS

DENSE = {"mobilenet_v1.conv_stem.convolution", "classifier"}
ROWS = [(75.1, 0.22), (86.36, 0.10), (87.72, 0.08)]  # sparsity in percent, Test F


@pytest.fixture(scope="module")
def counted() -> tuple[FlopsReport, set[str]]:
    """The recipe's model at ImageNet's size, and the names of its depthwise convolutions."""
    model = build_model(load_recipe(CONFIGS / "mobilenet_v1.yaml")["model"], [str(i) for i in range(1000)])
    return flops(model, torch.zeros(1, 3, 224, 224)), set(depthwise_layers(model))


def needed_density(report: FlopsReport, dense: set[str], test_f: float) -> float:
    """Share of the sparse layers' MACs that is left where the whole model's is `test_f`."""
    fixed = sum(row.macs for row in report.layers if row.name in dense)
    return (test_f * report.macs - fixed) / (report.macs - fixed)


def least_test_f(report: FlopsReport, dense: set[str], sparsity: float) -> float:
    """With the zeros placed so that the weights kept are those of the fewest MACs each."""
    sparse = sorted((r for r in report.layers if r.name not in dense), key=lambda row: row.macs / row.weights)
    kept = (1 - sparsity) * sum(row.weights for row in sparse)
    macs = sum(row.macs for row in report.layers if row.name in dense)
    for row in sparse:
        taken = min(kept, row.weights)
        macs, kept = macs + taken * row.macs / row.weights, kept - taken
    return macs / report.macs


def test_shares(counted):
    report, depthwise = counted
    assert report.macs == 568_740_352 and len(report.layers) == 28 and len(depthwise) == 13
    macs = {row.name: row.macs for row in report.layers}
    shares = [sum(macs[name] for name in group) / report.macs for group in (DENSE, depthwise)]
    assert shares == pytest.approx([0.0209, 0.0306], abs=5e-5)


@pytest.mark.parametrize(
    ("row", "sparse_depthwise", "dense_depthwise"),
    [(ROWS[0], (0.2034, 0.089), (0.1777, 0.119)), (ROWS[1], (0.0808, 0.058), (0.0512, 0.088))]
    + [(ROWS[2], (0.0604, 0.0545), (0.0301, 0.0846))],
)
def test_both_readings(counted, row, sparse_depthwise, dense_depthwise):
    report, depthwise = counted
    percent, test_f = row
    for dense, (density, least) in ((DENSE, sparse_depthwise), (DENSE | depthwise, dense_depthwise)):
        assert needed_density(report, dense, test_f) == pytest.approx(density, abs=5e-5)
        assert least_test_f(report, dense, percent / 100) == pytest.approx(least, abs=5e-4)
    # Sparse ones leave room below every row; dense ones do not below the last.
    assert least_test_f(report, DENSE, percent / 100) < test_f
    assert (least_test_f(report, DENSE | depthwise, percent / 100) < test_f) == (row != ROWS[2])


def test_a_sparse_classifier_would_leave_the_question_open(counted):
    """Its weights cost one MAC each: were it sparse, as in STR's code, every row could be reached in both readings."""
    report, depthwise = counted
    stem = DENSE - {"classifier"}
    assert least_test_f(report, stem | depthwise, 0.8772) == pytest.approx(0.0505, abs=5e-5)


def test_rows_are_the_papers(shared_data):
    tables = json.loads((shared_data / "paper" / "tables.json").read_text())
    rows = [dict(zip(tables["columns"], row, strict=True)) for row in tables["mobilenetv1_imagenet"]]
    assert [(row["sparsity"], row["test_flops"]) for row in rows if row["method"] == "AutoSparse"] == ROWS


RIVALS = sorted(
    path for path in (CONFIGS / "rivals").glob("*.yaml") if load_recipe(path)["sparse"].get("target_sparsity")
)
INDEX = CONFIGS.parents[2] / "docs" / "paper_index.md"


@pytest.fixture(scope="module")
def resnet50() -> list[int]:
    """MACs of its layers."""
    model = build_model(load_recipe(CONFIGS / "resnet50.yaml")["model"], [str(i) for i in range(1000)])
    return [row.macs for row in flops(model, torch.zeros(1, 3, 224, 224)).layers]


@pytest.mark.parametrize("path", RIVALS, ids=lambda path: path.stem)
def test_rival_with_a_budget_costs_what_the_index_says(resnet50, path):
    """One layer of 1,000 weights goes through the recipe's run, looked at every 100 of its steps; it stands for all
    layers, since they have the same sparsity."""
    recipe = load_recipe(path)
    edges = recipe["sparse"].get("first_last", "modules") == "modules"
    updates = recipe["sparse"]["method"] in ("gmp", "optg")  # the others change which weights are kept, not how many
    epochs, steps, every = recipe["training"]["num_train_epochs"], 100_000, 100
    model = sparsify(nn.Linear(100, 10, bias=False), SparseConfig.from_dict(recipe["sparse"] | {"first_last": "none"}))
    (layer,) = sparse_layers(model).values()

    def fraction(count) -> float:
        density = [float(count) / layer.weight.numel()] * len(resnet50)
        if edges:
            density[0] = density[-1] = 1.0
        return layer_fraction(resnet50, density)

    costs = []
    for step in range(0, steps, every):
        layer.sparsifier.begin_step(Progress(step / steps * epochs, epochs, step, steps))
        mask, gradient = layer.sparsifier.mask(layer.weight), layer.sparsifier.gradient_count(layer.weight)
        costs.append(step_fraction(fraction(mask.sum()), fraction(gradient)))
        if updates:
            layer.sparsifier.end_step(
                layer.weight, Progress((step + every) / steps * epochs, epochs, step + every, steps)
            )
    (row,) = (line for line in INDEX.read_text().splitlines() if f"`{path.name}`" in line)
    train, test = re.search(r"\| (\.\d{4})(?: x 1\.7)? \| (\.\d{4}) \|", row).groups()
    assert fraction(layer.sparsifier.mask(layer.weight).sum()) == pytest.approx(float(test), abs=5.1e-5)
    # A dense start weighs a little more in 1,000 looks than in all steps.
    assert sum(costs) / len(costs) == pytest.approx(float(train), abs=5e-4 if updates else 5.1e-5)
