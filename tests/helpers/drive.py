"""A bare training loop: what every method must stand, without Trainer's weight.

As a program, under torchrun: trains every method of configs.json in a directory and writes each process's state there.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from hf_autosparse import SparseConfig, SparseTraining, sparsify

STEPS, STEPS_PER_EPOCH = 12, 4


def sparse_net(config: SparseConfig, seed: int = 0) -> nn.Sequential:
    """A convolution and two linear layers, half of whose weights are zero."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 16), nn.Tanh(), nn.Linear(16, 4)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter[parameter.abs() < parameter.abs().median()] = 0
    return sparsify(model, config)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 4, 4, 4, generator=generator), torch.randint(4, (8,), generator=generator)


def drive(model, optimizer, first: int, last: int, *, parts: int = 1, wrapped=None, rank: int | None = None) -> None:
    """Optimizer steps `first` to `last` of STEPS, each over a batch of 8 in `parts`, or over this process's half."""
    training = SparseTraining(model, steps=STEPS, steps_per_epoch=STEPS_PER_EPOCH, accumulation=parts, start_step=first)
    for step in range(first, last):
        training.begin_step()
        inputs, labels = batch(step)
        if rank is not None:
            inputs, labels = inputs.chunk(2)[rank], labels.chunk(2)[rank]
        for x, y in zip(inputs.chunk(parts), labels.chunk(parts), strict=True):
            (nn.functional.cross_entropy((wrapped or model)(x), y) / parts).backward()
        training.before_optimizer_step()
        optimizer.step()
        training.end_step(optimizer)
        optimizer.zero_grad()


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    rank, directory = torch.distributed.get_rank(), Path(sys.argv[1])
    for settings in json.loads((directory / "configs.json").read_text()):
        config = SparseConfig.from_dict(settings)
        model = sparse_net(config)
        wrapped = nn.parallel.DistributedDataParallel(model)
        drive(model, optimizer_of(model), 0, 8, wrapped=wrapped, rank=rank)
        torch.save(model.state_dict(), directory / f"{config.method}-{rank}.pt")
    torch.distributed.destroy_process_group()
