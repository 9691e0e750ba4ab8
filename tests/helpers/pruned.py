"""A model as any other tool leaves it that prunes."""

import torch
from torch import nn


def pruned(model: nn.Module, sparsity: float = 0.5) -> nn.Module:
    """Magnitude pruning by plain torch, as any other tool leaves a model. The last layer too, but not the embedding."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":  # tied to the embedding
            with torch.no_grad():
                magnitude = module.weight.abs()
                module.weight[magnitude < magnitude.quantile(sparsity)] = 0
    return model
