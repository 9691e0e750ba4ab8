"""What the optimizer remembers of newly grown weights."""

import copy
import statistics

import pytest
import torch
from torch import nn

import drive
from hf_autosparse import ITOPConfig, MESTConfig, RigLConfig, SETConfig, SNFSConfig, SparseTraining, sparsify
from hf_autosparse.training import driver
from hf_autosparse.training.grown import SHARE, start_optimizer_state
from tiny import assert_same_state
from update_rules import F, T

EVERY_100 = {"first_last": "none", "target_sparsity": 0.8, "every": 100}
GROWING = [
    SETConfig(**EVERY_100),
    RigLConfig(**EVERY_100),
    ITOPConfig(**EVERY_100),
    SNFSConfig(**EVERY_100),
    MESTConfig(**EVERY_100),
]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 0.1, fused=True, amsgrad=True),
        lambda p: torch.optim.Adam(p, 0.1, foreach=True),
        lambda p: torch.optim.Adamax(p, 0.1),
        lambda p: torch.optim.NAdam(p, 0.1),
        lambda p: torch.optim.RAdam(p, 0.1),
        lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, 0.1),
        lambda p: torch.optim.Adadelta(p, 0.1),
    ],
)
def test_momentum_is_forgotten_and_squares_start_where_the_others_are(make):
    """Weights 1 and 2 are kept, 3 is grown, 4 is pruned."""
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = make([weight])
    (weight * torch.tensor([[1.0, 3.0], [1e4, 1e5]])).sum().backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state[weight])
    kept, grown = torch.tensor([[T, T], [F, F]]), torch.tensor([[F, F], [T, F]])
    start_optimizer_state(optimizer, weight, grown, kept)
    momentum = {"momentum_buffer", "exp_avg"}
    changed = set()
    for name, value in optimizer.state[weight].items():
        old = before[name]
        if not torch.is_tensor(value) or value.shape != weight.shape:
            assert value == old
            continue
        assert torch.equal(value[~grown], old[~grown])
        wanted = 0.0 if name in momentum else SHARE * old[0].mean().item()
        assert value[grown].item() == pytest.approx(wanted)
        changed.add(name)
    assert changed


def test_squares_follow_the_gradient_that_weights_were_grown_by():
    weight = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    mean = optimizer.state[weight]["exp_avg_sq"][0].item()
    gradient = torch.tensor([2.0, -2.0, 8.0, 0.1])
    start_optimizer_state(optimizer, weight, torch.tensor([F, F, T, T]), torch.tensor([T, T, F, F]), gradient)
    expected = [mean, mean, 4 * SHARE * mean, SHARE * mean]  # 4 times the gradient; never below the mean
    assert optimizer.state[weight]["exp_avg_sq"].tolist() == pytest.approx(expected)


def first_steps(config, monkeypatch, *, grown_at=400, steps=20, **options) -> float:
    """How far grown weights move in an update beside the others, over their first steps under AdamW."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    teacher = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 8)).requires_grad_(False)
    optimizer = torch.optim.AdamW(sparsify(model, config).parameters(), 1e-3, **options)
    training = SparseTraining(model, steps=900)
    watched, ratios = [], []
    start = driver.start_optimizer_state

    def watching(optimizer, weight, grown, kept, gradient):
        start(optimizer, weight, grown, kept, gradient)
        if training.step == grown_at:
            watched.append((weight, grown, kept))

    monkeypatch.setattr(driver, "start_optimizer_state", watching)
    generator = torch.Generator().manual_seed(1)
    for _ in range(grown_at + steps):
        inputs = torch.randn(64, 32, generator=generator)
        training.begin_step()
        nn.functional.mse_loss(model(inputs), teacher(inputs)).backward()
        training.before_optimizer_step()
        before = [weight.detach().clone() for weight, _, _ in watched]
        optimizer.step()
        for (weight, grown, kept), old in zip(watched, before, strict=True):
            moved = (weight.detach() - old).abs()
            ratios.append((moved[grown].mean() / moved[kept].mean()).item())
        training.end_step(optimizer)
        optimizer.zero_grad()
    assert len(watched) == 3
    return statistics.mean(ratios)


@pytest.mark.parametrize("config", GROWING, ids=lambda config: config.method)
def test_grown_weights_move_as_far_as_kept_ones(config, monkeypatch):
    """5.2 to 6.7 times as far when the averages of squares started at 0."""
    assert first_steps(config, monkeypatch) == pytest.approx(1.0, abs=0.3)


def test_the_same_for_every_implementation_of_adam(monkeypatch):
    config = RigLConfig(**EVERY_100)
    fast = [first_steps(config, monkeypatch, **{option: True}) for option in ("foreach", "fused")]
    assert fast == pytest.approx([first_steps(config, monkeypatch, foreach=False)] * 2, rel=0.05)


@pytest.mark.parametrize("config", GROWING, ids=lambda config: config.method)
def test_a_run_with_adam_resumes_exactly(config):
    config = type(config)(first_last="none", target_sparsity=0.6, every=3)

    def adam(model):
        return torch.optim.AdamW(model.parameters(), 1e-2)

    whole, first, second = (drive.sparse_net(config, seed) for seed in (0, 0, 1))
    drive.drive(whole, adam(whole), 0, 8)
    before, after = adam(first), adam(second)
    drive.drive(first, before, 0, 3)  # just after growth
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    drive.drive(second, after, 3, 8)
    assert_same_state(whole, second)


class Adam8bit(torch.optim.Adam):
    """Keeps its state in 8 bits, as bitsandbytes does."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"state1": torch.zeros(parameter.shape, dtype=torch.uint8)}


def test_quantised_state_is_refused():
    model = drive.sparse_net(RigLConfig(first_last="none", target_sparsity=0.6, every=2))
    optimizer = Adam8bit(model.parameters())
    with pytest.raises(ValueError, match="Adam8bit keeps its state in 8 bits or fewer.*optim='adamw_torch'"):
        drive.drive(model, optimizer, 0, 1)
    weight = model[0].weight
    optimizer.step()
    with pytest.raises(TypeError, match="Adam8bit keeps its state in 8 bits or fewer"):
        start_optimizer_state(optimizer, weight, weight == 0, weight != 0)
