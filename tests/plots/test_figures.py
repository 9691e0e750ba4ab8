import json
import logging
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
from matplotlib.text import Text

from examples import figures
from hf_autosparse import AutoSparseSeq2SeqTrainer
from hf_autosparse.plots.figures import (
    inference_flops_figure,
    layers_figure,
    plot_inference_flops,
    plot_layers,
    plot_training,
    training_figure,
)
from hf_autosparse.plots.lanes import BAR
from hf_autosparse.plots.style import count, new_figure, percent, save
from hf_autosparse.reports.layer_names import group_blocks, short_names
from hf_autosparse.reports.sparsity import LayerRow, SparsityReport
from hf_autosparse.reports.trajectory import LayerCost, Moment, Trajectory
from hf_autosparse.training.checkpoint_parts import PartsCallback, Stage
from tiny import StopAt, tiny_trainer


def trajectory(sparsities, *, alphas=(0.5, 0.25, 0.0), costs=True, names=("small", "large")):
    moments = [
        Moment(10 * i, float(i), alphas[i] if alphas else None, tuple(sparsity), (0.0,) * len(names), None)
        for i, sparsity in enumerate(sparsities)
    ]
    layers = {name: LayerCost(macs=1000 * (i + 1), weights=100 + 200 * i) for i, name in enumerate(names)}
    return Trajectory(20, list(names), layers if costs else {}, moments)


def rows(names, sparsity=0.5):
    return [LayerRow(name, (8, 4), sparsity, None) for name in names]


def costs(names, density=0.5):
    return [SimpleNamespace(name=name, macs=1000 * (1 + i % 7), density=density) for i, name in enumerate(names)]


def bert(blocks):
    inside = "attention.self.query attention.self.key attention.self.value attention.output.dense intermediate.dense"
    names = [f"bert.encoder.layer.{i}.{name}" for i in range(blocks) for name in [*inside.split(), "output.dense"]]
    return [*names, "bert.pooler.dense"]


def translator(blocks):
    projections = [f"{name}_proj" for name in ("k", "v", "q", "out")]
    names = []
    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        inside = [f"{attention}.{name}" for attention in attentions for name in projections] + ["fc1", "fc2"]
        names += [f"model.{side}.layers.{i}.{name}" for i in range(blocks) for name in inside]
    return names


def resnet50():
    names = ["resnet.embedder.embedder.convolution"]
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            inside = ["shortcut", *(f"layer.{i}" for i in range(3))][block > 0 :]
            names += [f"resnet.encoder.stages.{stage}.layers.{block}.{name}.convolution" for name in inside]
    return names


def llama(blocks):
    inside = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    return [f"model.layers.{i}.{name}" for i in range(blocks) for name in inside]


def irregular(count):
    return [f"net.part_of_a_model_{i:c}.with_long_names" for i in range(0x100, 0x100 + count)]


def tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def legend_labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# ---- Over training ----


def test_training_shows_the_weighted_sparsity_its_spread_and_alpha():
    figure = training_figure(trajectory([(0.2, 0.6), (0.4, 0.8), (0.0, 1.0)]))
    sparsity, alpha = figure.axes
    (line,) = sparsity.lines
    assert line.get_xdata().tolist() == [0, 1, 2]
    assert line.get_ydata() == pytest.approx([0.5, 0.7, 0.75])  # 100 and 300 weights
    middle, everything = (band.get_datalim(sparsity.transData) for band in sparsity.collections)
    assert (everything.y0, everything.y1) == pytest.approx((0.0, 1.0))
    assert (middle.y0, middle.y1) == pytest.approx((0.25, 0.75))  # quartiles of (0, 1), linear
    (line,) = alpha.lines
    assert list(line.get_ydata()) == [0.5, 0.25, 0.0] and line.get_drawstyle() == "steps-post"
    assert alpha.get_ylim()[0] == 0
    assert legend_labels(figure)[0] == "all sparse layers: 75.0 % at epoch 2"


