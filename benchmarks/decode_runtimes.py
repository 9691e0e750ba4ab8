"""Greedy translation of a dense Marian model by ONNX Runtime (float32 and int8) and OpenVINO, for decode.py.

The model is exported in two parts: the encoder with the first step, and a further step with the cache of the steps
before. A bare loop calls them: no runtime here pays for what `generate` does beside the model.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MarianMTModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from benchmarks.rivals import onnxruntime_session, openvino_request

Run = Callable[[list[np.ndarray]], list[np.ndarray]]
Generate = Callable[[Tensor], Tensor]  # ids (batch, source tokens) -> tokens (batch, new tokens + 1)


def _flat(cache: DynamicCache) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _cache(flat: list[Tensor]) -> DynamicCache:
    cache = DynamicCache()
    for i in range(len(flat) // 2):
        cache.update(flat[2 * i], flat[2 * i + 1], i)
    return cache


class First(nn.Module):
    """ids -> logits of the first token, the decoder's cache, the cache of what it sees of the encoder."""

    def __init__(self, model: MarianMTModel):
        super().__init__()
        self.model = model

    def forward(self, ids):
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        start = torch.full((ids.shape[0], 1), self.model.config.decoder_start_token_id)
        out = self.model(input_ids=ids, decoder_input_ids=start, past_key_values=cache, use_cache=True)
        return out.logits[:, -1], _flat(cache.self_attention_cache), _flat(cache.cross_attention_cache)


class Further(nn.Module):
    """The last tokens and both caches -> logits of the next ones, the decoder's longer cache."""

    def __init__(self, model: MarianMTModel):
        super().__init__()
        self.model = model

    def forward(self, token, own, cross):
        cache = EncoderDecoderCache(_cache(own), _cache(cross))
        cache.is_updated = dict.fromkeys(range(len(cross) // 2), True)  # the encoder's part is complete
        unread = torch.zeros(token.shape[0], cross[0].shape[2], self.model.config.d_model)
        out = self.model.model.decoder(
            input_ids=token, encoder_hidden_states=unread, past_key_values=cache, use_cache=True
        )
        logits = self.model.lm_head(out.last_hidden_state)[:, -1] + self.model.final_logits_bias
        return logits, _flat(cache.self_attention_cache)


def _exported(model: MarianMTModel, ids: Tensor, folder: Path) -> list[Path]:
    first, further = First(model).eval(), Further(model).eval()
    with torch.no_grad():
        _, own, cross = first(ids)
        _, own = further(ids[:, :1], own, cross)
    length = {2: torch.export.Dim("past", min=1, max=1024)}
    shapes = (None, [length] * len(own), [None] * len(cross))
    paths = [folder / "first.onnx", folder / "further.onnx"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(first, (ids,), str(paths[0]), dynamo=True, verbose=False)
        example = (ids[:, :1], own, cross)
        torch.onnx.export(further, example, str(paths[1]), dynamo=True, dynamic_shapes=shapes, verbose=False)
    return paths


def _quantised(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    result = path.with_suffix(".int8.onnx")
    quantize_dynamic(path, result, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    return result


def _in_onnxruntime(path: Path) -> Run:
    session = onnxruntime_session(str(path))
    names = [entry.name for entry in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def _in_openvino(path: Path) -> Run:
    request = openvino_request(str(path))

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        results = request.infer(arrays)
        return [results[i].copy() for i in range(len(results))]  # the next call writes over them

    return run


def _loop(first: Run, further: Run, steps: int, start: int, caches: int) -> Generate:
    def generate(ids: Tensor) -> Tensor:
        logits, *cached = first([ids.numpy()])
        own, cross = cached[:caches], cached[caches:]
        tokens = [np.full(len(ids), start), logits.argmax(-1)]
        for _ in range(steps - 1):
            logits, *own = further([tokens[-1][:, None], *own, *cross])
            tokens.append(logits.argmax(-1))
        return torch.from_numpy(np.stack(tokens, 1))

    return generate


def runtimes(model: MarianMTModel, ids: Tensor, steps: int) -> dict[str, Generate]:
    """Name -> a function that generates `steps` tokens, for ids of this shape.

    Raises:
        ModuleNotFoundError: `pip install onnx onnxscript onnxruntime openvino`.
    """
    import onnxruntime  # noqa: F401 - before the export, which takes minutes
    import openvino  # noqa: F401

    caches, start = 2 * model.config.decoder_layers, model.config.decoder_start_token_id
    with tempfile.TemporaryDirectory() as folder:
        paths = _exported(model, ids, Path(folder))
        runs = {
            "ONNX Runtime": [_in_onnxruntime(path) for path in paths],
            "ONNX Runtime int8": [_in_onnxruntime(_quantised(path)) for path in paths],
            "OpenVINO": [_in_openvino(path) for path in paths],
        }
    return {name: _loop(*pair, steps, start, caches) for name, pair in runs.items()}
