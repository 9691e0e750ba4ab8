"""The contract with transformers: every private name that we use or override, its signature, and the order of calls."""

import ast
import functools
import inspect
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback
from transformers.trainer_callback import CallbackHandler
from transformers.utils.hub import PushInProgress

import hf_autosparse
from hf_autosparse.training import _trainer_compat as compat
from hf_autosparse.training.options import Seq2SeqTrainerOptions, TrainerOptions
from tiny import tiny_arguments, tiny_pairs, tiny_trainer, tiny_translator

PACKAGE = Path(hf_autosparse.__file__).parent
COMPAT = "training/_trainer_compat.py"

OVERRIDDEN = {
    "_clip_grad_norm": ["self", "model"],
    "_determine_best_metric": ["self", "metrics", "trial"],
    "_finish_current_push": ["self"],
    "_load_best_model": ["self"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
    "_save": ["self", "output_dir", "state_dict"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_save_rng_state": ["self", "output_dir"],
}
PUBLIC_OVERRIDDEN = {
    "call_model_init": ["self", "trial"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "compute_loss_context_manager": ["self"],
    "create_optimizer": ["self", "model"],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "init_hf_repo": ["self", "token", "private"],
    "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
    "log": ["self", "logs", "start_time"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
}
USED = {
    "_get_output_dir": ["self", "trial"],
    "_prepare_inputs": ["self", "inputs"],
    "save_model": ["self", "output_dir", "_internal_call"],
}


@pytest.mark.parametrize(("name", "parameters"), [*OVERRIDDEN.items(), *PUBLIC_OVERRIDDEN.items(), *USED.items()])
def test_signature(name, parameters):
    assert list(inspect.signature(getattr(Trainer, name)).parameters) == parameters


def test_every_overridden_private_method_is_listed():
    mixins = [c for c in hf_autosparse.AutoSparseTrainer.__mro__ if c.__module__.startswith("hf_autosparse")]
    ours = {name for c in mixins for name in vars(c) if name.startswith("_") and not name.startswith("__")}
    assert {name for name in ours if hasattr(Trainer, name)} == set(OVERRIDDEN) == compat.OVERRIDDEN


def test_push_in_progress():
    assert list(inspect.signature(PushInProgress.__init__).parameters) == ["self", "jobs"]
    push = compat.push_in_progress([])
    assert push.jobs == [] and push.is_done()
    assert callable(push.wait_until_done)


def test_the_table_of_trackers_holds_callbacks():
    kinds = compat.INTEGRATION_TO_CALLBACK
    assert {"tensorboard", "wandb", "trackio", "mlflow"} <= kinds.keys()
    assert all(issubclass(kind, TrainerCallback) for kind in kinds.values())


@pytest.mark.parametrize(("trainer", "options"), [(Trainer, TrainerOptions), (Seq2SeqTrainer, Seq2SeqTrainerOptions)])
def test_keyword_arguments_are_those_of_the_constructor(trainer, options):
    parameters = set(inspect.signature(trainer.__init__).parameters) - {"self", "model", "args"}
    assert options.__optional_keys__ == parameters and not options.__required_keys__


def recording(bases, names, calls):
    """A subclass that notes each call of `names` before it is made."""

    def method(name):
        def call(self, *args, **kwargs):
            calls.append(name)
            return getattr(super(recorder, self), name)(*args, **kwargs)

        return call

    recorder = type("Recording", bases, {name: method(name) for name in names})
    return recorder


EVENTS = ["on_train_begin", "on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log"]
EVENTS += ["on_evaluate", "on_save", "on_train_end"]


@pytest.fixture
def stock_calls(tmp_path, monkeypatch):
    """Two steps of two micro-batches of stock Trainer, evaluated and saved at each; the second is the best."""
    calls = []
    originals = {event: getattr(CallbackHandler, event) for event in EVENTS}
    for event in EVENTS:

        def noted(self, *args, event=event, **kwargs):
            calls.append(event)
            return originals[event](self, *args, **kwargs)

        monkeypatch.setattr(CallbackHandler, event, noted)
    prepare = Accelerator.prepare

    def noted_prepare(self, *args, **kwargs):
        if any(isinstance(arg, torch.optim.Optimizer) for arg in args):
            calls.append("prepare optimizer")
        return prepare(self, *args, **kwargs)

    monkeypatch.setattr(Accelerator, "prepare", noted_prepare)
    names = [
        *("create_optimizer", "get_batch_samples", "training_step", "compute_loss", "_clip_grad_norm"),
        *("_save_checkpoint", "_save", "_save_optimizer_and_scheduler", "_save_rng_state", "_load_best_model"),
        *("_prepare_inputs", "_finish_current_push"),
    ]
    trainer = recording((Seq2SeqTrainer,), names, calls)(
        tiny_translator(),
        tiny_arguments(
            tmp_path,
            max_steps=2,
            gradient_accumulation_steps=2,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            load_best_model_at_end=True,
        ),
        train_dataset=tiny_pairs(40),
        eval_dataset=tiny_pairs(4, seed=1),
    )
    seen = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            assert compat.loss_since_last_log(trainer) == (0.0, 0)
            compat.restore_loss_since_last_log(trainer, 0.0, 0)

        def on_step_end(self, args, state, control, **kwargs):
            loss, since = compat.loss_since_last_log(trainer)
            assert loss > 0 and since == state.global_step - 1
            seen.append(loss)

        def on_save(self, args, state, control, **kwargs):
            calls.append("trainer_state.json is there")
            assert (tmp_path / f"checkpoint-{state.global_step}" / "trainer_state.json").is_file()

    trainer.add_callback(Look())
    trainer.train()
    assert len(seen) == 2
    return calls


def test_order_of_calls(stock_calls):
    micro_batch = ["training_step", "_prepare_inputs", "compute_loss"]
    step = ["get_batch_samples", "on_step_begin", *micro_batch, *micro_batch, "_clip_grad_norm"]
    step += ["on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log"]
    evaluation = ["_prepare_inputs", "compute_loss", "on_log", "on_evaluate"]
    saving = ["_save_checkpoint", "_save", "_save_optimizer_and_scheduler", "_save_rng_state", "on_save"]
    once = [*step, *evaluation, *saving, "trainer_state.json is there"]
    expected = ["create_optimizer", "prepare optimizer", "on_train_begin", *once, *once]
    expected += ["on_log", "_load_best_model", "on_train_end", "_finish_current_push"]
    assert stock_calls == expected


def test_rng_state_is_the_last_file_before_trainer_state(tmp_path):
    """So that the manifest, which we write there, lists all of a checkpoint."""
    written = {}

    class Look(Seq2SeqTrainer):
        def _save_rng_state(self, output_dir):
            super()._save_rng_state(output_dir)
            written["before"] = {path.name for path in Path(output_dir).iterdir()}

    Look(
        tiny_translator(),
        tiny_arguments(tmp_path, max_steps=1, save_strategy="steps", save_steps=1),
        train_dataset=tiny_pairs(4),
    ).train()
    after = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert after - written["before"] == {"trainer_state.json"}


def test_a_micro_batch_is_copied_before_the_loss_takes_it_apart(tmp_path):
    trainer = tiny_trainer(tmp_path)
    batch = {"labels": torch.ones(1)}
    assert compat.prepared_inputs(trainer, batch) is not batch


# ---- Nobody else ----


@functools.cache
def private_names() -> set[str]:
    """Every private name that transformers' Trainer or accelerate's Accelerator has, as a method or on an instance."""
    names = set(dir(Trainer)) | set(dir(Accelerator))
    for module in (inspect.getmodule(Trainer), inspect.getmodule(Accelerator)):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).as_posix() != COMPAT]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_other_file_uses_a_private_name(path):
    allowed = compat.OVERRIDDEN if path.parent.name == "training" else set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert node.attr not in private_names() - allowed, f"line {node.lineno}: .{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] == "transformers":
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"line {node.lineno}: {private}"
            assert node.module not in INTERNAL or path.parent.name == "serialization", f"line {node.lineno}"


INTERNAL = {"transformers.loss.loss_utils", "transformers.utils.hub", "transformers.integrations.integration_utils"}
