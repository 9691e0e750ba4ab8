"""Pushing to a Hub that the test starts, and loading back, through huggingface_hub and transformers themselves."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import Future
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, TrainerCallback

from hf_autosparse import AutoSparseConfig, finalize, flops, pack, push_to_hub, sparse_layers, sparsify, sparsity
from hf_autosparse.reports.checkpoint import checkpoint_report
from hub_server import TOKEN, HubServer
from paths import PYTHONPATH
from tiny import StopAt, assert_same_state, tiny_pairs, tiny_trainer, tiny_translator

# huggingface_hub's own, when it sends a file
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

PRIVATE = ("state", "manifest", "loss_", ".tmp", ".bin", ".pt", ".pth", ".pkl", ".saving", ".pushing", "checkpoint")
PLOTS = {"plots/layers.png", "plots/training.png"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub, and this process set up as if it had been started with HF_ENDPOINT and HF_HUB_DISABLE_XET."""
    with HubServer() as server:
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


class Release(TrainerCallback):
    """Lets a held upload go on when training ends: Trainer waits for it then."""

    def __init__(self, upload):
        self.upload = upload

    def on_train_end(self, args, state, control, **kwargs):
        assert self.upload.reached.wait(30)
        self.left = sorted(path.name for path in Path(args.output_dir).glob("checkpoint-*"))
        self.upload.release.set()


class WaitForPush(TrainerCallback):
    """Lets each push end before the next begins, so that the test knows which one a fault hits."""

    def on_step_begin(self, args, state, control, **kwargs):
        push = self.trainer.push_in_progress
        for job in push.jobs if push is not None else []:
            job.exception()


@pytest.fixture
def environment(hub, tmp_path):
    """For a process of its own."""
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_CACHE": str(tmp_path / "own")}
    inherited = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    return inherited | own | {"PYTHONPATH": PYTHONPATH}


def sparse_translator(share: float = 0.6):
    return sparsify(tiny_translator(), AutoSparseConfig(threshold_init={"sparsity": share}))


def loaded(repo_id, **kwargs):
    return AutoModelForSeq2SeqLM.from_pretrained(repo_id, **kwargs)


def batch():
    """What the trainer's first batch was, in shape."""
    return {name: torch.stack([pair[name] for pair in tiny_pairs(4)]).clamp(min=0) for name in ("input_ids", "labels")}


def assert_deployed(model, sparse_model):
    """`model` is what `sparse_model` computes with."""
    for name, layer in sparse_layers(sparse_model).items():
        assert torch.equal(model.get_submodule(name).weight, layer.sparse_weight()), name
    assert torch.equal(model.model.shared.weight, sparse_model.model.shared.weight)


def assert_public(files):
    assert not [name for name in files if any(word in name for word in PRIVATE)]


# ---- The trainer, after training ----


def test_pushed_model_loads_and_its_card_states_what_was_measured(hub, tmp_path):
    trainer = tiny_trainer(tmp_path / "run", hub_model_id="translator", max_steps=4)
    trainer.train()
    measured = trainer.evaluate()
    trainer.push_to_hub(dense_metrics={"eval_loss": 4.0}, language="en", tags="tiny")
    assert trainer.hub_model_id == "me/translator"

    files = hub.repos["me/translator"].files
    expected = {".gitattributes", "README.md", "autosparse_config.json", "config.json", "generation_config.json"}
    assert files.keys() == expected | {"model.safetensors", "autosparse_trajectory.json"} | PLOTS
    assert_deployed(loaded("me/translator"), trainer.model)

    card = ModelCard.load("me/translator")
    (result,) = card.data.eval_results
    assert (result.metric_name, result.metric_value) == ("eval_loss", measured["eval_loss"])
    assert {"sparse", "autosparse", "tiny", "generated_from_trainer"} <= set(card.data.tags)
    assert set(card.data.tags) == set(huggingface_hub.HfApi().model_info("me/translator").tags)
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text2text-generation"
    loss = measured["eval_loss"]
    assert f"| `eval_loss` | 4 | {loss:.5g} | {(loss - 4) / 4:+.2%} |" in card.text
    assert f"| **all sparse layers** | **16** | **4,608** | **{sparsity(trainer.model):.2%}** |" in card.text
    keys = [layer.sparse_weight() for name, layer in sparse_layers(trainer.model).items() if name.endswith("k_proj")]
    share = sum(int((w == 0).sum()) for w in keys) / sum(w.numel() for w in keys)
    assert f"| attention key | 3 | 768 | {share:.2%} |" in card.text
    report = flops(trainer.model, batch(), trainer.trajectory)
    assert f"| inference | {report.inference_fraction:.4f} |" in card.text
    assert f"| training | {report.training_fraction:.4f} |" in card.text and f"{report.macs:,} for one" in card.text
    assert 'from_pretrained("me/translator")' in card.text and "import hf_autosparse" not in card.text
    assert "trained from scratch" in card.text and "learning_rate: 0.01" in card.text  # Trainer's own part
    assert card.content == (tmp_path / "run" / "README.md").read_text()


