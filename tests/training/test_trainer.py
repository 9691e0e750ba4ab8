import json
import logging
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    Seq2SeqTrainer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from hf_autosparse import (
    AutoSparseCallback,
    AutoSparseConfig,
    AutoSparseMixin,
    AutoSparseTrainer,
    SparseTraining,
    finalize,
    sparse_layers,
    sparsify,
    sparsity,
)
from hf_autosparse.layers.sparsify import sparsifier_parameters
from tiny import (
    SPARSE,
    VOCABULARY,
    StopAt,
    assert_same_state,
    history,
    tiny_arguments,
    tiny_pairs,
    tiny_trainer,
    tiny_translator,
)


def deployed(directory):
    return AutoModelForSeq2SeqLM.from_pretrained(directory)


def outputs(model):
    batch = {k: torch.stack([p[k] for p in tiny_pairs(4)]) for k in ("input_ids", "labels")}
    batch["labels"] = batch["labels"].clamp(min=4)
    with torch.no_grad():
        return model.eval()(**batch).logits


# ---- The API ----


def test_three_positional_arguments(tmp_path):
    config = AutoSparseConfig(**SPARSE)
    trainer = AutoSparseTrainer(tiny_translator(), tiny_arguments(tmp_path), config, train_dataset=tiny_pairs(8))
    assert trainer.train().global_step == 6
    assert trainer.sparse_config is config


def test_default_config_and_already_sparse_model(tmp_path):
    trainer = AutoSparseTrainer(tiny_translator(), tiny_arguments(tmp_path))
    assert trainer.sparse_config == AutoSparseConfig()
    model = sparsify(tiny_translator(), AutoSparseConfig(**SPARSE))
    assert AutoSparseTrainer(model, tiny_arguments(tmp_path)).sparse_config == AutoSparseConfig(**SPARSE)
    with pytest.raises(ValueError, match="differs from the one the model was sparsified with"):
        AutoSparseTrainer(model, tiny_arguments(tmp_path), AutoSparseConfig())


def test_model_given_by_name_is_refused(tmp_path):
    with pytest.raises(TypeError, match="model = 'gpt2': load it first"):
        AutoSparseTrainer("gpt2", tiny_arguments(tmp_path))


def test_mixin_serves_another_trainer(tmp_path):
    class Other(Trainer):
        def compute_loss(self, *args, **kwargs):
            self.called = True
            return super().compute_loss(*args, **kwargs)

    class Sparse(AutoSparseMixin, Other):
        pass

    trainer = tiny_trainer(tmp_path, trainer_class=Sparse, max_steps=2)
    trainer.train()
    assert trainer.called and sparse_layers(trainer.model)


def test_callback_serves_the_stock_trainer(tmp_path):
    model = sparsify(tiny_translator(), AutoSparseConfig(**SPARSE))
    trainer = Trainer(
        model, tiny_arguments(tmp_path), train_dataset=tiny_pairs(40), callbacks=[AutoSparseCallback(), StopAt(15)]
    )
    trainer.train()
    layer = next(iter(sparse_layers(model).values()))
    assert layer.sparsifier.alpha == pytest.approx(0.5 * 2 / 3)  # linear over 3 epochs, in the second


def test_callback_needs_a_sparse_model(tmp_path):
    trainer = Trainer(
        tiny_translator(), tiny_arguments(tmp_path), train_dataset=tiny_pairs(4), callbacks=[AutoSparseCallback()]
    )
    with pytest.raises(ValueError, match="has no sparse layer"):
        trainer.train()


# ---- Annealing and logs ----


class Alphas(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append(next(iter(sparse_layers(model).values())).sparsifier.alpha)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"alpha_update": "epoch"}, [0.5] * 10 + [0.5 * 2 / 3] * 10 + [0.5 / 3] * 10),
        ({"alpha_update": "step"}, [0.5 * (1 - i / 30) for i in range(30)]),
        ({"alpha_epochs": 2}, [0.5] * 10 + [0.25] * 10 + [0.0] * 10),
        ({"alpha_zero_epoch": 2}, [0.5] * 10 + [0.5 * 2 / 3] * 10 + [0.0] * 10),
    ],
)
def test_alpha_over_training(tmp_path, fields, expected):
    alphas = Alphas()
    tiny_trainer(tmp_path, config=AutoSparseConfig(**(SPARSE | fields)), callbacks=[alphas]).train()
    assert alphas.seen == pytest.approx(expected)


