"""The trajectory as a file, and how a run records it."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState

from hf_autosparse import (
    AutoSparseConfig,
    AutoSparseTrainer,
    SparseConfig,
    finalize,
    flops,
    layer_sparsity,
    sparse_layers,
    sparsify,
)
from hf_autosparse.reports.flops import training_fraction
from hf_autosparse.reports.trajectory import LayerCost, Moment, Trajectory
from hf_autosparse.serialization.files import MANIFEST, TRAJECTORY
from hf_autosparse.training.recorder import TrajectoryRecorder
from tiny import SPARSE, StopAt, tiny_pairs, tiny_trainer

# ---- The file ----


def trajectory() -> Trajectory:
    return Trajectory(
        max_steps=10,
        sparse=["a", "b"],
        layers={"a": LayerCost(40, 4), "b": LayerCost(60, 6), "head": LayerCost(100, 10)},
        moments=[
            Moment(0, 0.0, 0.5, (0.25, 0.5), (0.0, 0.0), (0.1, 0.2)),
            Moment(5, 2.5, None, (0.3, 1 / 3), (0.3, 1 / 3), None),
        ],
        steps_done=7,
    )


def test_round_trip(tmp_path):
    trajectory().save(tmp_path / "new")
    assert Trajectory.load(tmp_path / "new") == trajectory()
    assert [path.name for path in (tmp_path / "new").iterdir()] == [TRAJECTORY]
    Trajectory(3, []).save(tmp_path / "new")
    assert Trajectory.load(tmp_path / "new") == Trajectory(3, [])


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no {TRAJECTORY} in .*: an AutoSparse trainer writes it"):
        Trajectory.load(tmp_path)


def damaged(path: Path, key: str, value) -> None:
    """Set an entry of a JSON file, or delete it (None). The key's parts are names and positions."""
    values = target = json.loads(path.read_text())
    *parents, last = (int(part) if part.isdigit() else part for part in key.split("."))
    for part in parents:
        target = target[part]
    if value is None:
        del target[last]
    else:
        target[last] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 2, "has format_version 2, this release reads 1"),
        ("max_steps", None, "is damaged: KeyError: 'max_steps'"),
        ("max_steps", float("inf"), "is damaged: OverflowError"),
        ("sparse", 3, "is damaged: TypeError"),
        ("layers", [], "is damaged: AttributeError"),
        ("layers.a", {"macs": 1}, "is damaged: KeyError: 'weights'"),
        ("layers.a.macs", "many", "is damaged: ValueError: invalid literal"),
        ("steps_done", "all", "is damaged: ValueError"),
        ("moments.0", {}, "is damaged: KeyError: 'step'"),
        ("moments.0.step", 5, r"steps do not increase: \[5, 5\]"),
        ("moments.1.sparsity", [0.5], "sparsity has 1 entries at step 5, expected 2"),
        ("moments.1.sparsity", [0.5, 1.5], r"sparsity at step 5 is not in \[0, 1\]"),
        ("moments.0.backward_sparsity", [float("nan"), 0], r"backward_sparsity at step 0 is not in \[0, 1\]"),
        ("moments.0.threshold", 0.1, "is damaged: TypeError"),
    ],
)
def test_damaged_file(tmp_path, key, value, message):
    trajectory().save(tmp_path)
    damaged(tmp_path / TRAJECTORY, key, value)
    with pytest.raises(ValueError, match=message):
        Trajectory.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 1, ', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "holds a list, expected a JSON object"),
    ],
)
def test_file_that_is_no_object(tmp_path, text, message):
    (tmp_path / TRAJECTORY).write_text(text)
    with pytest.raises(ValueError, match=message):
        Trajectory.load(tmp_path)


# ---- Recording ----


def drive(model: nn.Module, max_steps: int, steps_per_epoch: int, alpha=lambda step: 0.5) -> TrajectoryRecorder:
    """What a Trainer calls, without one; `alpha` gives each step's."""
    recorder, control = TrajectoryRecorder(), TrainerControl()
    state = TrainerState(max_steps=max_steps, num_train_epochs=-(-max_steps // steps_per_epoch))
    recorder.on_train_begin(None, state, control, model=model)
    for step in range(max_steps):
        for layer in sparse_layers(model).values():
            layer.sparsifier.alpha = alpha(step)
        recorder.on_step_begin(None, state, control)
        state.global_step, state.epoch = step + 1, (step + 1) / steps_per_epoch
        recorder.on_step_end(None, state, control)
    return recorder


def two_layers(device: str = "cpu", **fields) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5, device=device), nn.Linear(5, 3, device=device))
    return sparsify(model, AutoSparseConfig(first_last="none", **({"threshold_init": -2.0} | fields)))


