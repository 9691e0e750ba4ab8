"""The example run whole: saved files, resuming, two processes, accumulation, its errors."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

from examples.vision import train as example
from examples.vision.image_data import DataConfig, ImageCollator, load_split
from examples.vision.image_trainer import ClassificationLoss, scaled_learning_rate
from paths import HELPERS, PYTHONPATH, ROOT
from tiny_vision import TINY, recording, tiny_recipe


@pytest.fixture
def trainers(monkeypatch):
    """`trainers(stop_at)`: the list in which the example's next trainers note themselves."""
    classes = {name: getattr(example, name) for name in ("SparseTrainer", "DenseTrainer")}

    def start(stop_at: int = 10**9) -> list:
        for name, cls in classes.items():
            monkeypatch.setattr(example, name, cls)
        return recording(example, stop_at)

    return start


def log_of(trainer) -> list[dict]:
    timing = ("runtime", "per_second", "train_loss", "total_flos")
    return [{k: v for k, v in row.items() if not any(t in k for t in timing)} for row in trainer.state.log_history]


@pytest.mark.parametrize("sparse", [True, False])
def test_train_saves_model_predictions_and_figures(tmp_path, sparse):
    changes = [] if sparse else ["sparse=null"]
    result = example.train(tiny_recipe(tmp_path / "run", "cifar_resnet", *changes))
    assert result.pop("process") == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert result["steps"] == 8 and 0 <= result["top1"] <= result["top5"] <= 1 and result["corrupt_images"] == 0
    assert ("sparsity" in result) == sparse
    names = (tmp_path / "run" / "predictions.txt").read_text().split()
    labels = load_split(DataConfig(size=16, resize=16), "validation", None).labels
    assert len(names) == 360 and np.mean(labels == [int(n) for n in names]) == pytest.approx(result["top1"])

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label[3] == "3" and model.config.label2id["9"] == 9
    if sparse:
        zeros = (model.resnet.encoder.stages[1].layers[0].layer[0].convolution.weight == 0).float().mean()
        assert zeros == pytest.approx(result["sparsity"], abs=0.25) and zeros > 0
    with pytest.raises(FileExistsError, match="holds an earlier run: give --resume"):
        example.train(tiny_recipe(tmp_path / "run"))


def streaming_recipe(folder: Path, output: Path, *changes: str) -> dict:
    """Dark and bright images in four files, read while training; eight steps are two epochs."""
    features = datasets.Features({"img": datasets.Image(), "y": datasets.ClassLabel(names=["dark", "bright"])})
    for name in ("train-0", "train-1", "train-2", "train-3", "val"):
        rows: dict[str, list] = {"img": [], "y": []}
        for i in range(10):
            file = io.BytesIO()
            Image.new("RGB", (16, 16), (20 + 3 * i + 150 * (i % 2),) * 3).save(file, "PNG")
            rows["img"].append({"bytes": file.getvalue(), "path": None})
            rows["y"].append(i % 2)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}.parquet")
    data = {"source": "parquet", "streaming": "true", "train": f"{folder}/train-*.parquet", "label_column": "y"}
    data |= {"validation": f"{folder}/val.parquet", "image_column": "img", "max_train_images": "null"}
    data |= {"cache_dir": f"{folder}/cache", "shuffle_buffer": "8"}
    settings = [f"data.{key}={value}" for key, value in data.items()]
    settings += ["training.per_device_train_batch_size=10", "training.learning_rate=0.1"]
    return tiny_recipe(output, "cifar_resnet", *settings, *changes)


