"""A faster output layer for generation on the CPU, without another choice of tokens.

The output layer of a sparse model stays dense and takes most of a step. Here it computes in int8 first. Only tokens
whose logit could be among the largest, by a bound on the int8 error, are computed again in float32.

With the weight's row w = q + d (q: what int8 keeps of it) and the activations x = z + e (z: what int8 keeps of them),
the int8 logit is y = z.q, and by the inequality of Cauchy and Schwarz

    |x.w - y| = |x.d + e.q| <= |x| |d| + |e| |q|.

A token whose y plus this bound is less than the float32 logits of the `top` tokens of largest y is none of the largest.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..kernels import library
from ..kernels.cpu import screen as c_kernel

_MOST_SEQUENCES = 64  # of one call; beyond, the float32 product is taken
_MOST_CANDIDATES = 0.1  # of all logits; beyond, int8 hardly tells the tokens apart
_ROUNDING = 1e-5  # of |x| |q|: what float32 sums may be wrong by, with a margin


class ScreenedOutput(nn.Linear):
    """An output layer of which the `top` largest logits are float32's, up to rounding; the others may be int8's.

    For one position of each sequence: input (sequences, 1, in_features) gives (sequences, 1, out_features).
    """

    top: int
    _offset: Tensor | None  # what the model adds to the logits afterwards: its buffer itself, whose size is (1, rows)
    _int8: tuple[tuple[tuple[int, int], ...], _Screen]  # the stamp of weight and bias, and what was made of them

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 3 or input.shape[1] != 1 or not 0 < len(input) <= _MOST_SEQUENCES or not self._may(input):
            return super().forward(input)
        logits = self._screened(input[:, 0])
        return super().forward(input) if logits is None else logits[:, None]

    def _may(self, input: Tensor) -> bool:
        gradients = torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)
        plain = all(t is None or (t.dtype is torch.float32 and t.is_cpu) for t in (input, self.weight, self.bias))
        plain = plain and input.shape[-1] == self.in_features  # the dense layer has the message
        return plain and not (gradients or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))

    def _screened(self, x: Tensor) -> Tensor | None:
        """Logits (tokens, out_features) of x (tokens, in_features), or None where float32 has to do it all."""
        screen = self._screen()
        size = x.norm(dim=1, keepdim=True)
        if screen.packed is None or not torch.isfinite(size).all():
            return None
        logits = torch.ops.quantized.linear_dynamic(x, screen.packed, True)
        scale, zero = torch._choose_qparams_per_tensor(x, True)  # as linear_dynamic does
        lost = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 127).sub_(x).norm(dim=1, keepdim=True)
        bounds = torch.cat([lost + _ROUNDING * size, size], 1)
        return None if self._correct(logits, x, bounds, screen.sizes) is None else logits

    def _correct(self, logits: Tensor, x: Tensor, bounds: Tensor, sizes: Tensor) -> int | None:
        """Compute again, in place, what could be among the `top` largest, and return how many; None if too many."""
        offset, kernels = None if self._offset is None else self._offset.flatten(), library()
        tensors = (logits, x, self.weight, self.bias, offset, sizes, bounds)
        plain = all(t is None or (t.dtype is torch.float32 and t.is_cpu and t.is_contiguous()) for t in tensors)
        rows = logits.shape[1]
        fits = self.top <= min(rows, c_kernel.MOST_TOP) and (offset is None or len(offset) == rows)
        if kernels is not None and plain and fits:  # what does not fit has torch's message
            most = int(_MOST_CANDIDATES * rows)
            return c_kernel.correct(kernels, *tensors, self.top, most)
        shifted = logits if offset is None else logits + offset
        best = shifted.topk(self.top, dim=1).indices
        exact = self._exact(x[:, None], best)
        least = (exact if offset is None else exact + offset[best]).amin(1, keepdim=True)
        token, row = (torch.addmm(shifted, bounds, sizes) >= least).nonzero(as_tuple=True)
        if len(token) > _MOST_CANDIDATES * logits.numel():
            return None
        logits[token, row] = self._exact(x[token], row)
        return len(token)

    def _exact(self, x: Tensor, row: Tensor) -> Tensor:
        """Logits in float32: x (..., in_features), row (...)."""
        result = (self.weight[row] * x).sum(-1)
        return result if self.bias is None else result + self.bias[row]

    def _screen(self) -> _Screen:
        """What was made of the present weight and bias: the stamp tells whether they are still the same."""
        stamp = tuple(
            (t.data_ptr(), 0 if t.is_inference() else t._version) for t in (self.weight, self.bias) if t is not None
        )
        cached = self.__dict__.get("_int8")
        if cached is None or cached[0] != stamp:
            bias = None if self.bias is None else self.bias.detach()
            self._int8 = cached = (stamp, _Screen(self.weight.detach(), bias))
        return cached[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_int8"}


class _Screen:
    """A weight in int8, prepared for the product, and what it lost. `packed`: None where the weight is not finite."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * 128) / 127
        codes = weight / scale[:, None]
        codes.round_()
        kept = codes * scale[:, None]
        self.sizes = torch.stack([kept.norm(dim=1), (weight - kept).norm(dim=1)])  # |q|, |d|
        finite = bool(torch.isfinite(self.sizes).all())
        self.packed = _packed(weight, scale, bias) if finite else None