def test_moments_lie_at_the_interval_at_epochs_and_where_alpha_reaches_zero():
    steps = [m.step for m in drive(two_layers(), 1000, 400, lambda step: float(step < 617)).trajectory.moments]
    assert steps == sorted({*range(0, 1001, 5), 400, 800, 617})
    many_epochs = drive(two_layers(), 1001, 2, lambda step: float(step >= 3)).trajectory
    assert [m.step for m in many_epochs.moments] == sorted({*range(0, 1001, 6), 1001, 3})
    assert many_epochs.steps_done == 1001


def test_no_number_is_fetched_before_a_log():
    """Tensors on the meta device have no values: whoever asks for one fails."""
    recorder = drive(two_layers("meta", backward_sparsity=0.5), 20, 10)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        recorder.on_log(None, TrainerState(), TrainerControl())


def weights_0_to_9(**fields) -> nn.Module:
    """Ten weights, 0 to .9, of which T = .45 prunes five."""
    model = nn.Sequential(nn.Linear(10, 1))
    model[0].weight.data = torch.arange(10.0).div(10).reshape(1, 10)
    if fields.get("method") != "fixed_mask":
        fields = {"method": "autosparse", "threshold_init": {"sparsity": 0.5}} | fields
    return sparsify(model, SparseConfig.from_dict({"first_last": "none"} | fields))


@pytest.mark.parametrize(
    ("fields", "alpha", "sparsity", "backward"),
    [
        ({}, 0.5, 0.5, 0.0),
        ({}, 0.0, 0.5, 0.5),
        ({"backward_sparsity": 0.2}, 0.5, 0.5, 0.2),
        ({"backward_sparsity": 0.8}, 0.5, 0.5, 0.5),  # B includes the active set
        ({"backward_sparsity": 0.2}, 0.0, 0.5, 0.5),
        ({"backward_sparsity": 0.2, "threshold_granularity": "channel"}, 0.5, 0.5, 0.2),
        ({"method": "fixed_mask"}, None, 0.1, 0.1),
    ],
)
def test_sparsity_of_the_weight_gradient(fields, alpha, sparsity, backward):
    model = weights_0_to_9(**fields)
    (moment, _) = drive(model, 1, 1, lambda step: alpha).trajectory.moments
    assert moment.alpha == alpha
    assert moment.sparsity == pytest.approx((sparsity,))
    assert moment.backward_sparsity == pytest.approx((backward,))
    assert moment.threshold == (None if alpha is None else pytest.approx((0.45,)))
    model(torch.ones(1, 10)).sum().backward()
    zeros = (model[0].weight.grad == 0).double().mean().item()
    assert zeros == pytest.approx(backward)  # the gradient that autograd computes


# ---- In the trainer ----


def test_a_run_is_recorded(tmp_path):
    config = AutoSparseConfig(**(SPARSE | {"alpha_zero_epoch": 2}))
    trainer = tiny_trainer(tmp_path, config=config)
    assert trainer.trajectory is None
    first = layer_sparsity(trainer.model)
    trainer.train()
    found = trainer.trajectory
    assert (found.max_steps, found.steps_done, found.sparse) == (30, 30, list(sparse_layers(trainer.model)))
    assert [m.step for m in found.moments] == list(range(31))
    assert [m.alpha for m in found.moments] == pytest.approx([0.5] * 10 + [0.5 * 2 / 3] * 10 + [0.0] * 11)
    assert found.moments[15].epoch == pytest.approx(1.5)
    assert found.moments[0].sparsity == pytest.approx(tuple(first.values()))
    last = found.moments[-1]
    assert last.sparsity == pytest.approx(tuple(layer_sparsity(trainer.model).values()))
    assert {m.backward_sparsity == m.sparsity for m in found.moments[20:]} == {True}
    assert all(set(m.backward_sparsity) == {0.0} for m in found.moments[:20])
    thresholds = [layer.sparsifier.threshold.sigmoid().item() for layer in sparse_layers(trainer.model).values()]
    assert last.threshold == pytest.approx(tuple(thresholds))

    pairs = tiny_pairs(1)
    batch = {key: torch.stack([pair[key] for pair in pairs]) for key in pairs[0]}  # every pair has the same lengths
    report = flops(trainer.model, batch, found)
    assert {row.name: LayerCost(row.macs, row.weights) for row in report.layers} == found.layers
    assert report.training_fraction == training_fraction(found)
    assert report.inference_fraction < report.training_fraction < 1

    trainer.save_model(str(tmp_path / "final"))
    assert Trajectory.load(tmp_path / "final") == found
    finalize(trainer.model)
    assert trainer.trajectory == found
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in trainer.model.modules())


