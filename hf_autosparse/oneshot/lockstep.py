"""Forward passes of several batches that stop at each unit and go on together.

Each batch's forward runs in its own thread; one thread at a time is awake. Where the forward comes to a unit, it hands
the call over and sleeps until it is given the output. So a unit can be run on all its inputs, changed and run again.
What the model does between its units (masks, skips from far back, an encoder's states that a decoder reads) is the
model's own code, run once. Only the tensors that the model itself still needs stay in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .units import Unit


@dataclass(frozen=True)
class Batch:
    """Arguments of one call of the model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def to(self, device: torch.device) -> Batch:
        def moved(value: Any) -> Any:
            return value.to(device) if isinstance(value, torch.Tensor) else value

        return Batch(tuple(map(moved, self.args)), {name: moved(value) for name, value in self.kwargs.items()})


class _Stop(BaseException):
    """Ends a forward that nobody waits for any more."""


class _Forward:
    """One batch's forward, asleep at a unit. `unit` is None when it has ended."""

    def __init__(self, model: nn.Module, batch: Batch):
        self.unit: Unit | None = None
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.error: BaseException | None = None
        self._output: Any = None
        self._stopped = False
        self._wake, self._asleep = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(model, batch), daemon=True)
        self._thread.start()
        self._wait()

    def _run(self, model: nn.Module, batch: Batch) -> None:
        _current.forward = self
        try:
            with torch.no_grad():  # of this thread
                model(*batch.args, **batch.kwargs)
        except _Stop:
            pass
        except BaseException as error:
            self.error = error
        self.unit, self.args, self.kwargs = None, (), {}
        self._asleep.release()

    def sleep(self, unit: Unit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called in the thread: hand the call over, and return its output when it is there."""
        self.unit, self.args, self.kwargs = unit, args, kwargs
        self._asleep.release()
        self._wake.acquire()
        if self._stopped:
            raise _Stop
        output, self._output = self._output, None
        return output

    def go_on(self, output: Any) -> None:
        """Called outside the thread: give it the output, and wait until it sleeps again or has ended."""
        self._output, self.args, self.kwargs = output, (), {}
        self._wake.release()
        self._wait()

    def stop(self) -> None:
        self._stopped = True
        self._wake.release()
        self._thread.join()

    def _wait(self) -> None:
        self._asleep.acquire()
        if self.error is not None:
            raise self.error


_current = threading.local()


class Lockstep:
    """The forwards of all batches. Use as a context manager: inside, the units of the model hand their calls over."""

    def __init__(self, model: nn.Module, units: Sequence[Unit], batches: Sequence[Batch]):
        self._model, self._units, self._batches = model, units, batches
        self._order = {id(unit): position for position, unit in enumerate(units)}
        self._forwards: list[_Forward] = []

    def __enter__(self) -> Lockstep:
        for unit in self._units:
            _hand_over(unit)
        try:
            for batch in self._batches:
                self._forwards.append(_Forward(self._model, batch))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for forward in self._forwards:
            if forward.unit is not None:
                forward.stop()
        for unit in self._units:
            _take_back(unit)

    def next_unit(self) -> Unit | None:
        """The first unit, in the model's order, that a forward waits at; None when all have ended."""
        waiting = [forward.unit for forward in self._forwards if forward.unit is not None]
        return min(waiting, key=lambda unit: self._order[id(unit)]) if waiting else None

    def calls(self, unit: Unit) -> Iterator[Batch]:
        """The arguments of all calls that wait at the unit."""
        for forward in self._forwards:
            if forward.unit is unit:
                yield Batch(forward.args, forward.kwargs)

    def run(self, unit: Unit) -> None:
        """Run the unit for every forward that waits at it; each then goes on to the next unit that it meets."""
        for forward in [forward for forward in self._forwards if forward.unit is unit]:
            with runnable(unit):
                output = unit.module(*forward.args, **forward.kwargs)
            forward.go_on(output)
            del output


@dataclass(frozen=True)
class _HandOver:
    """Stands for the `forward` of a unit's module. `replaced`: one that the instance had of its own, or None."""

    unit: Unit
    replaced: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward: _Forward = _current.forward
        return forward.sleep(self.unit, args, kwargs)


def _hand_over(unit: Unit) -> None:
    unit.module.__dict__["forward"] = _HandOver(unit, unit.module.__dict__.get("forward"))


def _take_back(unit: Unit) -> None:
    hand_over: _HandOver = unit.module.__dict__.pop("forward")
    if hand_over.replaced is not None:
        unit.module.__dict__["forward"] = hand_over.replaced


@contextmanager
def runnable(unit: Unit) -> Iterator[None]:
    """Inside, the unit's module can be called as usual."""
    _take_back(unit)
    try:
        yield
    finally:
        _hand_over(unit)