def _packed(weight: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
    """torch's prepared weight for `quantized.linear_dynamic`, by fbgemm: its int8 sums are exact in 7 + 8 bits."""
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch will take these tensors away one day, and offers nothing as fast
            zero = torch.zeros_like(scale, dtype=torch.long)
            codes = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8)
            return torch.ops.quantized.linear_prepack(codes, bias)
    finally:
        torch.backends.quantized.engine = engine


def _engines() -> list[str]:
    return torch.backends.quantized.supported_engines


def _offset_of(model: nn.Module) -> Tensor | None:
    """What the model adds to the logits afterwards: `final_logits_bias` of Marian, BART and others."""
    return cast("Tensor | None", getattr(model, "final_logits_bias", None))


def _share_offset(model: Any, args: object) -> None:
    """Before each forward of the model: its output layer refers to its present offset, which may be another one now.

    A hook on the model needs no reference from the layer to the model, with which saving the layer would save it all.
    """
    if not torch.compiler.is_compiling():
        model.get_output_embeddings().__dict__["_offset"] = _offset_of(model)


def _restore(model: nn.Module, layer: nn.Module) -> None:
    """Make the output layer a plain one again."""
    for name in ("_int8", "_offset", "top"):
        layer.__dict__.pop(name, None)
    layer.__class__ = nn.Linear
    for handle, hook in list(model._forward_pre_hooks.items()):
        if hook is _share_offset:
            del model._forward_pre_hooks[handle]


def screen_output(model: nn.Module, top: int = 4) -> nn.Module:
    """Make the output layer of a model that generates faster on the CPU, in place, and return the model.

    Greedy generation chooses the same tokens as before, up to rounding. So does a beam search with `num_beams` up to
    `top / 2` but for its scores, which the other logits enter: they are int8's, as they are for sampling. Calls with
    more than 64 tokens, and calls with gradients, compute as before. Names, `state_dict` and `save_pretrained` stay.

    Args:
        model: a model of transformers on the CPU in float32, with or without `to_inference` before. The int8 copy of
            the output layer's weight takes a quarter of its memory beside it.
        top: how many of the largest logits are float32's. Generation settings that forbid tokens (`min_new_tokens`,
            `bad_words_ids`, ...) may forbid `top - 1` of them at a step. 0 undoes it.

    Raises:
        ValueError: `top`, or an output layer that cannot be treated; the message says why.
        RuntimeError: this build of torch has no int8 product for this processor.
    """
    layer: Any = cast(Any, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if layer is None:
        raise ValueError(f"{type(model).__name__} has no output layer over tokens (get_output_embeddings)")
    if type(layer) is ScreenedOutput:
        _restore(model, layer)
    if type(top) is not int or not 0 <= top <= layer.weight.shape[0]:
        raise ValueError(f"top = {top!r}: allowed are 0 (undo) to {layer.weight.shape[0]}, the size of the vocabulary")
    if top == 0:
        return model
    if type(layer) is not nn.Linear:
        raise ValueError(f"the output layer is a {type(layer).__name__}: only a plain nn.Linear can be screened")
    if layer.weight.dtype != torch.float32 or layer.weight.device.type != "cpu":
        raise ValueError(f"the output layer is {layer.weight.dtype} on {layer.weight.device}: use float32 on the CPU")
    if "fbgemm" not in _engines():
        raise RuntimeError("this build of torch has no fbgemm, the int8 product for x86 processors with AVX2")
    _screen_layer(layer, top, _offset_of(model))
    if _offset_of(model) is not None:
        model.register_forward_pre_hook(_share_offset)
    return model


def _screen_layer(layer: Any, top: int, offset: Tensor | None) -> None:
    """Make a plain output layer a screened one."""
    layer.__class__ = ScreenedOutput
    layer.top = top
    layer.__dict__["_offset"] = offset  # no buffer of the layer: it belongs to the model
    layer._screen()