def test_every_log_carries_the_sparse_figures(tmp_path):
    trainer = tiny_trainer(tmp_path, config=AutoSparseConfig(**(SPARSE | {"threshold_init": -4.0})))
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 10
    for entry in entries:
        assert entry.keys() >= {"sparsity", "alpha", "mean_threshold", "layers_at_guard"}
    assert entries[-1]["sparsity"] == pytest.approx(sparsity(trainer.model))
    thresholds = [layer.sparsifier.threshold.sigmoid().item() for layer in sparse_layers(trainer.model).values()]
    assert entries[-1]["mean_threshold"] == pytest.approx(sum(thresholds) / len(thresholds))
    assert entries[0]["mean_threshold"] != entries[-1]["mean_threshold"]
    assert entries[-1]["alpha"] == pytest.approx(0.5 / 3)


class Events(TrainerCallback):
    """Notes what Trainer calls, and reads `logs["epoch"]` as users' callbacks do."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        assert logs["epoch"] == state.epoch
        self.seen.append(("log", tuple(key for key in logs if key not in NEW_KEYS)))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.seen.append(("evaluate", tuple(metrics)))

    def on_save(self, args, state, control, **kwargs):
        self.seen.append(("save",))


NEW_KEYS = {"sparsity", "alpha", "mean_threshold", "layers_at_guard"}


def test_callbacks_see_the_events_of_stock_trainer(tmp_path):
    settings = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    stock, ours = Events(), Events()
    Seq2SeqTrainer(
        tiny_translator(),
        tiny_arguments(tmp_path / "stock", **settings),
        train_dataset=tiny_pairs(40),
        eval_dataset=tiny_pairs(8, seed=1),
        callbacks=[stock],
    ).train()
    tiny_trainer(tmp_path / "ours", callbacks=[ours], **settings).train()
    assert ours.seen == stock.seen and len(stock.seen) > 6


def test_per_layer_figures_reach_the_trackers_alone(tmp_path, capsys):
    class Tracker(TensorBoardCallback):
        def __init__(self):
            self.logs = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.logs.append(dict(logs))

    tracker = Tracker()
    trainer = tiny_trainer(tmp_path, callbacks=[tracker, Events()])
    capsys.readouterr()
    trainer.evaluate()
    name = next(iter(sparse_layers(trainer.model)))
    assert tracker.logs[-1][f"layers/{name}/sparsity"] == pytest.approx(0.3, abs=0.01)
    assert f"layers/{name}/mean_threshold" in tracker.logs[-1] and tracker.logs[-1]["epoch"] == trainer.state.epoch
    assert "layers/" not in capsys.readouterr().out
    assert not any("layers/" in key for entry in trainer.state.log_history for key in entry)


def test_tensorboard_shows_the_sparse_figures(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    trainer = tiny_trainer(tmp_path, report_to="tensorboard", max_steps=3, eval_strategy="steps", eval_steps=3)
    trainer.train()
    events = accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/sparsity", "train/alpha", "train/mean_threshold", "train/layers_at_guard"} <= set(tags)
    assert any(tag.startswith("train/layers/") and tag.endswith("/sparsity") for tag in tags)


# ---- Optimizer ----


def test_thresholds_are_an_optimizer_group_of_their_own(tmp_path):
    config = AutoSparseConfig(**SPARSE, threshold_lr=0.5, threshold_weight_decay=0.25)
    trainer = tiny_trainer(tmp_path, config=config, weight_decay=0.125)
    groups = trainer.create_optimizer().param_groups
    thresholds = {id(p) for p in sparsifier_parameters(trainer.model).values()}
    mine = [group for group in groups if thresholds & {id(p) for p in group["params"]}]
    assert len(mine) == 1 and {id(p) for p in mine[0]["params"]} == thresholds
    assert (mine[0]["lr"], mine[0]["weight_decay"]) == (0.5, 0.25)
    assert [group["weight_decay"] for group in groups] == [0.125, 0.0, 0.25]


def test_threshold_lr_of_zero_freezes_them_and_none_follows_the_weights(tmp_path):
    for rate, moves in ((0.0, False), (None, True)):
        trainer = tiny_trainer(tmp_path, config=AutoSparseConfig(**SPARSE, threshold_lr=rate), max_steps=3)
        before = [p.clone() for p in sparsifier_parameters(trainer.model).values()]
        trainer.train()
        changed = [
            not torch.equal(a, b) for a, b in zip(before, sparsifier_parameters(trainer.model).values(), strict=True)
        ]
        assert changed == [moves] * len(before)


def test_foreign_optimizer_without_thresholds_is_refused(tmp_path):
    model = tiny_translator()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = tiny_trainer(tmp_path, model=model, optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="lacks the thresholds"):
        trainer.train()


def test_foreign_optimizer_with_thresholds_is_used(tmp_path):
    model = sparsify(tiny_translator(), AutoSparseConfig(**SPARSE))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = tiny_trainer(tmp_path, model=model, optimizers=(optimizer, None), max_steps=2)
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer


@pytest.mark.parametrize("clip_thresholds", [False, True])
def test_gradient_clipping_leaves_thresholds_out(tmp_path, clip_thresholds):
    class Norms(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            thresholds = list(sparsifier_parameters(model).values())
            others = [p for p in model.parameters() if all(p is not t for t in thresholds)]
            self.norms = [torch.nn.utils.get_total_norm([p.grad for p in ps]).item() for ps in (others, thresholds)]
            self.both = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()

    norms = []
    for limit in (1e9, 1e-3):
        probe = Norms()
        config = AutoSparseConfig(**SPARSE, clip_thresholds=clip_thresholds)
        tiny_trainer(tmp_path, config=config, callbacks=[probe], max_steps=1, max_grad_norm=limit).train()
        norms.append(probe)
    free, clipped = norms
    if clip_thresholds:
        assert clipped.both == pytest.approx(1e-3, rel=1e-2)
    else:
        assert clipped.norms[0] == pytest.approx(1e-3, rel=1e-2)
        assert clipped.norms[1] == pytest.approx(free.norms[1])


# ---- Guard and non-finite values ----


def test_guard_holds_a_layer_and_names_it_once(tmp_path, caplog):
    config = AutoSparseConfig(threshold_init={"sparsity": 0.7}, threshold_weight_decay=30.0, max_layer_sparsity=0.75)
    trainer = tiny_trainer(tmp_path, config=config, logging_steps=10)
    with caplog.at_level(logging.WARNING, "hf_autosparse"):
        trainer.train()
    layers = sparse_layers(trainer.model)
    held = [name for name, layer in layers.items() if layer.sparsifier.at_guard]
    assert held and trainer.state.log_history[-2]["layers_at_guard"] == len(held)
    for name in held:
        assert (layers[name].sparse_weight() == 0).float().mean() <= 0.75
        assert sum(f"layer {name} reached sparsity" in message for message in caplog.messages) == 1
    assert max((layer.sparse_weight() == 0).float().mean().item() for layer in layers.values()) <= 0.75


def test_non_finite_threshold_stops_the_run_with_its_name(tmp_path):
    class Break(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4:
                layers = list(sparse_layers(model).values())
                layers[2].sparsifier.threshold.data.fill_(float("nan"))

    trainer = tiny_trainer(tmp_path, callbacks=[Break()])
    name = list(sparse_layers(trainer.model))[2]
    with pytest.raises(FloatingPointError, match=rf"loss is nan at step 6; first non-finite in: parameter {name}\."):
        trainer.train()


def test_guard_stops_on_a_non_finite_threshold_before_the_next_forward(tmp_path):
    trainer = tiny_trainer(tmp_path)
    name, layer = list(sparse_layers(trainer.model).items())[1]
    layer.sparsifier.threshold.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=f"non-finite threshold at step 30 in {re.escape(name)}"):
        SparseTraining(trainer.model, steps=40, steps_per_epoch=10, start_step=30).guard()


def test_non_finite_loss_names_the_first_bad_output(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.model.model.encoder.layers[0].fc2.bias.data.fill_(1e38)
    trainer.model.model.encoder.layers[0].fc2.register_forward_hook(lambda module, args, output: output * 1e10)
    with pytest.raises(FloatingPointError, match=r"output of layer model\.encoder\.layers\.0\.fc2"):
        trainer.train()


# ---- What is written ----


def test_saved_directory_loads_without_this_package_and_is_the_evaluated_model(tmp_path):
    trainer = tiny_trainer(tmp_path, save_strategy="epoch")
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    expected = outputs(trainer.model)
    for directory in (tmp_path / "final", tmp_path / "checkpoint-30"):
        model = deployed(directory)
        assert not any("sparsifier" in name for name in model.state_dict())
        torch.testing.assert_close(outputs(model), expected, atol=1e-6, rtol=0)
        for name, layer in sparse_layers(trainer.model).items():
            assert torch.equal(model.get_submodule(name).weight, layer.sparse_weight())
    assert AutoSparseConfig.from_pretrained(tmp_path / "final") == trainer.sparse_config
    assert not (tmp_path / "final" / ".saving").exists()


def test_evaluation_equals_the_deployed_model(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=5)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(tmp_path / "final"))
    stock = Trainer(deployed(tmp_path / "final"), tiny_arguments(tmp_path), eval_dataset=tiny_pairs(8, seed=1))
    assert stock.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-6)
    finalize(trainer.model)
    assert sparsity(trainer.model) > 0.2


def test_load_best_model_restores_the_raw_weights(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        save_strategy="steps",
        save_steps=5,
        eval_strategy="steps",
        eval_steps=5,
        load_best_model_at_end=True,
        metric_for_best_model="eval_sparse_step",
        greater_is_better=False,
        save_only_model=True,
        compute_metrics=lambda prediction: {"sparse_step": abs(trainer.state.global_step - 10)},
    )
    raw = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 10:
                raw.update({k: v.clone() for k, v in model.state_dict().items()})

    trainer.add_callback(Keep())
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-10")
    state = trainer.model.state_dict()
    assert all(torch.equal(state[k], v) for k, v in raw.items())


# ---- Equivalences ----


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_accumulated_8x1_equals_1x8(tmp_path, label_smoothing):
    def collate(features):
        batch = {k: torch.stack([f[k] for f in features]) for k in features[0]}
        batch["decoder_input_ids"] = batch["labels"].roll(1, 1).clamp(min=2)
        return batch

    runs = []
    for size, steps in ((8, 1), (1, 8)):
        model = tiny_translator()
        model.config.dropout = 0.0
        for module in model.modules():
            if hasattr(module, "dropout"):
                module.dropout = 0.0
        trainer = AutoSparseTrainer(
            model,
            tiny_arguments(
                tmp_path,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
                logging_steps=1,
                max_steps=6,
                learning_rate=0.1,
                optim="sgd",
                label_smoothing_factor=label_smoothing,
            ),
            AutoSparseConfig(**SPARSE),
            train_dataset=tiny_pairs(24),
            data_collator=collate,
        )
        trainer.train()
        runs.append(trainer)
    losses = [[e["loss"] for e in run.state.log_history if "loss" in e] for run in runs]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)  # Trainer rounds nothing; sums differ in order
    for (name, a), b in zip(runs[0].model.state_dict().items(), runs[1].model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("step", [7, 10, 13])
def test_resumed_equals_uninterrupted(tmp_path, step):
    settings = {"save_strategy": "steps", "save_steps": step, "eval_strategy": "steps", "eval_steps": 4}
    whole = tiny_trainer(tmp_path / "whole", **settings)
    whole.train()
    tiny_trainer(tmp_path / "killed", callbacks=[StopAt(step)], **settings).train()
    resumed = tiny_trainer(tmp_path / "killed", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_state(whole.model, resumed.model)
    assert history(whole)[:-1] == history(resumed)[:-1]  # the last entry sums up the call


@pytest.mark.parametrize(
    "changes",
    [
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 3},
        {"optim": "adafactor"},
        {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 3},
    ],
    ids=lambda c: next(iter(c)),
)
def test_resumes_exactly_under(tmp_path, changes):
    if "gradient_checkpointing" in changes and hasattr(TrainingArguments, "activation_checkpointing"):
        changes = {"activation_checkpointing": True}  # its name in newer releases
    settings = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8} | changes
    whole = tiny_trainer(tmp_path / "whole", **settings)
    whole.train()
    tiny_trainer(tmp_path / "killed", callbacks=[StopAt(4)], **settings).train()
    resumed = tiny_trainer(tmp_path / "killed", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_state(whole.model, resumed.model)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # optuna's own
def test_hyperparameter_search_sparsifies_each_trial(tmp_path):
    pytest.importorskip("optuna")
    models, thresholds_in_optimizer = [], []

    def model_init():
        models.append(tiny_translator())
        return models[-1]

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            group = {id(p) for p in optimizer.param_groups[-1]["params"]}
            thresholds_in_optimizer.append(group == {id(p) for p in sparsifier_parameters(model).values()})

    trainer = tiny_trainer(
        tmp_path, model_init=model_init, max_steps=4, eval_strategy="steps", eval_steps=4, callbacks=[Watch()]
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)},
        direction="minimize",
        backend="optuna",
        n_trials=2,
    )
    assert best.hyperparameters.keys() == {"learning_rate"}
    assert thresholds_in_optimizer == [True, True]
    assert all(sparse_layers(model) for model in models)


class _NoKwargs(torch.nn.Module):
    """A model of one's own: its forward takes no num_items_in_batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.hidden = torch.nn.Embedding(VOCABULARY, 8), torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, VOCABULARY)
        self.config = PretrainedConfig()

    def forward(self, input_ids, labels=None):
        logits = self.head(self.hidden(self.embed(input_ids)).relu())
        if labels is None:
            return {"logits": logits}
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_model_that_is_not_of_transformers(tmp_path, label_smoothing):
    losses = []
    for size, steps in ((4, 1), (1, 4)):
        trainer = AutoSparseTrainer(
            _NoKwargs(),
            tiny_arguments(
                tmp_path,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
                logging_steps=1,
                max_steps=3,
                label_smoothing_factor=label_smoothing,
            ),
            AutoSparseConfig(**SPARSE),
            train_dataset=tiny_pairs(24),
        )
        trainer.train()
        losses.append([e["loss"] for e in trainer.state.log_history if "loss" in e])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    trainer.save_model(str(tmp_path / "final"))
    state = load_file(tmp_path / "final" / "model.safetensors")
    assert state.keys() == _NoKwargs().state_dict().keys()
    assert torch.equal(state["hidden.weight"], trainer.model.hidden.sparse_weight())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_torch_compile(tmp_path):
    settings = {"max_steps": 22, "logging_steps": 11}
    plain = tiny_trainer(tmp_path, **settings)
    compiled = tiny_trainer(tmp_path, **settings, torch_compile=True, torch_compile_backend="aot_eager")
    for trainer in (plain, compiled):
        for module in trainer.model.modules():
            if hasattr(module, "dropout"):
                module.dropout = 0.0
        trainer.train()
    for a, b in zip(plain.model.state_dict().values(), compiled.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert plain.trajectory.layers == compiled.trajectory.layers != {}
    compiled.save_model(str(tmp_path / "final"))
    torch.testing.assert_close(outputs(deployed(tmp_path / "final")), outputs(compiled.model), atol=1e-5, rtol=0)
    assert json.loads((tmp_path / "final" / "config.json").read_text())["model_type"] == "m2m_100"
