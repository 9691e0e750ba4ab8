"""Processes that write models are killed (SIGKILL); what they leave must be the old model or the new one, whole."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import M2M100ForConditionalGeneration

from hf_autosparse import AutoSparseConfig, FixedMaskConfig, finalize, pack, sparsify, unpack
from hf_autosparse.serialization.pack import weight_files
from hf_autosparse.training.checkpoint import publish, staging_directory
from paths import PYTHONPATH
from tiny import tiny_trainer, tiny_translator

FILE_OPERATIONS = {"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.chmod", "shutil.copyfile"}
SHARDS = {"max_shard_size": "8KB"}


def translator(scale: float) -> M2M100ForConditionalGeneration:
    model = finalize(sparsify(tiny_translator(), AutoSparseConfig(threshold_init={"sparsity": 0.7})))
    for parameter in model.parameters():
        parameter.data *= scale
    return model


# ---- What is killed: each starts from `directory` as `prepare` left it, and writes without end ----


def pack_again_and_again(directory: Path, begun) -> None:
    begun()
    for number in range(1_000_000):
        pack(directory / "plain", directory / f"out{number}")


def unpack_again_and_again(directory: Path, begun) -> None:
    begun()
    for number in range(1_000_000):
        unpack(directory / "packed", directory / f"out{number}")


def train_and_save(directory: Path, begun) -> None:
    """What Trainer writes at the end of a run, over what is there; every second time another model."""
    exact = FixedMaskConfig()  # saves the weights as they are
    trainers = [tiny_trainer(directory / "run", model=translator(scale), config=exact) for scale in (1.0, 2.0)]
    begun()
    for number in range(1_000_000):
        trainers[number % 2].save_model(str(directory / "model"))


def publish_shards(directory: Path, begun) -> None:
    publish_again_and_again(directory, begun, [SHARDS, SHARDS])


def publish_shards_and_one_file(directory: Path, begun) -> None:
    publish_again_and_again(directory, begun, [SHARDS, {}])


def publish_again_and_again(directory: Path, begun, how) -> None:
    models = translator(1.0), translator(2.0)
    begun()
    for number in range(1_000_000):
        staging = staging_directory(directory / "model")
        models[number % 2].save_pretrained(staging, **how[number % 2])
        publish(staging, directory / "model")


WRITERS = {
    "pack": pack_again_and_again,
    "unpack": unpack_again_and_again,
    "trainer": train_and_save,
    "shards": publish_shards,
    "shards and one file": publish_shards_and_one_file,
}


def prepare(directory: Path) -> None:
    translator(1.0).save_pretrained(directory / "plain")
    pack(directory / "plain", directory / "packed")
    translator(2.0).save_pretrained(directory / "model", **SHARDS)


# ---- The killing ----


@pytest.fixture(scope="module")
def fork_server():
    """Imports torch and transformers once; it gets its path from the environment alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["test_kill"])
        yield context


def write(kind: str, directory: str, fatal: int | None, connection) -> None:
    """Runs in the process that is killed: by itself at its file operation number `fatal`, or by its parent."""
    torch.set_num_threads(1)
    done = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal done
        if event in FILE_OPERATIONS and is_inside(str(arguments[0])):
            done += 1
            if done == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    def is_inside(path: str) -> bool:
        return path.startswith(directory) or not os.path.isabs(path)  # relative: to an open folder, in rmtree

    def begun() -> None:
        connection.send("begun")
        if fatal is not None:
            sys.addaudithook(count)

    WRITERS[kind](Path(directory), begun)


def kill(context, kind: str, directory: Path, fatal: int | None, delay: float | None) -> None:
    parent, child = context.Pipe()
    process = context.Process(target=write, args=(kind, str(directory), fatal, child))
    process.start()
    assert parent.poll(120) and parent.recv() == "begun"
    if delay is not None:
        time.sleep(delay)
        process.kill()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def check(kind: str, directory: Path) -> bool:
    """Whatever has a model's name is whole. Returns whether the kill came while something was being written."""
    names = [path.name for path in directory.iterdir()]
    if kind in ("pack", "unpack"):
        for name in names:
            if name.startswith("out"):
                assert matches(directory / name, 1.0), name
        return any(name.startswith(".out") for name in names)
    assert matches(directory / "model", 1.0) or matches(directory / "model", 2.0)
    return (directory / "model" / ".saving").exists()


EXPECTED = {}


def matches(model: Path, scale: float) -> bool:
    if scale not in EXPECTED:
        EXPECTED[scale] = translator(scale).state_dict()
    if (model / "config.json").is_file() and "quantization_config" in (model / "config.json").read_text():
        found = M2M100ForConditionalGeneration.from_pretrained(model).state_dict()
    else:  # as from_pretrained reads them, only faster
        found = {name: tensor for path in weight_files(model) for name, tensor in load_file(path).items()}
    assert found.keys() <= EXPECTED[scale].keys() and len(found) > 40
    return all(torch.equal(tensor, EXPECTED[scale][name]) for name, tensor in found.items())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    prepare(directory)
    return directory


@pytest.mark.parametrize(
    ("kind", "operations"),
    [
        ("unpack", (2, 5, 8)),
        ("trainer", (20, 21, 24)),
        ("shards", (19, 28, 33, 36)),
        ("shards and one file", (31, 50, 53, 77)),
    ],
)
def test_killed_at_a_file_operation(kind, operations, fork_server, prepared, tmp_path):
    """Just before it, in the first saves of a process."""
    writing = []
    for fatal in operations:
        shutil.copytree(prepared, tmp_path / str(fatal))
        kill(fork_server, kind, tmp_path / str(fatal), fatal, None)
        writing.append(check(kind, tmp_path / str(fatal)))
    assert any(writing), "no kill came while something was being written"


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_killed_at_every_file_operation(kind, fork_server, prepared, tmp_path):
    """Of the first 100, each in a process of its own: two saves or more."""
    writing = 0
    for fatal in range(1, 101):
        shutil.copytree(prepared, tmp_path / "killed")
        kill(fork_server, kind, tmp_path / "killed", fatal, None)
        writing += check(kind, tmp_path / "killed")
        shutil.rmtree(tmp_path / "killed")
    assert writing > 50


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_killed_at_random_moments(kind, fork_server, prepared, tmp_path):
    """One directory, so that each process starts from what a kill left."""
    chance = random.Random(0)
    shutil.copytree(prepared, tmp_path / "killed")
    writing = 0
    for _ in range(100):
        kill(fork_server, kind, tmp_path / "killed", None, chance.uniform(0, 0.15))
        writing += check(kind, tmp_path / "killed")
        for path in (tmp_path / "killed").glob("*out*"):
            shutil.rmtree(path)
    assert writing > 30