def test_training_without_sizes_says_that_it_is_a_mean():
    run = trajectory([(0.2, 0.6)], costs=False)
    figure = training_figure(run)
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([0.4])
    assert figure.axes[0].lines[0].get_marker() == "o"  # a single moment is a point
    assert legend_labels(figure)[0] == "mean over the sparse layers: 40.0 % at epoch 0"
    assert legend_labels(training_figure({"run": run}))[0] == "run, mean over the sparse layers: 40.0 % at epoch 0"


def test_training_of_a_method_without_alpha_has_no_alpha():
    figure = training_figure(trajectory([(0.2, 0.6), (0.4, 0.8)], alphas=None))
    assert len(figure.axes) == 1


@pytest.mark.parametrize("run", [trajectory([]), Trajectory(1, [], {}, [Moment(0, 0.0, None, (), (), None)])])
def test_training_that_has_not_begun(run, tmp_path):
    figure = training_figure(run)
    assert "nothing recorded yet" in texts(figure)
    assert plot_training(run, tmp_path / "empty.png").stat().st_size > 0


def test_training_of_several_runs():
    run, other = trajectory([(0.2, 0.6), (0.4, 0.8)]), trajectory([(0.1, 0.1)], alphas=None)
    figure = training_figure({"one": run, "two": other, "_three": trajectory([])})
    sparsity, alpha = figure.axes
    assert [len(line.get_xdata()) for line in sparsity.lines] == [2, 1] and len(alpha.lines) == 1
    assert len({(line.get_color(), str(line.get_linestyle())) for line in sparsity.lines}) == 2
    assert legend_labels(figure) == [
        "one: 70.0 % at epoch 1",
        "two: 10.0 % at epoch 0",
        "_three: nothing recorded yet",
    ]
    assert legend_labels(training_figure({"one": run, "two": other}))[-1] == "middle half of the layers"


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [((0.61, 0.62), 0.5, 0.7), ((0.58, 0.59), 0.5, 0.7), ((0.0, 0.0), 0.0, 0.2), ((1.0, 1.0), 0.8, 1.0)],
)
def test_a_flat_line_looks_flat(values, low, high):
    limits = training_figure(trajectory([values], costs=False)).axes[0].get_ylim()
    assert limits == pytest.approx((low - 0.01, high + 0.01))


@pytest.mark.parametrize("number", [0, 7])
@pytest.mark.parametrize(("figure", "argument"), [(training_figure, "runs"), (inference_flops_figure, "models")])
def test_as_many_as_can_be_told_apart(figure, argument, number):
    runs = {str(i): trajectory([(0.2, 0.6)]) for i in range(number)}
    with pytest.raises(ValueError, match=f"{argument} has {number} entries: 1 to 6 can be told apart"):
        figure(runs)


# ---- By layer ----


def test_few_layers_have_a_bar_each():
    report = SparsityReport(
        [
            LayerRow("model.layers.0.fc1", (4, 4), 0.0, None),
            LayerRow("model.layers.0.fc2", (4, 8), 1.0, None),
            LayerRow("model.pooler", (4, 4), 0.625, None),
        ],
        dense={},
    )
    figure = layers_figure(report)
    (axes,) = figure.axes
    tracks, bars = axes.containers
    assert [bar.get_width() for bar in tracks] == [1, 1, 1]
    assert [bar.get_width() for bar in bars] == [0, 1, 0.625]
    assert tick_labels(axes.yaxis) == ["layers.0.fc1", "layers.0.fc2", "pooler"]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in bars]
    assert middles == pytest.approx(axes.get_yticks()) and axes.yaxis_inverted()
    assert [text for text in texts(axes) if text.endswith("%") and "." in text] == [
        "62.5 %",
        "25.0 %",
        "50.0 %",
        "25.0 %",
    ]
    assert "65.6 % of 64 weights in 3 sparse layers" in texts(figure)  # (0 + 32 + 10) / 64


