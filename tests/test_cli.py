"""The command line: what it prints, where, and with which exit code."""

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM
from typer.testing import CliRunner

import hf_autosparse
from hf_autosparse import AutoSparseConfig, finalize, pack, sparsify
from hf_autosparse.cli import app
from hf_autosparse.methods import available_methods
from hf_autosparse.reports.diff import checkpoint_diff
from hf_autosparse.reports.trajectory import Moment, Trajectory
from hf_autosparse.serialization.files import TRAJECTORY
from sealed import save_sealed
from tiny import tiny_translator

ROOT = Path(__file__).resolve().parents[1]
FC1 = "model.encoder.layers.0.fc1"
COMMANDS = ("report", "pack", "unpack", "diff", "prune", "methods")


def run(*arguments):
    """In this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="hf-autosparse")


def program(*arguments):
    """The command line of a process of its own."""
    code = "from hf_autosparse.cli import main; main()"
    return [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]


def run_all(commands, environment):
    """One process that runs several commands: [exit code, stdout, stderr] of each. Importing torch takes seconds."""
    code = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from hf_autosparse.cli import main

def result(arguments):
    sys.argv = ["hf-autosparse", *arguments]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as exit:
        return [exit.code or 0, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()]

print(json.dumps([result(arguments) for arguments in json.loads(sys.argv[1])]))
"""
    arguments = json.dumps([list(map(str, command)) for command in commands])
    process = subprocess.run(
        [sys.executable, "-c", code, arguments], capture_output=True, text=True, env=environment, check=True
    )
    assert process.stderr == ""
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of one model: plain, sharded and packed; and of another one that differs from it in two tensors."""
    directory = tmp_path_factory.mktemp("models")
    model = finalize(sparsify(tiny_translator(), AutoSparseConfig(threshold_init={"sparsity": 0.7})))
    model.save_pretrained(directory / "plain")
    model.save_pretrained(directory / "sharded", max_shard_size="8KB")
    pack(model, directory / "packed")
    tensors = load_file(directory / "plain" / "model.safetensors")
    weight = tensors[f"{FC1}.weight"].flatten()
    first_zero, first_kept = (weight == 0).nonzero()[0], (weight != 0).nonzero()[0]
    weight[first_zero], weight[first_kept] = 3.0, 0.0
    tensors[f"{FC1}.bias"] += 1
    (directory / "other").mkdir()
    save_file(tensors, directory / "other" / "model.safetensors", {"format": "pt"})
    return directory


# ---- report ----


@pytest.mark.parametrize("form", ["plain", "sharded", "packed"])
def test_report(form, models):
    result = run("report", models / form)
    assert result.exit_code == 0 and result.stderr == ""
    assert f"│ {FC1}" in result.stdout and "69.79%" in result.stdout and "left dense" in result.stdout
    assert "\x1b" not in result.stdout


def test_report_json(models):
    values = json.loads(run("report", models / "plain", "--json").stdout)
    (row,) = [row for row in values["layers"] if row["name"] == FC1]
    assert row["shape"] == [24, 16] and row["sparsity"] == pytest.approx(268 / 384)
    assert values["source"] == str(models / "plain")


def test_report_csv(models):
    rows = list(csv.DictReader(io.StringIO(run("report", models / "plain", "--csv").stdout)))
    assert {row["name"]: row["shape"] for row in rows}[FC1] == "24x16" and len(rows) == 17


def test_json_or_csv(models):
    result = run("report", models / "plain", "--json", "--csv")
    assert result.exit_code == 2 and "give --json or --csv, not both" in result.stderr


def test_report_plot(models, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra plots")
    result = run("report", models / "plain", "--plot", tmp_path / "layers.png")
    assert result.exit_code == 0 and FC1 in result.stdout
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    result = run("report", models / "plain", "--plot", tmp_path / "layers.txt")
    assert (result.exit_code, result.stdout) == (2, "") and ".png" in result.stderr


def test_report_plot_without_matplotlib(models, tmp_path, monkeypatch):
    for name in [
        name for name in sys.modules if name.split(".")[0] == "matplotlib" or name.startswith("hf_autosparse.plots")
    ]:
        monkeypatch.delitem(sys.modules, name)

    class Absent:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "matplotlib":
                raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    result = run("report", models / "plain", "--plot", tmp_path / "layers.png")
    assert (result.exit_code, result.stdout) == (2, "") and 'pip install "hf-autosparse[plots]"' in result.stderr


# ---- pack, unpack ----


def test_pack_and_unpack(models, tmp_path):
    result = run("pack", models / "plain", tmp_path / "packed")
    sizes = [(directory / "model.safetensors").stat().st_size for directory in (models / "plain", tmp_path / "packed")]
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout == (
        f"packed 16 of 47 tensors: {sizes[0] / 1000:.1f} kB -> {sizes[1] / 1000:.1f} kB"
        f" ({sizes[1] / sizes[0]:.1%} of it), in {tmp_path / 'packed'}\n"
    )
    result = run("unpack", tmp_path / "packed", tmp_path / "plain")
    assert result.exit_code == 0 and result.stdout.startswith("unpacked 16 of 47 tensors")
    assert run("diff", models / "plain", tmp_path / "plain").exit_code == 0
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "plain")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("pack", "packed", "new"), "is packed already"),
        (("unpack", "plain", "new"), "no weight is packed"),
        (("pack", "plain", "packed"), "nothing is overwritten"),
        (("pack", "plain/model.safetensors", "new"), "is a file, expected the directory"),
        (("report", "plain/config.json"), "expected a .safetensors file or the directory"),
        (("report", "."), "holds neither"),
        (("diff", "plain", "./nothing"), "does not exist"),
    ],
)
def test_errors_are_one_line(arguments, message, models, monkeypatch):
    monkeypatch.chdir(models)
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1
    assert not (models / "new").exists()


# ---- diff ----


@pytest.mark.parametrize("a", ["plain", "sharded", "packed"])
@pytest.mark.parametrize("b", ["plain", "packed"])
def test_equal_however_stored(a, b, models):
    result = run("diff", models / a, models / b)
    assert result.exit_code == 0 and "47 tensors are equal, 0 differ" in result.stdout


@pytest.mark.parametrize("a", ["plain", "packed"])
def test_diff(a, models):
    result = run("diff", models / a, models / "other")
    assert result.exit_code == 1 and result.stderr == ""
    assert f"│ {FC1}.weight │ 2 values " in result.stdout and "+1 -1" in result.stdout
    assert "45 tensors are equal, 2 differ" in result.stdout


def saved(path, **tensors):
    save_file({name.replace("_", "."): tensor for name, tensor in tensors.items()}, path)
    return path


def test_diff_of_dense_models(tmp_path):
    a, b = (saved(tmp_path / f"{n}.safetensors", w=torch.full((2, 2), float(n))) for n in (1, 2))
    assert str(checkpoint_diff(a, a)) == "1 tensors are equal, 0 differ"
    zero = saved(tmp_path / "zero.safetensors", w=torch.zeros(2, 2))
    assert str(checkpoint_diff(b, zero)).endswith("0 tensors are equal, 1 differ\nzeros: 0.00% in A, 100.00% in B")


def test_diff_json(models):
    result = run("diff", models / "plain", models / "other", "--json")
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    bias, weight = values["different"]
    assert (values["equal"], weight["name"], weight["changed"]) == (45, f"{FC1}.weight", 2)
    assert (weight["a"]["zeros"], weight["b"]["zeros"], weight["shared_zeros"]) == (268, 268, 267)
    assert (weight["zeros_gained"], weight["zeros_lost"], weight["jaccard"]) == (1, 1, 267 / 269)
    assert weight["max_difference"] == pytest.approx(3.0) and bias["max_difference"] == pytest.approx(1.0)


def test_diff_by_hand(tmp_path):
    a = saved(
        tmp_path / "a.safetensors",
        shape=torch.zeros(2, 3),
        dtype=torch.ones(4),
        gone=torch.ones(1),
        nan=torch.tensor([float("nan"), 0.0, 1.0]),
        bad=torch.tensor([1.0, float("inf")]),
        step=torch.tensor(2**60),
        fp8=torch.tensor([0.0, 1.0, 2.0]).to(torch.float8_e4m3fn),
    )
    b = saved(
        tmp_path / "b.safetensors",
        shape=torch.ones(3, 2),
        dtype=torch.ones(4, dtype=torch.float16),
        new=torch.ones(1),
        nan=torch.tensor([float("nan"), -0.0, 1.0]),
        bad=torch.tensor([float("nan"), float("inf")]),
        step=torch.tensor(2**60 + 1),
        fp8=torch.tensor([1.0, 1.0, 0.0]).to(torch.float8_e4m3fn),
    )
    diff = checkpoint_diff(a, b)
    assert {row.name: row.what for row in diff.different} == {
        "bad": "1 values",
        "dtype": "dtype F32 -> F16",
        "fp8": "2 values",
        "gone": "only in A",
        "new": "only in B",
        "shape": "shape 2 x 3 -> 3 x 2",
        "step": "1 values",  # equal as float64
    }
    rows = {row.name: row for row in diff.different}
    assert rows["bad"].max_difference == float("inf") and rows["fp8"].max_difference == 2.0
    assert (rows["fp8"].zeros_gained, rows["fp8"].zeros_lost, rows["fp8"].jaccard) == (1, 1, 0.0)
    assert (rows["shape"].a.sparsity, rows["shape"].b.sparsity, rows["shape"].jaccard) == (1.0, 0.0, None)
    assert diff.equal == 1  # nan, in which -0.0 is 0.0
    assert (diff.zeros_a, diff.zeros_b, diff.shared_zeros) == (2, 2, 1)  # of the tensors that both have in one shape
    assert rows["bad"].max_difference == float("inf")
    assert [row["max_difference"] for row in json.loads(json.dumps(diff.to_dict(), allow_nan=False))["different"]][
        0
    ] is None


# ---- methods, help, version ----


def test_methods():
    result = run("methods")
    assert result.exit_code == 0 and "arXiv 2304.06941" in result.stdout
    assert all(f"│ {name} " in result.stdout for name in available_methods())


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and result.stdout.startswith(f"Usage: hf-autosparse {command} ")
    assert command == "methods" or f"  hf-autosparse {command} " in result.stdout.split("Example", 1)[1]


def test_general_help_lists_the_commands_in_full():
    result = run("--help")
    assert result.exit_code == 0 and all(f"  {command} " in result.stdout for command in COMMANDS)
    assert not any(line.endswith("...") for line in result.stdout.splitlines()[1:])


def test_version():
    assert run("--version").stdout == f"hf-autosparse {hf_autosparse.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["report"], ["report", "a", "b"], ["diff", "a"], ["--nonsense"], []]
)
def test_usage_errors(arguments):
    result = run(*arguments)
    assert result.exit_code == 2 and "Usage: hf-autosparse" in result.stderr + result.stdout


def test_the_console_script_is_this_one():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert list(scripts) == ["hf-autosparse"]
    assert callable(EntryPoint("hf-autosparse", scripts["hf-autosparse"], "console_scripts").load())


def test_starts_without_transformers(models):
    code = f"""
