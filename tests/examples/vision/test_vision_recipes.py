"""Every recipe as far as it goes without its data: all sections are valid, and what its header says is what it does."""

import importlib.util
import json
import os
import re
import subprocess

import pytest
from transformers import TrainingArguments

from examples.vision.image_data import DataConfig
from examples.vision.image_recipe import load_recipe
from hf_autosparse import SparseConfig
from paths import ROOT
from tiny_vision import CONFIGS

RECIPES = sorted(CONFIGS.rglob("*.yaml"))
SMALL = sorted((CONFIGS / "small").glob("*.yaml"))


def by_name(path) -> str:
    return path.stem


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_recipe_is_valid(path):
    recipe = load_recipe(path)
    DataConfig(**recipe["data"])
    bf16 = recipe["training"].pop("bf16", False)  # which this machine's device may not have
    assert isinstance(bf16, bool)
    TrainingArguments(output_dir=recipe["output_dir"], **recipe["training"])
    assert recipe["output_dir"] == f"runs/{path.stem}"
    if recipe["sparse"] is not None:
        SparseConfig.from_dict(recipe["sparse"])
    assert (recipe["sparse"] is None) == path.stem.endswith("_dense")
    header = path.read_text().partition("seed:")[0].partition("extends:")[0]
    assert header.startswith("# Reproduces:") and re.search("Seed[:,]", header) and recipe["seed"] == 1
    assert max(map(len, path.read_text().splitlines())) <= 120


def test_every_row_has_a_recipe_with_its_figures(shared_data):
    """Tables 1 to 3: one recipe's header has the row's figures, and it trains as the row says."""
    tables = json.loads((shared_data / "paper" / "tables.json").read_text())
    headers = {path: " ".join(re.findall(r"^# *(.*)", path.read_text(), re.MULTILINE)) for path in RECIPES}
    found = set()
    for table in ("resnet50_imagenet", "resnet50_imagenet_back_sparsity_50", "mobilenetv1_imagenet"):
        for row in (dict(zip(tables["columns"], row, strict=True)) for row in tables[table]):
            train, test = (row[key] or "not printed" for key in ("train_flops", "test_flops"))
            figures = rf"Top-1 {row['top1']} at {row['sparsity']} % sparsity \(dense {row['base_top1']}\),"
            figures += rf" Train F {train}, Test F {test}0?\."
            (path,) = (path for path, header in headers.items() if re.search(figures, header))
            found.add(path)
            sparse = load_recipe(path)["sparse"]
            if row["method"] == "AutoSparse":
                assert sparse["alpha_init"] == float(re.search(r"alpha0=([\d.]+)", row["comment"])[1])
                cut = re.search(r"alpha=0 at epoch (\d+)", row["comment"])
                assert sparse["alpha_zero_epoch"] == (float(cut[1]) if cut else None)
            elif row["method"] == "STR":  # AutoSparse with alpha 0
                assert (sparse["alpha_init"], sparse["alpha_schedule"]) == (0.0, "fixed")
            else:
                assert row["method"].lower().startswith(sparse["method"])
                assert sparse.get("target_sparsity") == (None if row["method"] == "DST" else row["sparsity"] / 100)
                assert sparse.get("power", 1.0) == (2.0 if "+PP" in row["method"] else 1.0)
                assert ("alpha_init" in sparse) == ("+GA" in row["method"])
    assert len(found) == 26


@pytest.mark.parametrize("path", SMALL, ids=by_name)
def test_a_sparse_recipe_and_its_dense_twin_differ_in_nothing_else(path):
    dense = load_recipe(path.with_name("_".join(path.stem.split("_")[:2]) + "_dense.yaml"))
    own = {"sparse": None, "output_dir": None}
    assert load_recipe(path) | own == dense | own


@pytest.mark.parametrize("path", sorted((CONFIGS.parent / "launch").glob("*.sh")), ids=by_name)
def test_launch_script_is_sound_and_names_files_that_exist(path):
    subprocess.run(["bash", "-n", path], check=True)
    files = re.findall(r"examples/vision/[\w./]+\.yaml", path.read_text())
    modules = re.findall(r"-m (examples\.vision\.\w+) ", path.read_text())
    assert files and all((ROOT / name).is_file() for name in files), files
    assert modules and all(importlib.util.find_spec(name) for name in modules), modules
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("depthwise=none", "depthwise = 'none' is not allowed: use 'sparse' or 'dense'"),
        ("sparce.alpha_init=0", r"unknown section 'sparce'; allowed: .*near: \['sparse'\]"),
        ("seed", "expected section.key=value"),
    ],
)
def test_bad_change_of_a_recipe(change, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(CONFIGS / "digits.yaml", [change])
