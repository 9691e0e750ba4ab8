"""The sparse form of transformers' Conv1D (GPT-2): a Linear whose weight has shape (inputs, outputs).

The one file of this room that imports transformers; `kinds.py` loads it for the first model that has such a layer.
"""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from . import kinds, multiply
from .sparse import SparseLayer


class SparseConv1D(SparseLayer, Conv1D):
    kind = kinds.CONV1D
    bias: nn.Parameter

    def product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat = input.view(-1, input.size(-1))
        flat = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
        return flat.view(*input.shape[:-1], self.nf)

    def sparse_product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        return multiply.linear(self, input, weight, bias)