def test_a_stream_trains_and_resumes(tmp_path, trainers):
    saving = ["training.save_strategy=steps", "training.save_steps=1"]
    runs = trainers()
    result = example.train(streaming_recipe(tmp_path, tmp_path / "whole", *saving))
    assert result["steps"] == 8 and result["corrupt_images"] == 0 and 0 < result["sparsity"] < 1
    assert len((tmp_path / "whole" / "predictions.txt").read_text().split()) == 10
    stopped = trainers(stop_at=5)
    example.train(streaming_recipe(tmp_path, tmp_path / "cut", *saving))
    (tmp_path / "cut" / "result.json").unlink()
    assert stopped[0].state.global_step == 5
    resumed = trainers()
    example.train(streaming_recipe(tmp_path, tmp_path / "cut", *saving), resume=True)
    assert all(torch.equal(value, resumed[0].final[key]) for key, value in runs[0].final.items())


def test_what_was_saved_is_what_was_evaluated(tmp_path):
    """The saved model, in a pipeline of transformers, predicts what the run said, BatchNorm statistics included."""
    example.train(tiny_recipe(tmp_path / "run", "mobilenet_v1"))
    names = (tmp_path / "run" / "predictions.txt").read_text().split()
    data = DataConfig(size=16, resize=16, mean=[0.3] * 3, std=[0.35] * 3)
    images = load_split(data, "validation", None)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run").eval()
    with torch.no_grad():
        logits = model(ImageCollator(data.mean, data.std)([images[i] for i in range(60)])["pixel_values"]).logits
    assert [str(label) for label in logits.argmax(-1).tolist()] == names[:60]
    classify = pipeline("image-classification", model=str(tmp_path / "run"), device="cpu")
    outputs = classify([images.source.open(i) for i in range(20)], top_k=1)
    assert [output[0]["label"] for output in outputs] == names[:20]


@pytest.mark.parametrize("model", ["cifar_resnet", "vit"])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, trainers, model):
    """Killed in the second of four epochs, resumed with other workers: weights and log are the same bits."""
    changes = ["data.max_train_images=80", "training.max_steps=12", "training.save_strategy=steps"]
    changes += ["training.save_steps=5", "training.eval_strategy=steps", "training.eval_steps=4"]
    started = trainers()
    example.train(tiny_recipe(tmp_path / "whole", model, *changes))
    killed = trainers(stop_at=5)
    example.train(tiny_recipe(tmp_path / "killed", model, *changes))
    (tmp_path / "killed" / "result.json").unlink()
    resumed = trainers()
    example.train(tiny_recipe(tmp_path / "killed", model, *changes, "training.dataloader_num_workers=1"), resume=True)
    whole, again = started[0], resumed[0]
    assert killed[0].state.global_step == 5 and again.state.global_step == 12
    assert all(torch.equal(whole.final[key], again.final[key]) for key in whole.final)
    assert log_of(whole) == log_of(again)
    saved = [load_file(tmp_path / run / "model.safetensors") for run in ("whole", "killed")]
    assert saved[0].keys() == saved[1].keys() and all(torch.equal(saved[0][k], saved[1][k]) for k in saved[0])


BATCH = "training.per_device_train_batch_size={}"
ONE_STEP = ["lr_batch_size=16", "data.max_train_images=70", "training.max_steps=9", "training.eval_strategy=epoch"]
DENSE = ["sparse=null"]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> dict[str, Path]:
    """Name -> folder of a run in two processes."""
    folder = tmp_path_factory.mktemp("two")
    shared = [BATCH.format(8), "training.per_device_eval_batch_size=50"]
    jobs = {
        "sparse": ["convnext", [*ONE_STEP, *shared]],
        "dense": ["convnext", [*ONE_STEP, *shared, *DENSE]],
        "batch_norm": ["cifar_resnet", shared],
    }
    given = json.dumps([[str(folder / name), *job] for name, job in jobs.items()])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    command += [str(HELPERS / "vision_worker.py"), given]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return {name: folder / name for name in jobs}


