"""The recipes of the vision example: which sections they have. What a recipe is: ../common/recipes.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.common import recipes

SECTIONS = {
    "seed",
    "output_dir",
    "data",
    "model",
    "training",
    "lr_batch_size",
    "decay_everything",
    "depthwise",
    "sparse",
}
OPTIONAL = {"lr_batch_size", "decay_everything", "depthwise", "sparse"}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """`recipes.load_recipe` of an image classification recipe; what may be left out gets its default here.

    - `lr_batch_size`: the global batch that `training.learning_rate` (and `sparse.threshold_lr`) is meant for; both are
      scaled linearly with the real one. null: no scaling.
    - `decay_everything`: weight decay also on biases and normalisation layers, as in STR's code, not on matrices and
      BatchNorm scales alone, as in Trainer.
    - `depthwise`: "sparse" or "dense" depthwise convolutions.
    - `sparse`: the method and the fields of its configuration; null: a dense run.
    """
    recipe = recipes.load_recipe(path, overrides, sections=SECTIONS, optional=OPTIONAL)
    recipe = {"lr_batch_size": None, "decay_everything": False, "depthwise": "sparse", "sparse": None} | recipe
    if recipe["depthwise"] not in ("sparse", "dense"):
        raise ValueError(f"{path}: depthwise = {recipe['depthwise']!r} is not allowed: use 'sparse' or 'dense'")
    return recipe