import sys
from hf_autosparse.cli import main
for arguments in (["--help"], ["report", "--help"], ["methods"], ["--version"], ["report", {str(models / "packed")!r}]):
    sys.argv = ["hf-autosparse", *arguments]
    try:
        main()
    except SystemExit as exit:
        assert not exit.code
    heavy = {{"transformers", "accelerate", "huggingface_hub", "matplotlib", "pandas"}} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# ---- Pipes and terminals ----


def test_a_stream_that_knows_no_box_characters(models):
    command = program("diff", models / "plain", models / "other")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (1, "")
    assert FC1 in result.stdout and "|" in result.stdout and "\x1b" not in result.stdout


def test_trouble_in_a_real_process(models):
    result = subprocess.run(program("diff", models / "plain", "./nothing"), capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "error: ./nothing does not exist\n")


def test_a_reader_that_stops_reading(models):
    command = program("report", models / "plain")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0


def test_long_names_are_whole_in_a_pipe(tmp_path):
    name = "block." * 60 + "weight"
    save_file({name: torch.eye(4)}, tmp_path / "model.safetensors")
    assert f"│ {name.removesuffix('.weight')} │" in run("report", tmp_path).stdout


def test_a_terminal_gets_colours_and_its_width(models):
    """On a pseudo-terminal of 60 columns: nothing is wider, and the title is in italics."""
    parent, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "60"}
    process = subprocess.Popen(program("report", models / "plain"), stdout=child, stderr=child, env=environment)
    os.close(child)
    output = b""
    try:
        while chunk := os.read(parent, 65536):
            output += chunk
    except OSError:  # Linux's way to say that the other side is closed
        pass
    os.close(parent)
    assert process.wait() == 0
    text = output.decode()
    assert "\x1b[3m" in text
    assert max(len(line) for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()) == 60


