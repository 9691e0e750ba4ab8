"""The frame: pins satisfy bounds, recipes hold only what the code reads, launch files are what accelerate expects."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import M2M100Config, Seq2SeqTrainingArguments

import hf_autosparse
from examples.wmt14.data import DataConfig
from examples.wmt14.recipe import load_recipe
from examples.wmt14.translate import translate
from hf_autosparse import SparseConfig

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "wmt14"
RECIPES = sorted((EXAMPLE / "configs").glob("*.yaml"))
TWINS = [path for path in RECIPES if path.stem.endswith("_dense")]
LAUNCH = EXAMPLE / "launch"
PROCESSES = {"one_gpu": 1, "eight_gpus": 8, "multi_node": 8, "cpu_two_processes": 2}


def by_name(path: Path) -> str:
    return path.stem


def test_every_direct_dependency_is_pinned_within_its_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(line) for group in groups for line in group]
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {canonicalize_name(r.name): r for r in map(Requirement, filter(None, lines))}
    for requirement in wanted:
        if requirement.name == project["name"]:
            assert requirement.extras <= project["optional-dependencies"].keys(), requirement
            continue
        (pin,) = pins[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version), f"{requirement} but {pin}"


def test_the_build_reads_the_version_without_importing_the_package():
    program = (
        "import sys; from setuptools.config.pyprojecttoml import read_configuration;"
        "print(read_configuration('pyproject.toml')['project']['version']);"
        "assert 'hf_autosparse' not in sys.modules and 'torch' not in sys.modules"
    )
    built = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert built.stdout.strip() == hf_autosparse.__version__


def test_the_package_ships_its_types_and_licence():
    assert (Path(hf_autosparse.__file__).parent / "py.typed").is_file()
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_recipe_holds_only_what_the_code_reads(path, tmp_path):
    recipe = load_recipe(path)
    DataConfig(**recipe["data"])
    assert recipe["evaluation"].keys() <= inspect.signature(translate).parameters.keys()
    # M2M100Config takes any keyword and keeps it, so a misspelt one would be lost in silence.
    assert recipe["model"].keys() <= inspect.signature(M2M100Config).parameters.keys()
    M2M100Config(**recipe["model"])
    arguments = Seq2SeqTrainingArguments(**{"use_cpu": True, **recipe["training"]}, output_dir=str(tmp_path))
    for name in ("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon"):  # YAML reads 1e-9 as a text
        assert isinstance(getattr(arguments, name), float), name
    if recipe["sparse"] is not None:
        SparseConfig.from_dict(recipe["sparse"])


@pytest.mark.parametrize("path", RECIPES, ids=by_name)
def test_recipe_says_what_it_reproduces_with_which_seed_and_hardware(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    for word in ("Reproduces:", "Seed", "ardware"):
        assert word in header


def test_recipes_write_to_folders_of_their_own():
    folders = {path.stem: load_recipe(path)["output_dir"] for path in RECIPES}
    assert folders == {name: f"runs/{name}" for name in folders}


@pytest.mark.parametrize("path", TWINS, ids=by_name)
def test_dense_twin_differs_in_sparsity_alone(path):
    sparse, dense = load_recipe(path.with_stem(path.stem.removesuffix("_dense"))), load_recipe(path)
    assert sparse["sparse"] is not None and dense["sparse"] is None
    assert {k for k in sparse if sparse[k] != dense[k]} == {"sparse", "output_dir"}


def test_the_paper_recipe_is_the_papers():
    recipe = load_recipe(EXAMPLE / "configs" / "paper_big.yaml")
    stated = {
        "learning_rate": 0.000846,
        "adam_beta1": 0.9,
        "adam_beta2": 0.997,
        "warmup_steps": 4000,
        "lr_scheduler_type": "inverse_sqrt",
        "label_smoothing_factor": 0.1,
        "num_train_epochs": 44,
    }
    assert recipe["training"].items() >= stated.items()
    assert recipe["max_tokens"] == 10_240
    sparse = {"threshold_init": -7.0, "alpha_init": 0.4, "alpha_schedule": "exponential", "alpha_beta": 1.0}
    assert recipe["sparse"].items() >= (sparse | {"alpha_zero_epoch": 10, "first_last": "modules"}).items()


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=by_name)
def test_launch_file_is_one_of_accelerates(path):
    config = load_config_from_file(str(path))  # raises for an unknown key
    assert config.num_processes == PROCESSES[path.stem]
    assert config.mixed_precision == "no"  # the recipe's business


@pytest.mark.parametrize("path", sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]), ids=by_name)
def test_launch_script_is_sound_and_names_files_that_exist(path):
    subprocess.run(["bash", "-n", path], check=True)
    files = re.findall(r"examples/wmt14/[\w./]+\.yaml", path.read_text())
    modules = re.findall(r"-m (examples\.wmt14\.\w+) ", path.read_text())
    assert len(files) >= 2 and all((ROOT / name).is_file() for name in files), files
    assert modules and all(importlib.util.find_spec(name) for name in modules), modules
    assert path.suffix == ".sbatch" or os.access(path, os.X_OK)


def test_no_file_names_a_folder_of_the_machine_it_was_written_on():
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout to tell which files belong to the project")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    pattern = re.compile(rb"(?<![\w.])/(work|root|tmp)/\w")
    named = [f for f in files if (ROOT / f).is_file() and pattern.search((ROOT / f).read_bytes())]
    assert not named


def test_pre_commit_runs_the_pinned_ruff():
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (ruff,) = [repo for repo in settings["repos"] if repo["repo"].endswith("ruff-pre-commit")]
    assert f"ruff=={ruff['rev'].removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=by_name)
def test_forms_and_workflows_are_yaml_that_holds_something(path):
    assert yaml.safe_load(path.read_text())


def test_the_workflows_test_every_python_version_that_the_package_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    jobs = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == allowed