def test_packed_push_keeps_the_local_files_plain_and_says_how_to_load(hub, tmp_path):
    config = AutoSparseConfig(threshold_init={"sparsity": 0.6})
    trainer = tiny_trainer(tmp_path / "run", config=config, hub_model_id="me/packed")
    trainer.push_to_hub(packed=True)
    repo = hub.repos["me/packed"]
    assert b"quantization_config" in repo.files["config.json"]
    assert_deployed(loaded("me/packed"), trainer.model)
    assert_deployed(loaded(str(tmp_path / "run")), trainer.model)  # plain
    sizes = len(repo.files["model.safetensors"]), (tmp_path / "run" / "model.safetensors").stat().st_size
    card = ModelCard.load("me/packed")
    assert "import hf_autosparse" in card.text and card.data.library_name == "hf_autosparse"
    assert "{:,} bytes instead of {:,}".format(*sizes) in card.text
    assert "import hf_autosparse" not in (tmp_path / "run" / "README.md").read_text()

    trainer.push_to_hub()  # plain again, in the same repository
    assert b"quantization_config" not in repo.files["config.json"]
    assert "import hf_autosparse" not in ModelCard.load("me/packed").text
    assert_deployed(loaded("me/packed"), trainer.model)


def test_push_in_the_background_takes_what_was_there_when_it_was_called(hub, tmp_path):
    upload = hub.fail("PUT", "^/lfs/", "hold")
    config = AutoSparseConfig(threshold_init={"sparsity": 0.6})
    trainer = tiny_trainer(tmp_path / "run", config=config, max_steps=2, callbacks=[Release(upload)])
    future = trainer.push_to_hub(blocking=False, packed=True)
    assert isinstance(future, Future)
    assert upload.reached.wait(30), future.exception()
    before = {name: layer.sparse_weight().clone() for name, layer in sparse_layers(trainer.model).items()}
    trainer.train()
    trainer.save_model()
    model = loaded("me/run", revision=future.result().oid)
    assert all(torch.equal(model.get_submodule(name).weight, weight) for name, weight in before.items())
    assert not list((tmp_path / "run").glob(".pushing-*"))


# ---- The trainer, during training ----


@pytest.mark.parametrize("strategy", ["every_save", "end", "checkpoint", "all_checkpoints"])
def test_every_commit_during_training_loads_without_this_package(hub, tmp_path, strategy):
    directory = tmp_path / "run"
    trainer = tiny_trainer(
        directory,
        push_to_hub=True,
        hub_model_id="me/run",
        hub_strategy=strategy,
        hub_always_push=True,
        hub_token="hf_loopback",
        save_strategy="steps",
        save_steps=2,
        max_steps=4,
    )
    (directory / ".saving").mkdir(parents=True)  # a killed run leaves these
    (directory / ".pushing-old").mkdir()
    for name in (".saving/model.safetensors", ".pushing-old/x", "config.77.tmp", "autosparse_state.safetensors"):
        (directory / name).write_bytes(b"left over")
    trainer.train()
    trainer.save_model()

    repo = hub.repos["me/run"]
    commits = repo.branches["main"][1:]
    folders = {"checkpoint": ["last-checkpoint"], "all_checkpoints": ["checkpoint-2", "checkpoint-4"]}.get(strategy, [])
    pushed = [] if strategy == "end" else [2, 4]
    messages = []
    for step in pushed:
        messages += [f"Training in progress, step {step}"] * (2 if folders else 1)
    assert [commit.message.removesuffix(", checkpoint") for commit in commits] == [*messages, "Model save"]
    for commit in commits:
        model = loaded("me/run", revision=commit.oid)
        step = commit.message.removesuffix(", checkpoint").rpartition(" ")[2]
        source = directory / f"checkpoint-{step}" if step.isdigit() else directory
        for name, weight in loaded(str(source)).state_dict().items():
            assert torch.equal(model.state_dict()[name], weight), (commit.message, name)
        assert_public(name for name in commit.files if name.split("/")[0] not in folders)
    assert {name.split("/")[0] for name in repo.files if "/" in name} == {*folders, "plots"}
    for folder in folders:
        local = directory / ("checkpoint-4" if folder == "last-checkpoint" else folder)
        assert {name.removeprefix(f"{folder}/") for name in repo.files if name.startswith(f"{folder}/")} == {
            path.name for path in local.iterdir()
        }
    assert not list(directory.glob(".pushing-*"))