def test_many_layers_are_grouped_by_kind():
    layers = rows(bert(12))
    layers[0] = LayerRow(layers[0].name, (8, 4), 1.0, None)
    figure = layers_figure(layers, title="a $model$ and its $name")
    (axes,) = figure.axes
    tracks, bars = axes.containers
    assert len(bars) == 73
    assert [-bar.get_height() / (BAR * 0.42) for bar in bars] == pytest.approx([1.0] + [0.5] * 72)
    assert tick_labels(axes.yaxis)[0] == "encoder.layer.*.attention.self.query"
    assert tick_labels(axes.yaxis)[-1] == "pooler.dense" and len(axes.get_yticks()) == 7
    assert tick_labels(axes.xaxis) == [str(i) for i in range(12)]
    assert percent(6.5 / 12) in texts(axes)  # of the queries
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars][-1] == 0  # the pooler is in no block
    assert r"a \$model\$ and its \$name" in texts(figure)  # no formula


def test_blocks_in_stages():
    (axes,) = layers_figure(rows(resnet50())).axes
    assert tick_labels(axes.yaxis)[:3] == [
        "embedder.embedder",
        "encoder.stages.*.layers.*.shortcut",
        "encoder.stages.*.layers.*.layer.0",
    ]
    labels = [label.strip() for label in tick_labels(axes.xaxis)]
    assert labels == "0\n0,1,2,0\n1,1,2,3,0\n2,1,2,3,4,5,0\n3,1,2".split(",")


def test_unlike_layers_fill_several_columns():
    figure = layers_figure(rows(irregular(120)))
    assert [len(axes.get_yticks()) for axes in figure.axes] == [40, 40, 40]


def test_report_without_layers():
    with pytest.raises(ValueError, match="report has no sparse layer: there is nothing to draw"):
        layers_figure(SparsityReport([], {}))


# ---- Inference FLOPs ----


def test_flops_of_few_layers():
    run = trajectory([(0.0, 0.0), (0.5, 0.75)])
    run.layers["head"] = LayerCost(macs=500, weights=10)  # dense
    run.layers["unused"] = LayerCost(macs=0, weights=10)
    figure = inference_flops_figure({"run": run, "wide": [SimpleNamespace(**row) for row in _flops_rows()]})
    (axes,) = figure.axes
    dense, first, second = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert dense == [1000, 2000, 500]
    assert first == [500, 500, 500] and second == [1000, 1000, 0]
    assert legend_labels(figure) == [
        "dense: 3.5 k MACs",
        "run: 1.5 k MACs, 42.9 % of dense",
        "wide: 2 k MACs, 57.1 % of dense",
    ]


def _flops_rows():
    return [
        {"name": "small", "macs": 1000, "density": 1.0},
        {"name": "large", "macs": 2000, "density": 0.5},
        {"name": "head", "macs": 500, "density": 0.0},
    ]


def test_flops_of_many_layers_are_to_scale():
    names = translator(6)
    report = SimpleNamespace(
        layers=[SimpleNamespace(name=n, macs=400 if "fc" in n else 100, density=0.25) for n in names]
    )
    figure = inference_flops_figure({"a": report})
    (axes,) = figure.axes
    tracks = {round(bar.get_height(), 9) for bars in axes.containers for bar in bars}
    assert tracks == {round(-BAR * 0.75, 9), round(-BAR * 0.75 / 4, 9)}
    values, edges, _ = axes.patches[-1].get_data()  # the stairs of decoder.layers.*.fc2
    bottom = axes.containers[-1][0].get_y()
    assert bottom - values == pytest.approx([BAR * 0.75 / 4] * 6) and edges.tolist() == [i - 0.5 for i in range(7)]
    assert "16.7 %" not in texts(axes) and "14.3 %" in texts(axes)  # 6 * 400 of 16800


def test_flops_of_small_layers_beside_a_large_one_stay_readable():
    rows = [SimpleNamespace(name=n, macs=100, density=0.5) for n in translator(6)]
    figure = inference_flops_figure(
        {"a": SimpleNamespace(layers=[*rows, SimpleNamespace(name="head", macs=2000, density=1.0)])}
    )
    (axes,) = figure.axes
    tracks = {round(bar.get_height(), 9) for bars in axes.containers for bar in bars}
    assert tracks == {round(-BAR * 0.12, 9), round(-BAR * 0.12 * 20, 9)}