def test_interrupted(models, tmp_path):
    """Ctrl-C while packing: no half-written directory, and the shell's exit code for it."""
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where a shell has it ignored
from hf_autosparse.serialization import pack as packed
encode = packed.encode
def interrupted(tensor):
    os.kill(os.getpid(), signal.SIGINT)
    return encode(tensor)
packed.encode = interrupted
sys.argv = ["hf-autosparse", "pack", {str(models / "plain")!r}, {str(tmp_path / "out")!r}]
from hf_autosparse.cli import main
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (130, "") and list(tmp_path.iterdir()) == []


# ---- Hostile files ----


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "])
@pytest.mark.parametrize("command", ["report", "diff", "pack", "unpack"])
def test_no_safetensors_file(content, command, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    second = [tmp_path] if command == "diff" else [] if command == "report" else [tmp_path / "out"]
    result = run(command, tmp_path, *second)
    empty = content.endswith(b"{}      ")
    assert result.exit_code == (0 if empty and command in ("report", "diff") else 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_hostile_names_in_errors(tmp_path):
    tensors = {"\x1b[2Jx_values": torch.zeros(1, dtype=torch.uint8)}
    save_sealed(tensors, tmp_path / "model.safetensors")
    result = run("report", tmp_path)
    assert result.exit_code == 2 and r"\x1b[2Jx_values" in result.stderr and "\x1b" not in result.stderr


def test_a_damaged_trajectory(models, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((models / "plain" / "model.safetensors").read_bytes())
    Trajectory(1, [FC1], {}, [Moment(0, 0.0, None, (0.7,), (0.0,), None)]).save(tmp_path)
    assert run("report", tmp_path).exit_code == 0
    (tmp_path / TRAJECTORY).write_text("[")
    result = run("report", tmp_path)
    assert result.exit_code == 2 and TRAJECTORY in result.stderr


# ---- The Hub ----


@pytest.fixture
def hub():
    server = pytest.importorskip("hub_server", reason="the Hub for tests is not there")
    with server.HubServer() as running:
        yield running


@pytest.fixture
def online(hub, tmp_path):
    """An environment in which that server is the Hub, with a cache of its own and nobody logged in."""
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    return {key: value for key, value in os.environ.items() if key != "HF_TOKEN"} | own


def publish(hub, name, directory, private=False):
    from hub_server import File, Repo

    hub.repos[name] = repo = Repo(private)
    files = {path.name: File(path.read_bytes(), lfs=path.suffix == ".safetensors") for path in directory.iterdir()}
    for other in ("pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx"):
        files[other] = File(b"of no use", lfs=True)
    repo.blobs |= {file.sha256: file.content for file in files.values()}
    repo.commit("main", "model", files)


def test_repositories(hub, online, models, tmp_path):
    publish(hub, "me/plain", models / "plain")
    publish(hub, "me/sharded", models / "sharded")
    publish(hub, "me/packable", models / "plain")
    commands = [("report", f"me/{form}", "--json") for form in ("plain", "sharded")]
    *reports, (code, _, err) = run_all([*commands, ("pack", "me/packable", tmp_path / "out")], online)
    assert (code, err) == (0, "")
    names = {path.name for path in (models / "plain").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert run("diff", models / "plain", tmp_path / "out").exit_code == 0
    for (code, out, err), form in zip(reports, ("plain", "sharded"), strict=True):
        assert (code, err) == (0, "") and len(json.loads(out)["layers"]) == 17
        fetched = {path.rpartition("/")[2] for _, path in hub.log if f"me/{form}/resolve/" in path}
        weights = {path.name for path in (models / form).glob("model*")}
        assert fetched == weights | {"config.json"}
    offline = online | {"HF_HUB_OFFLINE": "1"}
    cached, absent = run_all([("report", "me/sharded"), ("report", "me/absent")], offline)
    assert cached[0] == 0 and FC1 in cached[1]
    assert absent[0] == 2 and "offline mode is enabled" in absent[2] and absent[2].count("\n") == 1


def test_repositories_that_give_nothing(hub, online, models):
    publish(hub, "me/private", models / "plain", private=True)
    publish(hub, "me/forbidden", models / "plain")
    publish(hub, "me/empty", models / "plain")
    hub.repos["me/empty"].commit("main", "emptied", {})
    hub.fail("HEAD", "/me/forbidden/resolve/", 403, times=100)
    messages = {
        "me/private": "log in with `hf auth login` or set HF_TOKEN",
        "me/missing": "me/missing does not exist, neither here nor on the Hub",
        "me/empty": "the repository me/empty holds neither model.safetensors",
        "me/forbidden": "could not be downloaded: 403 Forbidden",
        "not a repo": "is no name of a Hub repository",
    }
    results = run_all([("report", repo) for repo in messages], online)
    for (code, out, err), message in zip(results, messages.values(), strict=True):
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1, err


def test_the_hub_out_of_reach(tmp_path):
    own = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    ((code, out, err),) = run_all([("report", "me/model")], os.environ | own)
    assert (code, out) == (2, "") and "could not be downloaded" in err and err.count("\n") == 1, err