def report_of(run: Path) -> dict:
    report = json.loads((run / "report.json").read_text())
    assert report["world"] == 2
    return report


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_two_processes_equal_one_without_batch_norm(tmp_path, trainers, two_processes, kind):
    """ConvNeXt has no BatchNorm: the same weights, losses and accuracies, the uneven last batches included.

    70 training images: 4 global batches of 16 and one of 6. 360 validation images in batches of 32, or of 2 x 50.
    """
    started = trainers()
    changes = [*ONE_STEP, BATCH.format(16), *(DENSE if kind == "dense" else [])]
    example.train(tiny_recipe(tmp_path / "one", "convnext", *changes))
    state, report = torch.load(two_processes[kind] / "state.pt"), report_of(two_processes[kind])
    for name, tensor in started[0].final.items():
        torch.testing.assert_close(state[name], tensor, atol=1e-5, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    compared = set()
    for row, other in zip(log_of(started[0]), report["rows"], strict=True):
        for key in {"loss", "eval_top1", "eval_top5", "sparsity"} & row.keys():
            assert other[key] == pytest.approx(row[key], rel=1e-3, abs=2e-3), key
            compared.add(key)
    assert {"loss", "eval_top1", "eval_top5"} <= compared


def test_two_processes_evaluate_the_model_that_is_saved(two_processes):
    """With BatchNorm the training differs; but accuracy is of one model, the saved one, over all images exactly."""
    model = AutoModelForImageClassification.from_pretrained(two_processes["batch_norm"]).eval()
    data = DataConfig(size=16, resize=16, mean=[0.3] * 3, std=[0.35] * 3)
    images = load_split(data, "validation", None)
    batch = ImageCollator(data.mean, data.std)([images[i] for i in range(360)])
    with torch.no_grad():
        hits = model(batch["pixel_values"]).logits.argmax(-1) == batch["labels"]
    assert report_of(two_processes["batch_norm"])["top1"] == pytest.approx(hits.float().mean().item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_accumulated_batches_equal_one(tmp_path, trainers, kind):
    results = []
    for batch, accumulated in ((16, 1), (4, 4)):
        started = trainers()
        changes = [*ONE_STEP, *(DENSE if kind == "dense" else []), "data.max_train_images=64", BATCH.format(batch)]
        changes.append(f"training.gradient_accumulation_steps={accumulated}")
        example.train(tiny_recipe(tmp_path / str(batch), "convnext", *changes))
        results.append(started[0])
    one, four = results
    assert one.args.learning_rate == four.args.learning_rate
    for name, tensor in one.final.items():
        torch.testing.assert_close(four.final[name], tensor, atol=1e-5, rtol=1e-3)
    for row, other in zip(log_of(one), log_of(four), strict=True):
        if "loss" in row:
            assert other["loss"] == pytest.approx(row["loss"], rel=1e-3, abs=1e-3)


def test_learning_rate_is_scaled_with_the_global_batch_and_said_so(tmp_path, trainers, capsys):
    assert scaled_learning_rate(0.256, 1024, 256) == pytest.approx(1.024)
    assert scaled_learning_rate(0.256, 1024, None) == 0.256
    started = trainers()
    changes = ["lr_batch_size=64", BATCH.format(8), "training.gradient_accumulation_steps=2", "training.max_steps=1"]
    example.train(tiny_recipe(tmp_path, "cifar_resnet", *changes, "sparse.threshold_lr=0.04"))
    printed = capsys.readouterr().out
    assert "global batch 16 = 1 process(es) x 8 x 2 accumulated; learning rate 0.05 x 0.25 = 0.0125" in printed
    assert started[0].args.learning_rate == pytest.approx(0.0125)
    assert [group["initial_lr"] for group in started[0].optimizer.param_groups] == pytest.approx([0.0125, 0.0125, 0.01])


@pytest.mark.parametrize(("everything", "decayed"), [("true", {0.0005}), ("false", {0.0005, 0.0})])
def test_what_is_decayed(tmp_path, trainers, everything, decayed):
    started = trainers()
    changes = [f"decay_everything={everything}", "training.max_steps=1", "sparse.threshold_weight_decay=0.3"]
    example.train(tiny_recipe(tmp_path, "cifar_resnet", *changes))
    groups = started[0].optimizer.param_groups
    assert {g["weight_decay"] for g in groups[:-1] if g["params"]} == decayed
    assert groups[-1]["weight_decay"] == 0.3 and all(p.shape == (1,) for p in groups[-1]["params"])
    assert all(g["momentum"] == 0.9 and not g["nesterov"] for g in groups)


def test_loss():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [9.0, 0.0]])
    labels = torch.tensor([0, 1, -100])
    log_partition = np.log1p(np.exp(-2.0))
    expected = (log_partition + np.log(2)) / 2
    assert ClassificationLoss(0.0)({"logits": logits}, labels).item() == pytest.approx(expected)
    assert ClassificationLoss(0.0)({"logits": logits}, labels, 4).item() == pytest.approx(expected / 2)
    smoothed = (0.95 * log_partition + 0.05 * (2 + log_partition) + np.log(2)) / 2  # 0.1 spread over both classes
    assert ClassificationLoss(0.1)({"logits": logits}, labels).item() == pytest.approx(smoothed)