def test_flops_of_models_that_cannot_be_compared():
    a = costs(["x", "y"])
    with pytest.raises(ValueError, match=r"models\['b'\] has no MACs to draw: pass flops\(model, inputs\)"):
        inference_flops_figure({"a": a, "b": trajectory([(0.1, 0.2)], costs=False)})
    with pytest.raises(ValueError, match=r"models\['b'\] has no MACs"):
        inference_flops_figure({"b": trajectory([])})
    with pytest.raises(ValueError, match="models 'a' and 'b' have different layers, such as z: draw them apart"):
        inference_flops_figure({"a": a, "b": costs(["x", "y", "z"])})
    with pytest.raises(
        ValueError, match="layer y has 2,000 MACs in 'a' and 1,000 in 'b': count them with inputs of the"
    ):
        inference_flops_figure({"a": a, "b": costs(["y", "x"])})


# ---- To look at ----

MODELS = {
    "small": bert(2),
    "one": ["classifier"],
    "bert": bert(12),
    "translator": translator(6),
    "resnet50": resnet50(),
    "llama": llama(28),
    "irregular": irregular(60),
    "long": [f"model.{'a_very_long_part.' * 5}{i:c}.projection" for i in range(0x61, 0x66)],
}


@pytest.mark.parametrize("names", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("kind", ["layers", "flops", "training"])
def test_no_label_is_cut_off_or_overlaps_another(kind, names):
    if kind == "layers":
        figure = layers_figure(rows(names, sparsity=0.99999), title="A title " * 20)
    elif kind == "flops":
        figure = inference_flops_figure({"a": costs(names), "a label of a run " * 10: costs(names, density=0.1)})
    else:
        figure = training_figure(trajectory([[0.5] * len(names), [0.7] * len(names)], names=names))
    figure.draw_without_rendering()
    visible = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = {text: text.get_window_extent() for text in visible if _is_drawn(text)}
    assert len(boxes) > len(figure.axes)
    cut_off = [text.get_text() for text, box in boxes.items() if not _inside(box, figure.bbox)]
    assert not cut_off
    overlapping = [
        (a.get_text(), b.get_text()) for a, b in combinations(boxes, 2) if boxes[a].padded(-0.5).overlaps(boxes[b])
    ]
    assert not overlapping
    assert all(text.get_fontsize() >= 8 for text in boxes)
    bars = [bar.get_window_extent().width for axes in figure.axes for bars in axes.containers[:1] for bar in bars]
    assert kind != "layers" or min(bars) > 8  # pixels: names leave room for data


def _is_drawn(text) -> bool:
    """Tick labels outside the view limits exist, but are not drawn."""
    for axes in text.figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for tick, where in zip(axis.get_major_ticks(), axis.get_majorticklocs(), strict=False):
                if text in (tick.label1, tick.label2):
                    low, high = sorted(axis.get_view_interval())
                    return low <= where <= high
    return True


def _inside(box, frame) -> bool:
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= frame.x1 + 0.5 and box.y1 <= frame.y1 + 0.5


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0, "0 %"), (1, "100 %"), (0.6255, "62.5 %"), (1e-9, "< 0.1 %"), (0.99999, "> 99.9 %"), (0.0005, "0.1 %")],
)
def test_percent(fraction, text):
    assert percent(fraction) == text


def test_count():
    assert [count(n) for n in (0, 512, 65536, 4_089_284_608)] == ["0", "512", "65.5 k", "4.09 G"]


# ---- Names ----


