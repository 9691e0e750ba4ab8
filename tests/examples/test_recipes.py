"""Recipes: what a recipe extends and what `--set` changes."""

from pathlib import Path

import pytest

from examples.common.recipes import load_recipe

RECIPE = """
seed: 1
sparse:
  alpha_init: 0.4
  threshold_init: {sparsity: 0.5}
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def loaded(path: Path, *overrides: str) -> dict:
    return load_recipe(path, overrides, sections={"seed", "sparse"}, optional={"sparse"})


def test_a_dotted_key_changes_one_value(recipe):
    assert loaded(recipe, "sparse.alpha_init=0.2") == {
        "seed": 1,
        "sparse": {"alpha_init": 0.2, "threshold_init": {"sparsity": 0.5}},
    }


def test_an_object_replaces_what_stands_under_its_key(recipe):
    assert loaded(recipe, 'sparse={"method": "rigl"}')["sparse"] == {"method": "rigl"}
    assert loaded(recipe, 'sparse.threshold_init={"value": -7}')["sparse"] == {
        "alpha_init": 0.4,
        "threshold_init": {"value": -7},
    }


def test_later_changes_are_made_to_earlier_ones(recipe):
    changes = ('sparse={"method": "rigl"}', "sparse.target_sparsity=0.9", "seed=null")
    assert loaded(recipe, *changes) == {"seed": None, "sparse": {"method": "rigl", "target_sparsity": 0.9}}


def test_a_key_below_what_is_no_section_makes_one(recipe):
    assert loaded(recipe, "sparse=null", "sparse.method=rigl")["sparse"] == {"method": "rigl"}


def test_a_recipe_extends_another(recipe):
    child = recipe.with_name("child.yaml")
    child.write_text("extends: recipe.yaml\nsparse: {alpha_init: 0.1}\n")
    assert loaded(child)["sparse"] == {"alpha_init": 0.1, "threshold_init": {"sparsity": 0.5}}
