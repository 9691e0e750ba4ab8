"""The paper's analysis of convergence (eq. 5), drawn: one weight below or above its threshold, under each alpha.

    python -m benchmarks.annealing.convergence --output docs/images/annealing_convergence.png   # seconds

`v = w - T` with a fixed T and w > 0, `u = h(v)`, loss `0.5 (u - v*)^2`. The gradient is `v - v*` above the threshold
and `-alpha v*` below it, however far v is from v*. Left SGD, right Adam, whose update does not shrink with alpha
unless alpha is 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from hf_autosparse.functional import soft_threshold
from hf_autosparse.methods.schedules import alpha_at
from hf_autosparse.plots.style import COLOURS, DASHES, INK, headline, new_figure, save, style_axes

STEPS, THRESHOLD, OPTIMUM = 200, 2.0, 0.5
STARTS = (-1.0, 1.5)
ALPHAS: dict[str, float | None] = {"alpha 1": 1.0, "0.75": 0.75, "0.25": 0.25, "0": 0.0, "0.75 annealed": None}
OPTIMIZERS = {
    "SGD, learning rate 0.02": lambda w: torch.optim.SGD([w], 0.02),
    "Adam, learning rate 0.02": lambda w: torch.optim.Adam([w], 0.02),
}


def path(optimizer_name: str, start: float, alpha: float | None) -> list[float]:
    """v before each step and after the last."""
    w = torch.tensor([start + THRESHOLD], requires_grad=True)
    optimizer = OPTIMIZERS[optimizer_name](w)
    values = [start]
    for step in range(STEPS):
        now = alpha if alpha is not None else alpha_at("sigmoid-cosine", step, alpha_init=0.75, length=STEPS)
        u = soft_threshold(w.detach(), torch.tensor([THRESHOLD]))
        proxy = 1.0 if w.item() > THRESHOLD else now
        w.grad = proxy * (u - OPTIMUM)  # eq. 5
        optimizer.step()
        values.append(w.item() - THRESHOLD)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    figure = new_figure(3.4)
    for axes, name in zip(figure.subplots(1, 2, sharey=True), OPTIMIZERS, strict=True):
        for (label, alpha), colour, dashes in zip(ALPHAS.items(), COLOURS, DASHES, strict=False):
            for i, start in enumerate(STARTS):
                axes.plot(
                    path(name, start, alpha),
                    color=colour,
                    linestyle=dashes,
                    label=label if i == 0 else None,
                    linewidth=1.4,
                )
        axes.axhline(0, color=INK, linewidth=0.7)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        style_axes(axes, grid="y")
    figure.axes[0].set_ylabel("v = |w| - T (pruned below 0)", fontsize=8)
    figure.axes[1].legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.08))
    headline(figure, "A weight below and above its threshold", f"eq. 5: loss 0.5 (h(v) - v*)^2, v* = {OPTIMUM}")
    save(figure, options.output)


if __name__ == "__main__":
    main()