def test_numbers_of_blocks_are_told_from_others():
    def kinds(names):
        return {kind: list(blocks) for kind, blocks in group_blocks(names).items()}

    assert kinds(["a.0.fc1", "a.0.fc2", "a.1.fc1", "a.1.fc2", "head"]) == {
        "a.*.fc1": [(0,), (1,)],
        "a.*.fc2": [(0,), (1,)],
        "head": [()],
    }
    assert kinds(["layer.0.conv", "layer.1.conv"]) == {"layer.0.conv": [()], "layer.1.conv": [()]}  # one layer each
    t5 = [
        f"block.{i}.{name}" for i in (0, 1) for name in ("layer.0.attention.q", "layer.0.attention.k", "layer.1.wi_0")
    ]
    assert list(kinds(t5)) == ["block.*.layer.0.attention.q", "block.*.layer.0.attention.k", "block.*.layer.1.wi_0"]
    assert list(kinds(resnet50())) == [
        "resnet.embedder.embedder.convolution",
        "resnet.encoder.stages.*.layers.*.shortcut.convolution",
        *(f"resnet.encoder.stages.*.layers.*.layer.{i}.convolution" for i in range(3)),
    ]
    names = translator(2)
    assert sorted(name for blocks in group_blocks(names).values() for name in blocks.values()) == sorted(names)


def test_short_names():
    assert short_names(["m.a.x.conv", "m.b.conv"], 48) == ["a.x", "b"]
    assert short_names(["m.a", "m.a.b"], 48) == ["a", "a.b"]
    assert short_names(["m.a.b"], 48) == ["m.a.b"]
    assert short_names([""], 48) == ["(the model itself)"]
    assert short_names(["0123456789abcdef", "x"], 10) == ["01…9abcdef", "x"]
    long = ["same_start." + "z" * 10 + middle + "z" * 30 for middle in "12"]
    assert short_names(long, 20) == ["z" * 10 + middle + "z" * 30 for middle in "12"]  # alike if shortened


# ---- Files ----

SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", [*SIGNATURES, ".PNG"])
def test_the_suffix_says_the_format_and_nothing_global_changes(suffix, tmp_path):
    before = dict(matplotlib.rcParams)
    path = plot_layers(rows(["a", "b"]), str(tmp_path / "new" / f"layers{suffix}"))
    assert path == tmp_path / "new" / f"layers{suffix}"
    assert path.read_bytes().startswith(SIGNATURES[suffix.lower()])
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("draw", [plot_layers, plot_training, plot_inference_flops])
def test_other_suffixes_are_refused_before_anything_is_drawn(draw, tmp_path):
    for name in ("plot.jpg", "plot"):
        with pytest.raises(ValueError, match=re.escape(f"{name}': the name of a plot ends in .png, .svg, .pdf")):
            draw(None, tmp_path / name)


