"""Changes of an energy reach its kernel, between calls and within one."""

import pytest
import torch
from agreement import X
from targets import DoubleWell, perceptron
from torch import nn

from ebm_core import ConfigurationError, EnergyFunction, as_energy
from ebm_samplers import LangevinDynamics
from ebm_samplers.fused import counts

pytestmark = pytest.mark.usefixtures("eight_lanes")


class TestWhatIsFollowed:
    """Changes of an energy between two calls reach the kernel, or it is made again."""

    def follows(self, energy, change, retraced):
        sampler = LangevinDynamics(energy, 0.01, engine="fused")
        before = sampler.sample(X, n_steps=3, seed=0).final
        seen = dict(counts)
        change()
        after = sampler.sample(X, n_steps=3, seed=0).final
        want = LangevinDynamics(energy, 0.01, engine="torch").sample(X, n_steps=3, seed=0).final
        assert torch.allclose(after, want, atol=1e-5)
        assert not torch.allclose(after, before, atol=1e-3)
        assert counts["traced"] - seen.get("traced", 0) == retraced

    def test_a_parameter(self):
        energy = DoubleWell()
        self.follows(energy, lambda: energy.b.data.mul_(1.5), 0)

    def test_a_parameter_that_is_replaced(self):
        energy = DoubleWell()
        self.follows(energy, lambda: setattr(energy, "b", nn.Parameter(torch.tensor(2.0))), 0)

    def test_a_tensor_of_a_closure_in_place(self):
        width = torch.tensor(1.0)
        self.follows(lambda x: (x / width).square().sum(1), lambda: width.fill_(0.3), 0)

    def test_a_rebound_tensor_of_a_closure(self):
        width = torch.tensor(1.0)

        def rebind():
            nonlocal width
            width = torch.tensor(0.3)

        self.follows(as_energy(lambda x: (x / width).square().sum(1)), rebind, 1)

    def test_a_float_attribute(self):
        class Scaled(EnergyFunction):
            scale = 1.0

            def forward(self, x):
                return self.scale * x.square().sum(1)

        energy = Scaled()
        self.follows(energy, lambda: setattr(energy, "scale", 5.0), 1)

    def test_a_float_attribute_where_all_chains_start_at_one_place(self):
        """Torch may give one state energies that differ in the last bit, by its row of a batch."""

        class Scaled(EnergyFunction):
            scale = 0.5

            def forward(self, x):
                rounding = torch.arange(len(x)) % 2 * 2e-7
                return 1 + self.scale * x.square().sum(1) + rounding

        energy, origin = Scaled(), torch.zeros(6, 2)
        again, torchs = (LangevinDynamics(energy, 0.01, engine=e) for e in ("fused", "torch"))
        torchs.sample_chain(origin, 1)
        start = torchs.state_dict()
        for scale in (0.5, 0.5, 20.0):
            energy.scale = scale
            torchs.load_state_dict(start)
            want = torchs.sample_chain(origin, 5)
            for sampler in (again, LangevinDynamics(energy, 0.01, engine="fused")):
                sampler.load_state_dict(start)
                assert torch.allclose(sampler.sample_chain(origin, 5), want, atol=1e-5)

    def test_to_on_a_module_of_a_closure(self):
        class Shift(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("at", torch.tensor([0.5, -0.5]))

            def _apply(self, function, recurse=True):  # as `.to()` of another dtype and back does
                self.at = function(self.at).clone() + 1
                return self

        shift = Shift()
        energy = as_energy(lambda x: (x - shift.at).square().sum(1))
        self.follows(energy, lambda: shift.to(torch.float32), 1)

    def test_a_schedule_of_attributes_ends_on_the_torch_engine(self):
        class Scaled(EnergyFunction):
            scale = 1.0

            def forward(self, x):
                return self.scale * x.square().sum(1)

        energy = Scaled()
        sampler = LangevinDynamics(energy, 0.01)
        for k in range(8):
            energy.scale = 1.0 + k
            sampler.sample_chain(X, 1)
        assert "keep numbers that change in buffers" in sampler.explain(X).reason


def test_training_steps_neither_trace_nor_compile():
    energy = perceptron()
    optimizer = torch.optim.SGD(energy.parameters(), 0.1)
    sampler = LangevinDynamics(energy, 0.05, engine="fused")
    sampler.sample_chain(X, 2)
    before = dict(counts)
    for _ in range(5):
        negatives = sampler.sample_chain(X, 2)
        optimizer.zero_grad()
        (energy(X).mean() - energy(negatives).mean()).backward()
        optimizer.step()
        reference = LangevinDynamics(energy, 0.05, engine="torch")
        a, b = (s.sample(X, n_steps=3, seed=1).final for s in (sampler, reference))
        assert torch.allclose(a, b, atol=1e-5)
    assert dict(counts) == before


def test_what_a_callback_changes_is_seen_by_the_next_steps():
    class Spring(EnergyFunction):
        def __init__(self):
            super().__init__()
            self.register_buffer("stiffness", torch.tensor(1.0))

        def forward(self, x):
            return self.stiffness * x.square().sum(1)

    def run(engine, change):
        energy = Spring()
        return LangevinDynamics(energy, 0.05, engine=engine).sample(
            X, n_steps=8, keep="trajectory", seed=0, callback=lambda result: change(energy)
        )

    stiffen = [
        run(engine, lambda e: e.stiffness.mul_(1.5) is None) for engine in ("torch", "fused")
    ]
    assert torch.allclose(stiffen[0].trajectory, stiffen[1].trajectory, atol=1e-5)
    still = run("fused", lambda e: False)
    assert not torch.allclose(stiffen[1].final, still.final, atol=1e-2)
    with pytest.raises(ConfigurationError, match="changed during the run.*stiffness") as caught:
        run("fused", lambda e: setattr(e, "stiffness", torch.ones(2)))
    assert caught.value.result.trajectory.shape[1] == 1
