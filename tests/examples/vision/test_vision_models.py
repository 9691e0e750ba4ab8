"""The models: exact folding with BatchNorm, memory format, autocast, gradient checkpointing, errors."""

import importlib
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from examples.vision.image_model import build_model, depthwise_layers
from hf_autosparse import AutoSparseConfig, finalize, folded, sparse_layers, sparsify, sparsity_report
from tiny_vision import MODELS, images, tiny_recipe, without_dropout

CLASSES = ["a", "b", "c"]
SPARSE = AutoSparseConfig(threshold_init={"sparsity": 0.5})


def model_of(name: str, seed: int = 0, **changes) -> nn.Module:
    torch.manual_seed(seed)
    return without_dropout(build_model(tiny_recipe("unused", name)["model"] | changes, CLASSES))


def train_briefly(model: nn.Module, steps: int = 3) -> None:
    """A few steps, after which BatchNorm statistics and weights are not what they began with."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(steps):
        loss = model(images(8, seed=step), labels=torch.arange(8) % 3).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", MODELS)
def test_finalized_model_computes_what_the_sparse_one_did(name):
    model = sparsify(model_of(name), SPARSE)
    train_briefly(model)
    statistics = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    assert bool(statistics) == (name not in ("vit", "convnext"))
    model.eval()
    with torch.no_grad():
        sparse = model(images(4)).logits
        with folded(model):
            assert torch.equal(model(images(4)).logits, sparse)
        layer = next(iter(sparse_layers(model)))
        finalize(model)
        assert torch.equal(model(images(4)).logits, sparse)
    assert (model.get_submodule(layer).weight == 0).any()
    # The statistics are those gathered in training, of the very weights that were folded.
    assert all(torch.equal(model.state_dict()[key], value) for key, value in statistics.items())


def test_batch_norm_statistics_belong_to_the_sparse_weights():
    """What BatchNorm gathers is the mean of the outputs of the effective weights, not of the raw ones."""
    model = sparsify(model_of("cifar_resnet", batch_norm_momentum=1.0), SPARSE)
    block = model.resnet.encoder.stages[0].layers[0].layer[0]
    seen = []
    block.convolution.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    model.train()(images(8))
    inputs, output = seen[0]
    finalize(model)
    with torch.no_grad():
        folded_output = block.convolution(inputs)
    torch.testing.assert_close(folded_output, output)
    torch.testing.assert_close(block.normalization.running_mean, folded_output.mean((0, 2, 3)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_gives_the_same_gradients(name):
    results = []
    for channels_last in (False, True):
        model = sparsify(model_of(name, channels_last=channels_last), SPARSE)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        loss = model(images(4).contiguous(memory_format=layout), labels=torch.arange(4) % 3).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and min(m.weight.shape[1:]) > 1]
    for layer in convolutions:
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        if hasattr(layer, "sparse_weight"):
            assert layer.sparse_weight().is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_autocast_is_near_float32(name):
    model = sparsify(model_of(name), SPARSE)
    losses = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(images(8), labels=torch.arange(8) % 3).loss
        loss.backward()
        losses.append(loss.item())
        assert all(
            p.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters() if p.grad is not None
        )
        thresholds = [layer.sparsifier.threshold.grad for layer in sparse_layers(model).values()]
        assert all(grad is not None for grad in thresholds)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("name", ["resnet", "cifar_resnet", "vit", "convnext"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(name, reentrant):
    """Where the model has it, by the stage: transformers' ResNet and ConvNeXt do not, so their stages are wrapped."""
    gradients = []
    for checkpointing in (False, True):
        model = sparsify(model_of(name), SPARSE).train()
        pixels = images(4).requires_grad_()  # what reentrant checkpointing needs
        if checkpointing and model.supports_gradient_checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
        elif checkpointing:
            checkpoint_stages(model, reentrant)
        model(pixels, labels=torch.arange(4) % 3).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for key, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], grad, atol=1e-6, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def checkpoint_stages(model: nn.Module, reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    for stage in model.get_submodule(model.base_model_prefix).encoder.stages:
        forward = stage.forward
        stage.forward = lambda x, forward=forward: checkpoint(forward, x, use_reentrant=reentrant)


def test_saved_cifar_resnet_loads_and_has_the_small_stem(tmp_path):
    model = model_of("cifar_resnet").eval()
    stem = model.resnet.embedder
    assert stem.embedder.convolution.weight.shape == (4, 3, 3, 3) and stem(images(1)).shape == (1, 4, 16, 16)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    elsewhere = "import sys; from transformers import AutoModelForImageClassification as Auto;"
    elsewhere += "print(type(Auto.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", elsewhere, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "CifarResNetForImageClassification", done.stderr
    halved = build_model({"type": "cifar_resnet", "config": {"stem_stride": 2, "embedding_size": 4}}, CLASSES)
    assert halved.resnet.embedder(images(1)).shape == (1, 4, 8, 8)


def test_mobilenet_keeps_its_dropout_and_momentum_only_if_asked():
    section = tiny_recipe("unused", "mobilenet_v1")["model"]
    model = build_model(section, CLASSES)
    assert model.dropout.p == 0.0 and model.mobilenet_v1.conv_stem.normalization.momentum == 0.1
    own = build_model({"type": "mobilenet_v1", "config": {"depth_multiplier": 0.25}}, CLASSES)
    assert own.dropout.p == 0.999 and own.mobilenet_v1.conv_stem.normalization.momentum == 0.9997


def test_kaiming_initialisation_goes_by_fan_in():
    model = build_model({"type": "mobilenet_v1", "init": "kaiming_fan_in"}, CLASSES)
    layers = model.mobilenet_v1.layer
    assert layers[12].convolution.weight.detach().std() == pytest.approx(
        (2 / 9) ** 0.5, rel=0.05
    )  # depthwise: one channel
    assert layers[13].convolution.weight.detach().std() == pytest.approx((2 / 512) ** 0.5, rel=0.02)


def test_depthwise_layers_by_name():
    names = depthwise_layers(model_of("mobilenet_v1"))
    assert len(names) == 13 and names[0] == "mobilenet_v1.layer.0.convolution"
    assert depthwise_layers(model_of("convnext")) == [
        f"convnext.encoder.stages.{stage}.layers.0.dwconv" for stage in (0, 1)
    ]
    assert depthwise_layers(model_of("resnet")) == []


def test_pretrained(tmp_path):
    model_of("resnet").save_pretrained(tmp_path)
    loaded = build_model({"from_pretrained": str(tmp_path)}, ["x", "y", "z"])
    assert loaded.config.id2label == {0: "x", 1: "y", 2: "z"}
    with pytest.raises(ValueError, match=r"knows 3 classes, but the data has 4: set model.new_classifier: true"):
        build_model({"from_pretrained": str(tmp_path)}, list("abcd"))
    new = build_model({"from_pretrained": str(tmp_path), "new_classifier": True}, list("abcd"))
    assert new.classifier[-1].out_features == 4
    stem = "resnet.embedder.embedder.convolution.weight"
    assert torch.equal(new.state_dict()[stem], loaded.state_dict()[stem])


def test_a_model_of_grey_images_is_refused(tmp_path):
    """Images of one colour are repeated to three; the model would only fail in its first step."""
    section = {"type": "resnet", "config": {"num_channels": 1, "embedding_size": 4, "hidden_sizes": [8], "depths": [1]}}
    message = (
        r"config.num_channels = 1, but images come as 3 colours, grey ones too \(the one is repeated\): leave it out"
    )
    with pytest.raises(ValueError, match=message):
        build_model(section, CLASSES)
    config = ResNetConfig(**section["config"], num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        build_model({"from_pretrained": str(tmp_path)}, CLASSES)


def test_timm():
    """A model of timm comes through transformers' wrapper, trains and folds like any other."""
    for package in ("timm", "torchvision"):
        try:
            importlib.import_module(package)
        except (ImportError, RuntimeError) as error:  # RuntimeError: its operators are of another torch
            pytest.skip(f"{package} cannot be imported: {error}")
    section = {"type": "timm_wrapper", "config": {"architecture": "resnet18"}}
    torch.manual_seed(0)
    model = build_model(section, CLASSES)
    assert model.config.num_labels == 3
    sparsify(model, SPARSE)
    train_briefly(model, steps=1)
    dense = sparsity_report(model).dense
    assert {"timm_model.conv1", "timm_model.fc"} <= dense.keys()
    model.eval()
    with torch.no_grad():
        expected = model(images(2)).logits
        finalize(model)
        assert expected.shape == (2, 3) and torch.equal(model(images(2)).logits, expected)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"typ": "resnet"}, r"unknown field\(s\) \['typ'\]; allowed"),
        ({}, "give either type"),
        ({"type": "resnet", "from_pretrained": "x"}, "give either type"),
        ({"type": "resnet", "config": {"num_labels": 5}}, "num_labels = 5, but the data has 3 classes: leave it out"),
        ({"type": "mobilenet_v1", "init": "xavier"}, "model.init = 'xavier' is not one of"),
    ],
)
def test_bad_model_section(section, message):
    with pytest.raises(ValueError, match=message):
        build_model(section, CLASSES)