def test_a_failure_leaves_the_old_picture(tmp_path):
    path = plot_layers(rows(["a"]), tmp_path / "layers.png")
    old = path.read_bytes()
    broken = new_figure(2)
    broken.text(0, 0, r"$\nonsense$")
    with pytest.raises(ValueError, match="nonsense"):
        save(broken, path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["layers.png"]


def test_without_matplotlib_the_extra_is_named_and_pyplot_is_never_needed():
    program = """
import sys
class NotInstalled:
    def find_spec(self, name, *rest):
        if name == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name=name)
missing = NotInstalled()
sys.meta_path.insert(0, missing)
try:
    import hf_autosparse.plots.figures
except ImportError as error:
    assert str(error) == 'plots need matplotlib, which is not installed: pip install "hf-autosparse[plots]"', error
    assert error.name == "matplotlib"
else:
    raise AssertionError("imported")
sys.meta_path.remove(missing)
from hf_autosparse.plots.figures import layers_figure
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# ---- Beside the model ----


def pictures(directory):
    return sorted(path.name for path in Path(directory, "plots").glob("*"))


class WithTrajectory(AutoSparseSeq2SeqTrainer):
    trajectory = trajectory([(0.2, 0.6), (0.4, 0.8)])


def test_pictures_come_with_the_saved_model(tmp_path):
    trainer = tiny_trainer(tmp_path, trainer_class=WithTrajectory, max_steps=1)
    trainer.train()
    assert not list(tmp_path.rglob("plots"))  # the model is not on disk yet
    trainer.save_model(str(tmp_path / "final"))
    assert pictures(tmp_path / "final") == ["layers.png", "training.png"]
    trainer.draws_plots = False
    trainer.save_model()
    assert (tmp_path / "model.safetensors").is_file() and pictures(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        ({"save_strategy": "epoch"}, True),
        ({"save_strategy": "steps", "save_steps": 2}, False),  # stopped at 3: the last checkpoint is another model
        ({"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}, True),
    ],
)
def test_pictures_at_the_end_of_training_if_a_checkpoint_holds_the_model(tmp_path, changes, drawn):
    best = {"eval_strategy": "steps", "eval_steps": 2} if "load_best_model_at_end" in changes else {}
    tiny_trainer(tmp_path, trainer_class=WithTrajectory, callbacks=[StopAt(3)], max_steps=6, **changes, **best).train()
    assert pictures(tmp_path) == (["layers.png", "training.png"] if drawn else [])
    assert list(tmp_path.glob("checkpoint-*")) and not list(tmp_path.glob("checkpoint-*/plots"))


def test_what_keeps_the_pictures_from_being_drawn_loses_no_model(tmp_path, caplog, monkeypatch):
    trainer = tiny_trainer(tmp_path)
    (tmp_path / "plots").write_text("no folder")
    trainer.save_model()
    assert "the model is saved, but its plots are not" in caplog.text
    assert (tmp_path / "model.safetensors").is_file()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.INFO, logger="hf_autosparse.training.checkpoint_parts"):
        trainer.save_model(str(tmp_path / "other"))
    assert 'no plots: they need matplotlib, pip install "hf-autosparse[plots]"' in caplog.text
    assert (tmp_path / "other" / "model.safetensors").is_file() and not (tmp_path / "other" / "plots").exists()


@pytest.mark.parametrize(("should_save", "is_search"), [(False, False), (True, True)])
def test_other_processes_and_trials_draw_nothing(tmp_path, should_save, is_search):
    callback = PartsCallback([SimpleNamespace(stage=Stage.MODEL_PUBLISHED)])  # drawing would fail
    args = SimpleNamespace(should_save=should_save, load_best_model_at_end=False, output_dir=str(tmp_path))
    state = SimpleNamespace(global_step=3, best_model_checkpoint=None, is_hyper_param_search=is_search)
    callback.on_save(args, state, None)
    callback.on_train_end(args, state, None)
    assert os.listdir(tmp_path) == []


# ---- examples/figures.py ----


def test_the_papers_figures_from_runs(tmp_path, capsys):
    run = trajectory([(0.2, 0.6), (0.4, 0.8)])
    run.save(tmp_path / "a" / "final")
    run.layers = {name: LayerCost(cost.macs + 7, cost.weights) for name, cost in run.layers.items()}  # longer sentences
    run.save(tmp_path / "b" / "final")
    log = tmp_path / "logged"
    log.mkdir()
    entries = [{"step": 5, "epoch": 0.5, "alpha": 0.3, "sparsity": 0.25}, {"step": 5, "epoch": 0.5, "eval_loss": 1.0}]
    (log / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    runs = [tmp_path / "a" / "final", tmp_path / "b" / "final", log]
    assert list(figures.labelled(runs)) == [str(runs[0]), str(runs[1]), "logged"]
    assert figures.load(log).moments == [Moment(5, 0.5, 0.3, (0.25,), (0.0,), None)]
    written = figures.main([*map(str, runs), "--output", str(tmp_path / "out"), "--format", "svg"])
    assert [path.name for path in written] == ["figure_1b.svg", "figure_1a.svg"]
    assert all(path.read_bytes().startswith(SIGNATURES[".svg"]) for path in written)
    assert "logged is not in Figure 1a: what its layers cost was not recorded" in capsys.readouterr().out


def test_figures_of_what_is_no_run(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no autosparse_trajectory.json and no log.jsonl: give the directory of"
    ):
        figures.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no autosparse_trajectory.json in .*absent"):
        figures.load(tmp_path / "absent")
    (tmp_path / "log.jsonl").write_text('{"loss": 1.0}\n')
    with pytest.raises(ValueError, match="no line with a sparsity: it is no log of an AutoSparse run"):
        figures.load(tmp_path)
