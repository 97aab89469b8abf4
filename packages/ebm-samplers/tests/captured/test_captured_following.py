"""What changes between replays of a graph: followed, or noticed and captured anew."""

from dataclasses import replace

import pytest
import torch
from cases import SAMPLERS, Network, close, pair, plain, states
from emulation import EmulatedGraph

from ebm_samplers import (
    LangevinDynamics,
    Stream,
)
from ebm_samplers.captured import CapturedChains
from ebm_samplers.chains import TorchChains


def test_graphs_are_made_once(opened):
    captured, _ = pair(SAMPLERS["langevin"])
    x = states()
    counts = []
    for _ in range(6):
        x = captured.sample_chain(x, 10)
        counts.append(EmulatedGraph.count)
    assert opened == [TorchChains] + [CapturedChains] * 5
    assert counts[0] == 0
    assert len(set(counts[1:])) == 1


def test_numbers_that_forward_holds_are_followed(opened):
    captured, single = pair(SAMPLERS["langevin"])
    x = states()
    for scale in (1.0, 1.0, 3.0, 3.0, -2.0):
        captured.energy.scale = scale
        close(captured.sample_chain(x, 5), plain(lambda: single.sample_chain(x, 5)))
    assert opened[2::2] == [CapturedChains] * 4


def test_energies_that_never_stay_are_left_to_single_steps(opened):
    captured, single = pair(SAMPLERS["langevin"])
    for scale in range(12):
        captured.energy.scale = float(scale)
        close(captured.sample_chain(states(), 5), plain(lambda: single.sample_chain(states(), 5)))
    assert opened[-2] == TorchChains


@pytest.mark.parametrize("name", ("langevin", "hmc"))
def test_replaced_parameters_and_settings_are_followed(name):
    captured, single = pair(SAMPLERS[name])
    energy = captured.energy

    def weights():
        energy.layers[0].weight = torch.nn.Parameter(torch.randn(16, 2))

    def data():
        energy.layers[2].weight.data = torch.randn(1, 16)

    def step_size():
        captured.step_size = single.step_size = 0.02

    def mass():
        captured.mass = single.mass = torch.tensor([3.0, 0.5])

    def mass_in_place():
        captured.mass.mul_(2)

    changes = [weights, data, step_size] + [mass, mass_in_place] * (name == "hmc")
    for change in (lambda: None, *changes):
        change()
        for _ in range(3):
            close(
                captured.sample_chain(states(), 5),
                plain(lambda: single.sample_chain(states(), 5)),
            )


def test_replaced_parameters_are_noticed_at_once():
    """Also if they are equal at first: the old ones would be followed no longer."""
    captured, _ = pair(SAMPLERS["langevin"])
    captured.sample(states(), n_steps=40, seed=1)
    before = EmulatedGraph.count
    layer = captured.energy.layers[0]
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    captured.sample(states(), n_steps=40, seed=1)
    assert EmulatedGraph.count == 2 * before


def test_temperatures_are_followed():
    captured, single = pair(SAMPLERS["mala"])
    for beta in (None, 0.5, torch.linspace(0.1, 1, 5), torch.linspace(1, 2, 5), 0.5):
        for _ in range(2):
            close(
                captured.sample_chain(states(), 5, beta=beta),
                plain(lambda beta=beta: single.sample_chain(states(), 5, beta=beta)),
            )


def test_shared_numbers_need_a_branch(opened):
    class Random(LangevinDynamics):
        def transition(self, state, context):
            state, statistics = super().transition(state, context)
            return self.evaluate(state.x + context.shared_uniform(Stream.LENGTH)), statistics

    class Told(Random):
        def branch(self, context):
            return context.shared_uniform(Stream.LENGTH)

    for kind in (Random, Told):
        captured, single = pair(lambda e, kind=kind: kind(e, 0.1))
        for seed in (3, 4):
            want = plain(lambda s=single, seed=seed: s.sample(states(), n_steps=40, seed=seed))
            close(captured.sample(states(), n_steps=40, seed=seed).final, want.final)
    assert opened[1::2] == [TorchChains] * 2 + [CapturedChains] * 2


@pytest.mark.parametrize("once", (True, False))
def test_what_start_prepares_is_of_each_start(once):
    class Prepared(LangevinDynamics):
        def start(self, x, context):
            if not once or "scale" not in context.prepared:
                context.prepared["scale"] = x.abs().mean()
            return self.evaluate(x)

        def transition(self, state, context):
            state, statistics = super().transition(state, context)
            return replace(state, x=state.x * (1 + context.prepared["scale"])), statistics

    captured, single = pair(lambda e: Prepared(e, 0.01))
    for n, x in ((33, states() / 1e3), (40, states() / 1e2), (34, states() / 1e4)):
        close(
            captured.sample(x, n_steps=n, seed=1).final,
            plain(lambda x=x, n=n: single.sample(x, n_steps=n, seed=1).final),
        )


def test_attributes_that_change():
    class Attributes(LangevinDynamics):
        def transition(self, state, context):
            state, statistics = super().transition(state, context)
            return replace(state, x=state.x * self._factor + self.shift(1.0)), statistics

    captured, single = pair(lambda e: Attributes(e, 0.01))
    for factor, shift in ((0.5, 0.0), (0.7, 0.0), (0.7, 1.0)):
        for sampler in (captured, single):
            sampler._factor, sampler.shift = factor, None
            sampler.shift = lambda x, shift=shift: x + shift
        close(
            captured.sample(states(), n_steps=40, seed=1).final,
            plain(lambda: single.sample(states(), n_steps=40, seed=1).final),
        )


def test_attributes_whose_changes_go_unnoticed(opened):
    captured, _ = pair(SAMPLERS["langevin"])
    captured.numbers = {"a": 1}
    captured.sample(states(), n_steps=40, seed=1)
    assert opened == [TorchChains]


def test_an_energy_with_a_gradient_of_its_own():
    class Clipped(Network):
        clip = 1.0

        def energy_and_gradient(self, x, create_graph=False):
            energy, gradient = super().energy_and_gradient(x, create_graph)
            return energy, gradient.clamp(-self.clip, self.clip)

    captured, single = pair(SAMPLERS["langevin"], Clipped())
    for clip in (1.0, 0.1):
        captured.energy.clip = clip
        close(
            captured.sample(states(), n_steps=40, seed=1).final,
            plain(lambda: single.sample(states(), n_steps=40, seed=1).final),
        )


def test_temperatures_in_turn_share_their_graphs():
    captured, _ = pair(SAMPLERS["mala"])
    counts = []
    for _ in range(3):
        for beta in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0):
            captured.sample(states(), n_steps=40, seed=1, beta=beta)
        counts.append(EmulatedGraph.count)
    assert len(set(counts)) == 1
