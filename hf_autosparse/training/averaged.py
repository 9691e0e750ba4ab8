"""Schedule-free optimizers: they train one set of weights and are evaluated on another, an average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluated_weights(model: nn.Module, optimizer: object) -> Iterator[None]:
    """Inside the block the model holds the weights that are evaluated; afterwards, to the bit, those before it.

    Trainer switches such an optimizer by its `eval()` and `train()` where it evaluates and trains, together with the
    model, whose mode tells which weights are in it. Costs a copy of the weights for the time of the block, and nothing
    with other optimizers.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has both methods in any case
    evaluate, train = getattr(inner, "eval", None), getattr(inner, "train", None)
    if not (model.training and callable(evaluate) and callable(train)):
        yield
        return
    parameters = list(model.parameters())
    kept = [parameter.detach().clone() for parameter in parameters]
    evaluate()
    try:
        yield
    finally:
        train()
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
