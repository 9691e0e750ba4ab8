"""ResNet-50, one image of 224x224: dense torch, to_inference at 80 and 90 %, ONNX Runtime and OpenVINO, side by side.

    python -m benchmarks.resnet --threads 1

Random weights, the smallest magnitudes of each convolution but the stem zeroed, as the paper trains them. "free" is the
limit: those convolutions cost nothing. "Channels last" is that memory format, in which torch pools faster. BatchNorm is
folded into no convolution here. The runtimes get the same dense model, exported, and fold BatchNorm themselves. They
are optional: `pip install onnx onnxscript onnxruntime openvino`.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from benchmarks.measuring import arguments, device, interleaved, prune, summary, write
from benchmarks.rivals import onnxruntime_session, openvino_request
from hf_autosparse import inference_report, to_inference

LAST = ", channels last"


def resnet50() -> nn.Module:
    torch.manual_seed(0)
    return ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval().requires_grad_(False)


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    """All but the stem, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels > 3}


def pruned(model: nn.Module, fraction: float) -> nn.Module:
    model = copy.deepcopy(model)
    for module in convolutions(model).values():
        matrix = module.weight.data.flatten(1)
        prune(matrix, fraction)
        assert matrix.data_ptr() == module.weight.data_ptr()
    return model


class FreeConv2d(nn.Module):
    """A convolution that costs nothing: zeros that are there already."""

    def __init__(self, outputs: int, stride: int):
        super().__init__()
        self.outputs, self.stride = outputs, stride
        self.ready: dict[tuple[int, ...], torch.Tensor] = {}

    def forward(self, input):
        shape = (len(input), self.outputs, *(-(-side // self.stride) for side in input.shape[2:]))
        if shape not in self.ready:
            self.ready[shape] = torch.zeros(shape)
        return self.ready[shape].clone()  # ReLU and the residual sum write into it


def freed(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for name, module in convolutions(model).items():
        model.set_submodule(name, FreeConv2d(module.out_channels, module.stride[0]))
    return model


class Logits(nn.Module):
    """What is exported: pixels to logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixels).logits


def exported(model: nn.Module, image: torch.Tensor) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet.onnx"
        torch.onnx.export(Logits(model).eval(), (image,), str(path), dynamo=True, external_data=False, verbose=False)
        return path.read_bytes()


def runtimes(model: nn.Module, image: torch.Tensor) -> tuple[dict, dict]:
    """Name -> a call that gives logits; and for what is missing the reason."""
    try:
        onnx = exported(model, image)
    except ModuleNotFoundError as error:
        return {}, dict.fromkeys(("ONNX Runtime", "OpenVINO"), f"not installed: {error.name}")
    calls, missing = {}, {}
    try:
        session = onnxruntime_session(onnx)
        feed = {session.get_inputs()[0].name: image.numpy()}
        calls["ONNX Runtime"] = lambda: torch.from_numpy(session.run(None, feed)[0])
    except ModuleNotFoundError as error:
        missing["ONNX Runtime"] = f"not installed: {error.name}"
    try:
        request = openvino_request(onnx)
        calls["OpenVINO"] = lambda: torch.from_numpy(request.infer([image.numpy()])[0])
    except ModuleNotFoundError as error:
        missing["OpenVINO"] = f"not installed: {error.name}"
    return calls, missing


@torch.inference_mode()
def main() -> None:
    args = arguments(__doc__)
    torch.set_num_threads(args.threads)
    where = device()
    print(where)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    dense = resnet50()
    weights = {"80%": pruned(dense, 0.8), "90%": pruned(dense, 0.9)}
    expected = {name: model(image).logits for name, model in weights.items()}
    models = {"dense": dense} | {name: to_inference(model) for name, model in weights.items()}
    models |= {f"{name}{LAST}": copy.deepcopy(model) for name, model in models.items()} | {f"free{LAST}": freed(dense)}
    for name, model in models.items():
        model.to(memory_format=torch.channels_last if LAST in name else torch.contiguous_format)
    calls = {name: functools.partial(lambda model: model(image).logits, model) for name, model in models.items()}
    for name, right in expected.items():
        torch.testing.assert_close(calls[name](), right, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(calls[f"{name}{LAST}"](), right, rtol=1e-3, atol=1e-4)
    rivals, missing = runtimes(dense, image)
    for call in rivals.values():
        torch.testing.assert_close(call(), dense(image).logits, rtol=1e-3, atol=1e-4)
    rounds, seconds = (3, 2.0) if args.quick else (15, 40.0)
    figures = summary(interleaved(calls | rivals, rounds, seconds), "dense")
    rest, last = figures[f"free{LAST}"]["median_s"], figures[f"dense{LAST}"]["median_s"]
    about = {
        "sparse_convolutions": len(convolutions(dense)),
        "sparse_layers": {n: sum(row.backend == "sparse" for row in inference_report(models[n]).rows) for n in weights},
        "their_share_of_dense_time": 1 - rest / last,
        "missing": missing,
    }
    print(about)
    print("| model | ms | speed-up | quartiles | share of the limit | those convolutions alone |")
    print("|---|---|---|---|---|---|")
    for name, entry in figures.items():
        entry["share_of_limit"] = rest / entry["median_s"]
        if name.removesuffix(LAST) in weights and LAST in name:
            entry["convolutions_speedup"] = (last - rest) / (entry["median_s"] - rest)
        low, high = entry["speedup_quartiles"]
        print(
            f"| {name} | {entry['median_s'] * 1e3:.1f} | {entry['speedup']:.2f} | {low:.2f} to {high:.2f}"
            f" | {entry['share_of_limit']:.0%} | {entry.get('convolutions_speedup', '')!s:.4} |"
        )
    if not args.quick:
        write("resnet50", where, {"batch": 1, "pixels": 224, "rounds": rounds, "seconds": seconds}, [about | figures])


if __name__ == "__main__":
    main()
