"""The best model is one with the sparsity that was asked for."""

import logging

import pytest
from transformers import EarlyStoppingCallback

from hf_autosparse import AutoSparseConfig, GMPConfig, RigLConfig, sparsity
from hf_autosparse.training.target import TOLERANCE
from tiny import StopAt, tiny_trainer

TARGET = 0.8
LEARNED = AutoSparseConfig(target_sparsity=TARGET, target_ramp=0.5, first_last="none")


def trainer(tmp_path, config=LEARNED, **changes):
    """The first model is the best by its metric, the second the next best, and so on."""
    seen = []

    def worse_each_time(predictions):
        seen.append(sparsity(made.model))
        return {"rank": len(seen)}

    settings = {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "max_steps": 12,
        "load_best_model_at_end": True,
        "metric_for_best_model": "rank",
        "greater_is_better": False,
    }
    made = tiny_trainer(tmp_path, config=config, compute_metrics=worse_each_time, **(settings | changes))
    return made, seen


@pytest.mark.parametrize("strategy", ["steps", "best"])
@pytest.mark.parametrize(
    "config", [LEARNED, GMPConfig(target_sparsity=TARGET, first_last="none")], ids=["autosparse", "gmp"]
)
def test_the_best_is_the_first_that_holds_the_target(tmp_path, config, strategy, caplog):
    made, seen = trainer(tmp_path, config, save_strategy=strategy)
    made.train()
    first = next(i for i, value in enumerate(seen) if value >= TARGET - TOLERANCE)
    assert first > 0
    assert made.state.best_global_step == 2 * (first + 1) and made.state.best_metric == first + 1
    assert made.state.best_model_checkpoint.endswith(f"checkpoint-{2 * (first + 1)}")
    assert sparsity(made.model) == pytest.approx(TARGET, abs=TOLERANCE)
    assert not caplog.records


def test_a_method_with_a_fixed_share_holds_it_from_the_start(tmp_path):
    made, _ = trainer(tmp_path, RigLConfig(target_sparsity=TARGET, first_last="none"))
    made.train()
    assert made.state.best_global_step == 2


def test_early_stopping_waits_for_the_target(tmp_path):
    made, seen = trainer(tmp_path, max_steps=40)
    made.add_callback(EarlyStoppingCallback(2))
    made.train()
    first = next(i for i, value in enumerate(seen) if value >= TARGET - TOLERANCE)
    assert made.state.global_step == 2 * (first + 3) < 40
    assert sparsity(made.model) == pytest.approx(TARGET, abs=TOLERANCE)


def test_earlier_ones_count_if_asked_for_with_a_warning(tmp_path, caplog):
    made, _ = trainer(tmp_path)
    made.best_needs_target = False
    with caplog.at_level(logging.WARNING):
        made.train()
    assert made.state.best_global_step == 2
    assert "of step 2, has sparsity" in caplog.text and "best_needs_target is False" in caplog.text


def test_without_one_that_holds_it_nothing_is_loaded_and_a_warning_says_so(tmp_path, caplog):
    made, _ = trainer(tmp_path)
    made.add_callback(StopAt(2))
    with caplog.at_level(logging.WARNING):
        made.train()
    assert made.state.best_model_checkpoint is None
    assert "no best model was loaded: none of those that were evaluated had the target_sparsity of 0.8" in caplog.text
    assert sparsity(made.model) < TARGET - TOLERANCE
