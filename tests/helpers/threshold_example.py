"""Weights on and off their threshold, for the tests of the kernels."""

import torch


def example(shape, threshold_shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    weight.view(-1)[:4] = torch.tensor([0.0, -0.0, 0.5, -0.5])
    threshold = torch.rand(threshold_shape, generator=generator)
    threshold.view(-1)[0] = 0.5  # some weights lie on their threshold
    return weight, threshold, torch.randn(shape, generator=generator)
