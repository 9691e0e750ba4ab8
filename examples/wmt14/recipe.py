"""The recipes of the translation example: which sections they have. What a recipe is: ../common/recipes.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.common import recipes

OPTIONAL = {"sparse", "start_from"}
SECTIONS = OPTIONAL | {"seed", "output_dir", "data", "tokenizer", "model", "training", "max_tokens", "evaluation"}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """`recipes.load_recipe` of a translation recipe. `sparse: null` (or no such section) is a dense run.

    `start_from` is a saved model or a repository to train on from: its tokenizer and its architecture stand for the
    sections `tokenizer` and `model`.
    """
    return recipes.load_recipe(path, overrides, sections=SECTIONS, optional=OPTIONAL)
