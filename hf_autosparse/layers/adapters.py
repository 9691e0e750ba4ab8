"""Which layers belong to an adapter: small layers that PEFT adds beside those of the model."""

from __future__ import annotations

import sys

from torch import nn

_PROMPTS = "prompt_encoder"  # PeftModel's own part; everything else that it holds is the model


def adapter_layers(model: nn.Module) -> set[str]:
    """The names of all modules inside an adapter, such as LoRA's A and B; not those of the layers that it adapts."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:  # a model whose classes are not imported cannot exist
        return set()
    wrapper: type[nn.Module] = sys.modules["peft"].PeftModel
    found: set[str] = set()
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, tuners.BaseTunerLayer):
            found |= {f"{prefix}{child}" for child, _ in module.named_modules() if child and not _is_base(child)}
        elif isinstance(module, wrapper):
            found |= {f"{prefix}{child}" for child, _ in module.named_modules() if child.startswith(_PROMPTS)}
    return found


def _is_base(name: str) -> bool:
    return name.split(".")[0] == "base_layer"
