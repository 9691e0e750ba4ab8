"""The mixin before the trainers of TRL and sentence-transformers: each equals its stock self, bit for bit, with weights
that are not pruned; with pruned ones it resumes exactly and saves what it evaluated.

docs/compatibility.md lists what is shown here.
"""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import TrainerCallback, set_seed
from transformers.trainer_callback import CallbackHandler

from hf_autosparse import AutoSparseConfig, sparse_layers, sparsity
from hf_autosparse.layers.saving import deployable_state_dict
from hf_autosparse.layers.sparsify import plain_parameters
from paths import HELPERS, PYTHONPATH

pytest.importorskip("trl")
pytest.importorskip("sentence_transformers")
peft = pytest.importorskip("peft")
tiny_trainers = importlib.import_module("tiny_trainers")
ADDED, DENSE, RECIPES = tiny_trainers.ADDED, tiny_trainers.DENSE, tiny_trainers.RECIPES
figures, sparse, table = tiny_trainers.figures, tiny_trainers.sparse, tiny_trainers.table
TAKES_NO_STREAM = {"CrossEncoder"}  # says the stock trainer

pytestmark = [
    # TRL 1.16 uses names that transformers 5.23 deprecates.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]

SPARSE = AutoSparseConfig(
    threshold_init={"sparsity": 0.5}, alpha_init=0.5, alpha_schedule="linear", alpha_update="step"
)
EVALUATED_AND_SAVED = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


class Recorder(TrainerCallback):
    """Every event in its order, with the keys of its logs and metrics, and how often the model's forward ran."""

    def __init__(self):
        self.events, self.forwards = [], 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.events.append("on_train_begin")
        model.register_forward_pre_hook(self._count)

    def _count(self, *args):
        self.forwards += 1


def _event(name):
    def record(self, args, state, control, logs=None, metrics=None, **kwargs):
        self.events.append((name, state.global_step, sorted(set(logs or metrics or ()) - ADDED)))

    return record


for _name in vars(CallbackHandler):
    if _name.startswith("on_") and _name != "on_train_begin":
        setattr(Recorder, _name, _event(_name))


@pytest.mark.parametrize("name", RECIPES)
def test_equals_the_stock_trainer_to_the_bit(tmp_path, name):
    recipe = RECIPES[name]
    runs = []
    for trainer_class, kwargs in ((recipe.trainer, {}), (sparse(recipe), {"sparse_config": DENSE})):
        recorder = Recorder()
        trainer = recipe.build(
            trainer_class,
            tmp_path / trainer_class.__name__,
            settings=EVALUATED_AND_SAVED,
            callbacks=[recorder],
            **kwargs,
        )
        trainer.train()
        runs.append((trainer, recorder))
    (stock, stock_recorder), (ours, our_recorder) = runs
    assert sparse_layers(ours.model) and not sparse_layers(stock.model)
    assert sparsity(ours.model) == 0

    assert figures(ours) == figures(stock)
    norms = [entry["grad_norm"] for entry in stock.state.log_history if "loss" in entry]
    assert len(norms) == len(set(norms)) == 4 and min(norms) > 0
    assert sum("eval_loss" in entry for entry in stock.state.log_history) == 2

    assert our_recorder.forwards == stock_recorder.forwards > 0
    assert our_recorder.events == stock_recorder.events
    assert {"on_log", "on_evaluate", "on_save"} <= {event[0] for event in our_recorder.events}

    weights, expected = plain_parameters(ours.model), dict(stock.model.named_parameters())
    assert weights.keys() == expected.keys()
    assert not [key for key in expected if not torch.equal(weights[key], expected[key])]


@pytest.mark.parametrize("name", RECIPES)
def test_resumes_exactly_and_saves_what_it_evaluated(tmp_path, name):
    recipe = RECIPES[name]
    trainer = recipe.build(sparse(recipe), tmp_path, settings=EVALUATED_AND_SAVED, sparse_config=SPARSE)
    trainer.train()
    assert 0.3 < sparsity(trainer.model) < 0.7
    set_seed(3)  # some generate what they evaluate
    evaluated = trainer.evaluate()["eval_loss"]
    trainer.save_model(tmp_path / "final")
    trained = {key: value.clone() for key, value in trainer.model.state_dict().items()}

    reloaded = recipe.reload(trainer.model, tmp_path / "final")
    assert type(reloaded) is type(trainer.model) and not sparse_layers(reloaded)
    found, expected = reloaded.state_dict(), deployable_state_dict(trainer.model)
    assert found.keys() == expected.keys()
    assert not [key for key in expected if not torch.equal(found[key], expected[key])]
    stock = recipe.build(recipe.trainer, tmp_path, model=reloaded)
    set_seed(3)
    assert stock.evaluate()["eval_loss"] == pytest.approx(evaluated, rel=1e-5, abs=1e-7)

    resumed = recipe.build(sparse(recipe), tmp_path, settings=EVALUATED_AND_SAVED, sparse_config=SPARSE)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    state = resumed.model.state_dict()
    assert resumed.state.global_step == 4 and state.keys() == trained.keys()
    assert not [key for key in trained if not torch.equal(state[key], trained[key])]


# ---- Streams ----


@pytest.mark.parametrize("name", RECIPES)
def test_a_stream_is_trained_on_as_by_the_stock_trainer_or_refused_when_the_trainer_is_made(tmp_path, name):
    recipe = RECIPES[name]

    def run(trainer_class, **kwargs):
        stream = table(*recipe.columns).to_iterable_dataset()
        settings = {"max_steps": 2}
        return recipe.build(trainer_class, tmp_path, settings=settings, train_dataset=stream, **kwargs)

    if name in TAKES_NO_STREAM:
        with pytest.raises(ValueError, match="does not support an IterableDataset"):
            run(recipe.trainer)
        return
    with pytest.raises(ValueError, match="alpha_update='epoch' needs a training set with a length"):
        run(sparse(recipe), sparse_config=AutoSparseConfig(alpha_schedule="linear"))
    stock = run(recipe.trainer)
    stock.train()
    ours = run(sparse(recipe), sparse_config=DENSE)
    ours.train()
    assert figures(ours) == figures(stock)


# ---- Two processes ----


def test_two_processes_equal_the_stock_trainers_in_two_processes(tmp_path):
    for name, recipe in RECIPES.items():
        recipe.model(tmp_path / name / "base")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += [str(HELPERS / "trainers_worker.py"), str(tmp_path), *RECIPES]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == list(RECIPES)
    for name, (stock, ours) in results.items():
        assert stock["processes"] == 2 and len(stock["figures"]) == 3, name
        assert ours == stock, name


# ---- PEFT: the base is frozen, so nothing of it can be made sparse ----


def lora():
    return peft.LoraConfig(r=2, target_modules=r".*\.(q_proj|v_proj|query|value)")


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.is_trl])
def test_an_adapter_that_the_trainer_adds_is_refused(tmp_path, name):
    recipe = RECIPES[name]
    with pytest.raises(ValueError, match=r"layers were frozen after .* Train without an adapter"):
        recipe.build(sparse(recipe), tmp_path, sparse_config=SPARSE, peft_config=lora())


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_with_an_adapter_is_refused(tmp_path, name):
    recipe = RECIPES[name]
    model = recipe.model(tmp_path / "base")
    if recipe.is_trl:
        model = peft.get_peft_model(model, lora())
    else:
        model.add_adapter(lora())
    with pytest.raises(ValueError, match=r"(?s)is left to sparsify:.*frozen"):
        recipe.build(sparse(recipe), tmp_path, model=model, sparse_config=SPARSE)
