"""Run under torchrun by test_trainer_matrix.py: train by stock trainers and by ours, and write what each computed."""

import json
import sys
from pathlib import Path

from hf_autosparse import AutoSparseMixin
from hf_autosparse.layers.sparsify import plain_parameters
from tiny_trainers import DENSE, RECIPES, figures, sparse

if __name__ == "__main__":
    output, results = Path(sys.argv[1]), {}
    for name in sys.argv[2:]:
        recipe = RECIPES[name]
        for trainer_class in (recipe.trainer, sparse(recipe)):
            is_ours = issubclass(trainer_class, AutoSparseMixin)
            trainer = recipe.build(
                trainer_class,
                output / name,  # the test has stored the untrained model there
                settings={"max_steps": 2, "ddp_backend": "gloo"},
                **({"sparse_config": DENSE} if is_ours else {}),
            )
            trainer.train()
            weights = {key: weight.double().sum().item() for key, weight in plain_parameters(trainer.model).items()}
            results.setdefault(name, []).append(
                {"processes": trainer.accelerator.num_processes, "figures": figures(trainer), "weights": weights}
            )
    if trainer.is_world_process_zero():
        (output / "results.json").write_text(json.dumps(results))
