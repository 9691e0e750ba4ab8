"""Where training stands, as the methods see it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where training stands.

    Args:
        epoch: epochs done, a float.
        epochs: epochs of the whole run.
        step: optimizer steps done.
        steps: optimizer steps of the whole run.
    """

    epoch: float
    epochs: float
    step: int
    steps: int

    def after_step(self) -> Progress:
        """The progress that `end_step` will see after the coming step; `epoch` stays as it is."""
        return dataclasses.replace(self, step=self.step + 1)
