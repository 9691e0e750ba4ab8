"""The sparse counterpart of transformers' Conv1D (GPT-2): a Linear whose weight has shape (inputs, outputs)."""

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from .layers import SparseLayer


class SparseConv1D(SparseLayer, Conv1D):
    output_dim = 1

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.sparse_weight())
        return flat.view(*x.shape[:-1], self.nf)