def test_depthwise_layers_stay_dense_where_the_recipe_says_so(tmp_path, trainers):
    started = trainers()
    counts = {}
    for depthwise in ("sparse", "dense"):
        recipe = tiny_recipe(tmp_path / depthwise, "mobilenet_v1", f"depthwise={depthwise}", "training.max_steps=1")
        result = example.train(recipe)
        counts[depthwise] = result["sparse_weights"]
    layers = started[1].model.mobilenet_v1.layer
    depthwise_weights = sum(layer.convolution.weight.numel() for layer in layers if layer.convolution.groups > 1)
    assert counts["sparse"] - counts["dense"] == depthwise_weights > 0


def test_bad_image_in_training_and_validation(tmp_path):
    for split in ("train", "validation"):
        for name in ("cat", "dog"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(10):
                buffer = io.BytesIO()
                Image.new("RGB", (20, 20), (20 * i, 100, 50)).save(buffer, "JPEG")
                data = buffer.getvalue()
                (tmp_path / "data" / split / name / f"{i}.jpg").write_bytes(data[:200] if i == 3 else data)
    data = {"source": "folder", "path": str(tmp_path / "data"), "size": 16, "resize": 16, "max_corrupt": 4}
    recipe = tiny_recipe(tmp_path / "run", "cifar_resnet", "training.per_device_train_batch_size=4")
    result = example.train(recipe | {"data": data})
    assert result["corrupt_images"] == 4 and len((tmp_path / "run" / "corrupt_images.txt").read_text().split("\n")) == 5
    assert result["top1"] * 18 == pytest.approx(round(result["top1"] * 18))  # of the 18 that can be read
    recipe["output_dir"] = str(tmp_path / "again")
    with pytest.raises(ValueError, match=r"image\(s\) cannot be read, and data.max_corrupt allows 0"):
        example.train(recipe | {"data": data | {"max_corrupt": 0}})


def test_splits_with_other_classes(tmp_path):
    for place in ("train/cat", "train/dog", "validation/cat", "validation/emu"):
        (tmp_path / "data" / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / place / "0.png")
    recipe = tiny_recipe(tmp_path / "run")
    recipe["data"] = {"source": "folder", "path": str(tmp_path / "data"), "size": 8, "resize": 8}
    with pytest.raises(ValueError, match=r"the classes of 'train' and 'validation' differ: \['dog', 'emu'\]"):
        example.train(recipe)


def test_smoke_run_in_two_processes_is_really_launched(tmp_path):
    script = ROOT / "examples" / "vision" / "launch" / "smoke_cpu.sh"
    changes = [part for change in [*TINY, f"output_dir={tmp_path}/run"] for part in ("--set", change)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([script, *changes], env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "global batch 64 = 2 process(es) x 32 x 1 accumulated" in result.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 8