def test_training_resumes_from_a_checkpoint_on_the_hub(hub, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole = tiny_trainer(tmp_path / "whole", **settings)
    whole.train()
    pushing = settings | {"push_to_hub": True, "hub_model_id": "me/run", "hub_strategy": "checkpoint"}
    tiny_trainer(tmp_path / "killed", callbacks=[StopAt(3)], **pushing).train()
    fetched = snapshot_download("me/run", allow_patterns="last-checkpoint/*", local_dir=tmp_path / "fetched")
    resumed = tiny_trainer(tmp_path / "elsewhere", **settings)
    resumed.train(resume_from_checkpoint=os.path.join(fetched, "last-checkpoint"))
    assert_same_state(whole.model, resumed.model)


def test_no_file_carries_the_token(hub, tmp_path):
    settings = {"hub_token": TOKEN, "hub_strategy": "checkpoint", "save_strategy": "steps", "save_steps": 2}
    tiny_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="me/run", max_steps=2, **settings).train()
    files = [content for commit in hub.repos["me/run"].branches["main"] for content in commit.files.items()]
    assert any(name == "last-checkpoint/training_args.bin" for name, _ in files)
    assert not [name for name, file in files if TOKEN.encode() in file.content]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_upload_survives_the_deletion_of_its_checkpoint(hub, tmp_path):
    release = Release(hub.fail("PUT", "^/lfs/", "hold"))
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "save_total_limit": 1}
    pushing = {"push_to_hub": True, "hub_model_id": "me/run", "hub_strategy": "checkpoint", "hub_always_push": True}
    trainer = tiny_trainer(tmp_path / "run", callbacks=[release], **settings, **pushing)
    trainer.train()
    assert release.left == ["checkpoint-6"]
    commits = hub.repos["me/run"].branches["main"][1:]
    steps = [2, 2, 4, 4, 6, 6]  # the model, and then its checkpoint
    assert [int(c.message.removesuffix(", checkpoint").split()[-1]) for c in commits] == steps
    assert all("last-checkpoint/optimizer.pt" in c.files for c in commits[1:])


def test_failed_push_does_not_stop_training_and_is_reported(hub, tmp_path, caplog):
    hub.fail("POST", "/commit/", 507, nth=1)
    hub.fail("POST", "/commit/", 507, nth=3)
    trainer = tiny_trainer(
        tmp_path / "run",
        push_to_hub=True,
        hub_model_id="me/run",
        hub_always_push=True,
        save_strategy="steps",
        save_steps=2,
        max_steps=6,
        callbacks=[wait := WaitForPush()],
    )
    wait.trainer = trainer
    with caplog.at_level(logging.WARNING, "hf_autosparse"):
        assert trainer.train().global_step == 6
    assert [c.message for c in hub.repos["me/run"].branches["main"][1:]] == ["Training in progress, step 4"]
    told = [(r.levelname, r.message) for r in caplog.records if "a push to me/run failed" in r.message]
    assert [level for level, _ in told] == ["WARNING", "ERROR"]
    assert "this save is pushed instead" in told[0][1] and "call trainer.push_to_hub() to repeat it" in told[1][1]
    trainer.push_to_hub()
    assert_deployed(loaded("me/run"), trainer.model)


# ---- Uploads that break ----


def sharded(directory):
    model = finalize(sparse_translator())
    model.save_pretrained(directory, max_shard_size="12KB")
    return model, len(list(directory.glob("*.safetensors")))


