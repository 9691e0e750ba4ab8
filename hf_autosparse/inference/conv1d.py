"""The inference counterpart of transformers' Conv1D (GPT-2): a Linear whose weight has shape (inputs, outputs)."""

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from .layers import InferenceLayer, token_product


class InferenceConv1D(InferenceLayer, Conv1D):
    def matrix_view(self) -> Tensor:
        return self.weight.T

    def sparse_product(self, input: Tensor) -> Tensor | None:
        return token_product(self, input)
