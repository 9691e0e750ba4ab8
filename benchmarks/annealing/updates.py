"""What alpha does to the size of a pruned weight's updates, by optimizer: one sparse layer.

    python -m benchmarks.annealing.updates --output benchmarks/results/annealing   # a minute on one core

A linear layer of 128 x 128 learns a dense random target from noisy batches; half of its weights are pruned by a fixed
threshold. For each optimizer and each fixed alpha: the root mean square update of the weights that are pruned in a
step, divided by that of the weights that are kept, over the last 100 of 200 steps, mean and deviation of three seeds.
Adafactor is transformers'; Lion is written here after its paper (arXiv 2302.06675).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Adafactor

from hf_autosparse import AutoSparseConfig, sparse_layers, sparsify

ALPHAS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.01, 0.0)
STEPS, WATCHED, SIZE, BATCH = 200, 100, 128, 64


class Lion(torch.optim.Optimizer):
    """`w -= lr sign(b1 m + (1 - b1) g)`, `m = b2 m + (1 - b2) g`."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float] = (0.9, 0.99)):
        super().__init__(parameters, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            fast, slow = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                parameter -= group["lr"] * torch.lerp(parameter.grad, momentum, fast).sign()
                momentum.lerp_(parameter.grad, 1 - slow)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD, momentum 0.9": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, 1e-3),
    "Adafactor": lambda parameters: Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False),
    "Lion": lambda parameters: Lion(parameters, 1e-4),
    "Muon": lambda parameters: torch.optim.Muon(parameters, 1e-3, weight_decay=0.0),
}


def ratio(optimizer_name: str, alpha: float, seed: int) -> float:
    """RMS update of pruned weights / that of kept ones."""
    torch.manual_seed(seed)
    layer = nn.Linear(SIZE, SIZE, bias=False)
    config = AutoSparseConfig(
        alpha_init=alpha, alpha_schedule="fixed", threshold_init={"sparsity": 0.5}, first_last="none"
    )
    model = sparsify(nn.Sequential(layer), config)
    (sparse,) = sparse_layers(model).values()
    sparse.sparsifier.threshold.requires_grad_(False)
    target = torch.randn(SIZE, SIZE) * layer.weight.detach().std() * 2
    optimizer = OPTIMIZERS[optimizer_name]([sparse.weight])
    squares: dict[bool, list[Tensor]] = {True: [], False: []}
    for step in range(STEPS):
        x = torch.randn(BATCH, SIZE)
        loss = (model(x) - x @ target.T - 0.1 * torch.randn(BATCH, SIZE)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        before, kept = sparse.weight.detach().clone(), sparse.sparsifier.mask(sparse.weight.detach())
        optimizer.step()
        if step >= STEPS - WATCHED:
            change = (sparse.weight.detach() - before).square()
            for where in (True, False):
                squares[where].append(change[kept == where].mean())
    pruned, active = (torch.stack(squares[where]).mean().sqrt().item() for where in (False, True))
    return pruned / active


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for updates.json and updates.md")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    results = {
        name: {str(alpha): [ratio(name, alpha, seed) for seed in range(options.seeds)] for alpha in ALPHAS}
        for name in OPTIMIZERS
    }
    lines = ["| optimizer | " + " | ".join(f"alpha {alpha:g}" for alpha in ALPHAS) + " |", "|---" * 8 + "|"]
    for name, row in results.items():
        cells = [f"{statistics.mean(v):.3f} ± {statistics.stdev(v) if len(v) > 1 else 0:.3f}" for v in row.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "updates.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "updates.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