def test_broken_push_leaves_the_old_model_and_is_repeated_by_calling_again(hub, tmp_path):
    old, new = sparse_translator(0.3), sparse_translator(0.6)
    push_to_hub(old, "me/model")
    hub.fail("POST", "/commit/", "drop")
    with pytest.raises(Exception, match="disconnected|closed|reset"):
        push_to_hub(new, "me/model")
    assert_deployed(loaded("me/model"), old)
    sent = hub.count("PUT", "^/lfs/")
    push_to_hub(new, "me/model")
    assert_deployed(loaded("me/model"), new)
    assert hub.count("PUT", "^/lfs/") == sent == 2  # the new weights were there already
    assert len(hub.repos["me/model"].branches["main"]) == 3


def test_dropped_connection_is_retried(hub):
    model = sparse_translator()
    hub.fail("PUT", "^/lfs/", "drop")
    push_to_hub(model, "me/model")
    assert hub.count("PUT", "^/lfs/") == 2
    assert_deployed(loaded("me/model"), model)


def test_killed_push_leaves_the_old_model_and_sends_only_what_is_missing(hub, environment, tmp_path):
    old = sparse_translator(0.3)
    push_to_hub(old, "me/model")
    model, shards = sharded(tmp_path / "new")
    assert shards >= 3
    repo = hub.repos["me/model"]
    upload = hub.fail("PUT", "^/lfs/", "hold", nth=2)
    program = f"from hf_autosparse import push_to_hub; push_to_hub({str(tmp_path / 'new')!r}, 'me/model')"
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    assert upload.reached.wait(120)
    while len(repo.blobs) < shards:  # all but one, and the old model's
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(repo.branches["main"]) == 2
    assert_deployed(loaded("me/model"), old)
    sent = hub.count("PUT", "^/lfs/")
    push_to_hub(tmp_path / "new", "me/model")
    assert hub.count("PUT", "^/lfs/") == sent + 1
    for name, weight in loaded("me/model").state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])


def test_old_shards_go_with_the_commit_that_brings_the_new_weights(hub, tmp_path):
    sharded(tmp_path / "sharded")
    push_to_hub(tmp_path / "sharded", "me/model")
    repo, model = hub.repos["me/model"], sparse_translator()
    assert "model.safetensors.index.json" in repo.files
    push_to_hub(model, "me/model")
    assert [name for name in repo.files if "model" in name] == ["model.safetensors"]
    assert len(repo.branches["main"]) == 3
    assert_deployed(loaded("me/model"), model)


# ---- The function ----


def test_directory_is_pushed_with_its_own_card_kept(hub, tmp_path):
    model = finalize(sparse_translator())
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\n# Mine\n\nMy words.\n")
    for name in ("checkpoint-3/model.safetensors", "runs/events.out.tfevents.1", "optimizer.pt", ".cache/x"):
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes(b"0")
    metrics = {"metrics": {"test_bleu": 37.17}, "dense_metrics": {"test_bleu": 37.77}}
    push_to_hub(tmp_path / "model", "me/model", packed=True, **metrics)
    card = ModelCard.load("me/model")
    assert card.data.license == "mit" and card.data.tags == ["mine", "sparse", "autosparse"]
    assert "My words." in card.text and "| `test_bleu` | 37.77 | 37.17 | -1.59% |" in card.text
    assert f"**{checkpoint_report(tmp_path / 'model').sparsity:.2%}**" in card.text
    files = {".gitattributes", "README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert hub.repos["me/model"].files.keys() == files | {"runs/events.out.tfevents.1"}
    for name, weight in loaded("me/model").state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])


def test_packed_directory_goes_up_as_it_is_when_packed_is_asked_for(hub, tmp_path):
    pack(sparse_translator(), tmp_path / "packed")
    with pytest.raises(ValueError, match="holds packed weights.*pass packed=True"):
        push_to_hub(tmp_path / "packed", "me/model")
    assert not hub.repos
    push_to_hub(tmp_path / "packed", "me/model", packed=True)
    content = (tmp_path / "packed" / "model.safetensors").read_bytes()
    assert hub.repos["me/model"].files["model.safetensors"] == content
    assert "import hf_autosparse" in ModelCard.load("me/model").text