def test_costs_are_those_of_one_forward_under_activation_checkpointing(tmp_path):
    """The backward pass runs the layers again there, and eight small batches are one step."""
    plain = tiny_trainer(tmp_path, max_steps=1)
    other = tiny_trainer(tmp_path, max_steps=1, activation_checkpointing=True, gradient_accumulation_steps=8)
    for trainer in (plain, other):
        trainer.train()
    assert plain.trajectory.layers == other.trajectory.layers


def test_costs_stay_empty_where_the_forward_is_not_the_trainers(tmp_path):
    class Own(AutoSparseTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = model(**self._prepare_inputs(inputs)).loss
            self.accelerator.backward(loss)
            return loss.detach()

    trainer = tiny_trainer(tmp_path, trainer_class=Own, max_steps=2)
    trainer.train()
    assert trainer.trajectory.layers == {} and len(trainer.trajectory.moments) == 3
    with pytest.raises(ValueError, match="no MACs are known"):
        training_fraction(trainer.trajectory)


@pytest.mark.parametrize("step", [7, 10])
def test_resumed_run_has_the_trajectory_of_the_uninterrupted_one(tmp_path, step):
    settings = {"save_strategy": "steps", "save_steps": step, "config": AutoSparseConfig(**SPARSE, alpha_epochs=2)}
    whole = tiny_trainer(tmp_path / "whole", **settings)
    whole.train()
    killed = tiny_trainer(tmp_path / "killed", callbacks=[StopAt(step + 1)], **settings)
    killed.train()
    assert killed.trajectory.steps_done == step + 1
    checkpoint = tmp_path / "killed" / f"checkpoint-{step}"
    saved = Trajectory.load(checkpoint)
    assert saved.steps_done == step and saved.moments == whole.trajectory.moments[:step]
    assert TRAJECTORY in json.loads((checkpoint / MANIFEST).read_text())["files"]
    resumed = tiny_trainer(tmp_path / "killed", **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.trajectory == whole.trajectory
    assert training_fraction(saved) == pytest.approx(
        training_fraction(Trajectory(step, saved.sparse, saved.layers, whole.trajectory.moments[:step]))
    )


def test_training_that_goes_on_for_longer(tmp_path):
    """The moment that closed the shorter run is taken again, with the alpha of the step that follows."""
    config = AutoSparseConfig(**SPARSE, alpha_update="step")
    tiny_trainer(tmp_path, config=config, max_steps=5, save_strategy="steps", save_steps=5).train()
    longer = tiny_trainer(tmp_path, config=config, max_steps=8)
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert [m.step for m in longer.trajectory.moments] == list(range(9))
    assert longer.trajectory.max_steps == longer.trajectory.steps_done == 8
    assert longer.trajectory.moments[5].alpha == pytest.approx(0.5 * (1 - 5 / 8))


def test_checkpoint_without_a_trajectory(tmp_path, caplog):
    tiny_trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / TRAJECTORY).unlink()
    damaged(checkpoint / MANIFEST, "files", {})
    resumed = tiny_trainer(tmp_path, max_steps=4)
    with caplog.at_level(logging.WARNING, "hf_autosparse"):
        resumed.train(resume_from_checkpoint=str(checkpoint))
    assert "this one begins at step 2 and gives no training FLOPs" in caplog.text
    assert [m.step for m in resumed.trajectory.moments] == [2, 3, 4]
    with pytest.raises(ValueError, match="does not begin at step 0"):
        training_fraction(resumed.trajectory)


def test_recording_changes_nothing_in_training(tmp_path):
    recorded = tiny_trainer(tmp_path, max_steps=5)
    recorded.train()
    unrecorded = tiny_trainer(tmp_path, max_steps=5)
    unrecorded.remove_callback(TrajectoryRecorder)
    unrecorded.train()
    assert unrecorded.trajectory is None
    for a, b in zip(recorded.model.parameters(), unrecorded.model.parameters(), strict=True):
        assert torch.equal(a, b)
