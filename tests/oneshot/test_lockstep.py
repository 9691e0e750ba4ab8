"""Forwards that stop at each unit compute what the model computes, and leave nothing behind."""

import threading

import pytest
import torch
from torch import nn

from architectures import ARCHITECTURES
from hf_autosparse.oneshot.lockstep import Batch, Lockstep, runnable
from hf_autosparse.oneshot.prune import evaluated
from hf_autosparse.oneshot.targets import find_targets
from hf_autosparse.oneshot.units import find_units


def parts(architecture):
    model = architecture.model().eval()
    units = find_units(model, find_targets(model, None, [], "modules")[0])
    examples = architecture.examples(4)
    batches = [
        Batch((), {k: torch.stack([e[k] for e in pair]) for k in examples[0]}) for pair in (examples[:2], examples[2:])
    ]
    return model, units, batches


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
@torch.no_grad()
def test_every_unit_is_met_once_in_order_and_outputs_are_those_of_the_model(architecture):
    model, units, batches = parts(architecture)
    with evaluated(model):
        check_lockstep(model, units, batches)


def check_lockstep(model, units, batches):
    expected = [model(**batch.kwargs).logits for batch in batches]
    outputs = []
    model.register_forward_hook(lambda module, args, output: outputs.append(output.logits))
    met = []
    with Lockstep(model, units, batches) as run:
        while (unit := run.next_unit()) is not None:
            met.append(unit)
            assert len(list(run.calls(unit))) == 2
            with runnable(unit):
                for call in run.calls(unit):
                    unit.module(*call.args, **call.kwargs)  # a unit can be run as often as one likes
            run.run(unit)
    assert met == units
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert not any("forward" in vars(module) for module in model.modules())


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def forward(self, x):
        x = self.layers(x)
        if x.shape[0] > 1:
            raise ArithmeticError("a batch of two")
        return x


def broken():
    model = Broken()
    return model, find_units(model, find_targets(model, None, [], "none")[0])


def forwards():
    return [t for t in threading.enumerate() if "_run" in t.name]


def test_an_error_of_the_model_is_raised_and_the_other_forwards_end():
    model, units = broken()
    with (
        pytest.raises(ArithmeticError, match="a batch of two"),
        Lockstep(model, units, [Batch((torch.ones(n, 2),), {}) for n in (1, 2, 1)]) as run,
    ):
        while (unit := run.next_unit()) is not None:
            run.run(unit)
    assert not forwards() and not any("forward" in vars(module) for module in model.modules())


def test_an_error_before_the_first_unit_is_raised():
    model, units = broken()
    with pytest.raises(RuntimeError, match="shapes"), Lockstep(model, units, [Batch((torch.ones(1, 3),), {})]) as run:
        run.run(run.next_unit())
    with pytest.raises(TypeError, match="unexpected keyword"), Lockstep(model, units, [Batch((), {"y": 1})]):
        raise AssertionError("not reached")
    assert not forwards() and not any("forward" in vars(module) for module in model.modules())


def test_leaving_early_ends_the_forwards():
    model, units = broken()
    with Lockstep(model, units, [Batch((torch.ones(1, 2),), {})]) as run:
        assert run.next_unit() is units[0] and len(forwards()) == 1
    assert not forwards()


def test_forwards_that_skip_a_unit_wait_for_the_others():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])

        def forward(self, x, first):
            for layer in self.layers[first:]:
                x = layer(x)
            return x

    model = Skips()
    units = find_units(model, find_targets(model, None, [], "none")[0])
    x = torch.ones(1, 2)
    with Lockstep(model, units, [Batch((x, first), {}) for first in (2, 0, 1)]) as run:
        seen = []
        while (unit := run.next_unit()) is not None:
            seen.append((unit.name, len(list(run.calls(unit)))))
            run.run(unit)
    assert seen == [("layers.0", 1), ("layers.1", 2), ("layers.2", 3)]


def test_a_forward_of_the_instance_is_kept():
    model, units = broken()
    calls = []

    def own(x):
        calls.append(x)
        return type(units[0].module).forward(units[0].module, x)

    units[0].module.forward = own
    with Lockstep(model, units, [Batch((torch.ones(1, 2),), {})]) as run:
        while (unit := run.next_unit()) is not None:
            run.run(unit)
    assert len(calls) == 1 and units[0].module.forward is own


def test_a_batch_moves():
    batch = Batch((torch.ones(1), "a"), {"x": torch.ones(2), "y": None}).to(torch.device("meta"))
    assert batch.args[0].is_meta and batch.kwargs["x"].is_meta and batch.args[1] == "a" and batch.kwargs["y"] is None