def test_model_of_ones_own(hub, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(3)))
    finalize(sparsify(model, AutoSparseConfig(threshold_init={"sparsity": 0.7})))
    push_to_hub(model, "me/plain")
    path = huggingface_hub.hf_hub_download("me/plain", "model.safetensors")
    assert torch.equal(load_file(path)["1.weight"], model[1].weight)
    assert "load_state_dict" in ModelCard.load("me/plain").text
    push_to_hub(model, "me/plain", packed=True)
    assert "hf_autosparse.unpack" in ModelCard.load("me/plain").text


def test_branch_and_pull_request(hub):
    models = [sparse_translator(share) for share in (0.3, 0.5, 0.7)]
    push_to_hub(models[0], "me/model")
    push_to_hub(models[1], "me/model", revision="experiments/two", commit_message="Try two")
    info = push_to_hub(models[2], "me/model", create_pr=True)
    assert info.pr_revision == "refs/pr/1"
    for revision, model in zip(("main", "experiments/two", "refs/pr/1"), models, strict=True):
        assert_deployed(loaded("me/model", revision=revision), model)
    assert hub.repos["me/model"].branches["experiments/two"][-1].message == "Try two"


def test_what_is_no_saved_model_is_refused_before_anything_is_made_on_the_hub(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory .*absent: push_to_hub takes a model or the directory"):
        push_to_hub(tmp_path / "absent", "me/model")
    with pytest.raises(FileNotFoundError, match="holds neither model.safetensors"):
        push_to_hub(tmp_path, "me/model")
    sharded(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json holds a list, expected a JSON object"):
        push_to_hub(tmp_path / "model", "me/model")
    with pytest.raises(ValueError, match="dense_metrics has 'bleu', which was not measured.*measured were test_bleu"):
        push_to_hub(sparse_translator(), "me/model", metrics={"test_bleu": 1.0}, dense_metrics={"bleu": 2.0})
    with pytest.raises(ValueError, match=r"metrics\['test_bleu'\] = inf is not allowed: use a finite number"):
        push_to_hub(sparse_translator(), "me/model", metrics={"test_bleu": float("inf")})
    with pytest.raises(ValueError, match="processing_class goes with a model; with a directory, save it there first"):
        push_to_hub(tmp_path / "model", "me/model", processing_class=object())
    with pytest.raises(ValueError, match="no weight is packed, or has enough zeros"):
        push_to_hub(tiny_translator(), "me/model", packed=True)
    assert not hub.repos


# ---- Rights ----


def test_private_repository_is_refused_without_a_token(hub, tmp_path, monkeypatch):
    model = sparse_translator()
    push_to_hub(model, "me/secret", private=True)
    assert hub.repos["me/secret"].private
    assert_deployed(loaded("me/secret"), model)
    hub.tokens["hf_other"] = "other"
    for token, status in (("hf_other", 403), ("hf_wrong", 401)):
        with pytest.raises(HfHubHTTPError, match="Pushing to 'me/secret' needs a token with write access"):
            push_to_hub(model, "me/secret", token=token)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / f"empty-{status}"))
        with pytest.raises(OSError, match="private repository"):
            loaded("me/secret", token=token)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="private repository"):
        loaded("me/secret")
    with pytest.raises(HfHubHTTPError, match="Pushing to 'me/secret' needs a token"):
        push_to_hub(model, "me/secret")
    with pytest.raises(HfHubHTTPError, match="Pushing to 'me/run' needs a token"):
        tiny_trainer(tmp_path / "run", push_to_hub=True, hub_model_id="me/run")
    assert len(hub.repos["me/secret"].branches["main"]) == 2


# ---- Fresh processes ----


def test_fresh_process_loads_plain_without_this_package_and_packed_after_importing_it(hub, environment, tmp_path):
    model = sparse_translator()
    push_to_hub(model, "me/plain")
    push_to_hub(model, "me/packed", packed=True)
    program = """
    import sys, torch
    from transformers import AutoModelForSeq2SeqLM
    plain = AutoModelForSeq2SeqLM.from_pretrained("me/plain")
    assert "hf_autosparse" not in sys.modules
    import hf_autosparse
    packed = AutoModelForSeq2SeqLM.from_pretrained("me/packed")
    pairs = zip(plain.state_dict().values(), packed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    print(hf_autosparse.sparsity(packed))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert float(result.stdout) == sparsity(loaded("me/plain"))
