"""Conformance of samplers: the one method a loss needs, and the full ``sample``."""

import io
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ebm_core.energy import EnergyFunction
from ebm_core.errors import ConfigurationError, EBMError, SupportError
from ebm_core.seeding import make_generator
from ebm_core.support import spin
from ebm_core.testing.reference import QuadraticEnergy

MakeSampler = Callable[[EnergyFunction], Any]


class SamplerConformance:
    """What every sampler of continuous states must do.

    Give a fixture ``make_sampler``: a function ``energy -> sampler``.

    Attributes:
        n_chains: Chains in the test of moments, started from exact draws.
        n_steps: Steps in that test.
        bias: Allowed bias of means (in standard deviations) and relative bias of variances; 0 for
            samplers with an accept step.
        z_limit: Largest allowed z-score beyond that bias.
    """

    n_chains: int = 4000
    n_steps: int = 20
    bias: float = 0.0
    z_limit: float = 5.0

    def energy(self, dtype: torch.dtype = torch.float64) -> QuadraticEnergy:
        """The target: Gaussian, event shape (2, 2)."""
        mean = torch.tensor([[1.0, -1.0], [0.0, 2.0]], dtype=dtype)
        precision = torch.tensor([[1.0, 2.0], [0.5, 1.0]], dtype=dtype)
        return QuadraticEnergy(mean, precision)

    def test_keeps_shape_dtype_and_start(self, make_sampler: MakeSampler) -> None:
        for dtype in (torch.float32, torch.float64):
            energy = self.energy(dtype)
            x = energy.exact_sample(5, seed=0).requires_grad_()
            before = x.detach().clone()
            final = make_sampler(energy).sample_chain(x, 3)
            assert final.shape == x.shape
            assert final.dtype == dtype
            assert not final.requires_grad
            assert torch.equal(x, before)
            assert not torch.equal(final, before)
            assert all(parameter.grad is None for parameter in energy.parameters())

    def test_consecutive_calls_use_fresh_randomness(self, make_sampler: MakeSampler) -> None:
        sampler, x = make_sampler(self.energy()), self.energy().exact_sample(5, seed=0)
        assert not torch.equal(sampler.sample_chain(x, 2), sampler.sample_chain(x, 2))

    def test_restores_the_training_mode(self, make_sampler: MakeSampler) -> None:
        energy = self.energy().train()
        make_sampler(energy).sample_chain(energy.exact_sample(3, seed=0), 1)
        assert energy.training

    def test_keeps_the_target(self, make_sampler: MakeSampler) -> None:
        energy = self.energy()
        torch.manual_seed(0)
        x = energy.exact_sample(self.n_chains, seed=3)
        final = make_sampler(energy).sample_chain(x, self.n_steps)
        self._check_moments(energy, final)

    def test_a_discrete_support_is_refused(self, make_sampler: MakeSampler) -> None:
        energy = self.energy()
        energy.support = spin
        _must_raise(SupportError, lambda: make_sampler(energy))

    def _check_moments(self, energy: QuadraticEnergy, final: Tensor) -> None:
        deviation = (final - energy.mean()) * energy.precision.detach().sqrt()
        n = len(final)
        assert deviation.mean(0).abs().max() <= self.bias + self.z_limit / math.sqrt(n)
        spread = (deviation.square().mean(0) - 1).abs().max()
        assert spread <= self.bias + self.z_limit * math.sqrt(2 / n)


class BaseSamplerConformance(SamplerConformance):
    """What ``sample`` of a `BaseSampler` must do beside. Give a fixture ``make_sampler``."""

    def start(self, n: int = 6) -> Tensor:
        """Start states, ``(n, 2, 2)``."""
        return torch.randn((n, 2, 2), generator=make_generator(5), dtype=torch.float64)

    def test_a_seed_repeats_the_run_and_moves_nothing(self, make_sampler: MakeSampler) -> None:
        sampler, x = make_sampler(self.energy()), self.start()
        sampler.sample_chain(x, 1)
        state, globally = sampler.state_dict(), torch.get_rng_state()
        runs = [sampler.sample(x, n_steps=4, seed=seed, keep="trajectory") for seed in (7, 7, 8)]
        assert sampler.state_dict() == state
        assert torch.equal(globally, torch.get_rng_state())
        assert torch.equal(runs[0].trajectory, runs[1].trajectory)
        assert not torch.equal(runs[0].trajectory, runs[2].trajectory)
        assert runs[0].seed == 7

    def test_manual_seed_governs_the_rest(self, make_sampler: MakeSampler) -> None:
        finals = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            finals.append(make_sampler(self.energy()).sample(self.start(), n_steps=2).final)
        assert torch.equal(finals[0], finals[1])
        assert not torch.equal(finals[0], finals[2])

    def test_draws_and_what_is_kept(self, make_sampler: MakeSampler) -> None:
        energy = self.energy()
        sampler, x = make_sampler(energy), self.start()
        every = sampler.sample(x, n_steps=7, burn_in=2, seed=0, keep="trajectory")
        thinned = sampler.sample(x, n_steps=7, burn_in=2, thin=3, seed=0, keep="trajectory")
        final = sampler.sample(x, n_steps=7, burn_in=2, seed=0)
        moments = sampler.sample(x, n_steps=7, burn_in=2, thin=3, seed=0, keep="moments")
        assert every.trajectory.shape == (6, 7, 2, 2)
        assert torch.equal(every.trajectory[:, -1], every.final)
        assert torch.equal(thinned.trajectory, every.trajectory[:, [2, 5]])
        assert torch.equal(final.final, every.final)
        assert final.trajectory is None
        assert final.potential.shape == (6, 1)
        assert every.potential.shape == (6, 7)
        expected = energy(every.trajectory.flatten(0, 1)).reshape(6, 7)
        torch.testing.assert_close(every.potential, expected.detach())
        assert moments.trajectory is None
        assert moments.moments.count == 2
        torch.testing.assert_close(moments.moments.mean, thinned.trajectory.mean(1))
        torch.testing.assert_close(moments.moments.variance, thinned.trajectory.var(1))
        for name, values in every.stats.items():
            assert values.shape == ((6,) if name == "step_size" else (6, 7)), name
        for name, values in final.stats.items():
            assert values.shape == ((6,) if name == "step_size" else (6, 1)), name

    def test_starts_from_standard_normals(self, make_sampler: MakeSampler) -> None:
        sampler = make_sampler(self.energy())
        result = sampler.sample(n_samples=9, n_steps=1, seed=0)
        assert result.final.shape == (9, 2, 2)
        assert result.final.dtype == torch.float64
        free = make_sampler(lambda x: x.square().sum(1))  # type: ignore[arg-type]
        assert free.sample(n_samples=4, dim=3, n_steps=1, seed=0).final.shape == (4, 3)
        _must_raise(ConfigurationError, lambda: free.sample(n_samples=4, n_steps=1))

    def test_a_resumed_run_equals_the_uncut_one(self, make_sampler: MakeSampler) -> None:
        whole = make_sampler(self.energy()).sample(
            self.start(), n_steps=9, burn_in=2, seed=3, keep="trajectory"
        )
        first = make_sampler(self.energy()).sample(
            self.start(), n_steps=4, burn_in=2, seed=3, keep="trajectory"
        )
        file = io.BytesIO()
        torch.save(dict(first.resume), file)
        file.seek(0)
        second = make_sampler(self.energy()).sample(
            resume=torch.load(file, weights_only=True), n_steps=5, keep="trajectory"
        )
        assert torch.equal(torch.cat([first.trajectory, second.trajectory], 1), whole.trajectory)

    def test_its_state_restores_the_stream(self, make_sampler: MakeSampler) -> None:
        sampler, x = make_sampler(self.energy()), self.start()
        sampler.sample_chain(x, 3)
        twin = make_sampler(self.energy())
        twin.load_state_dict(sampler.state_dict())
        assert torch.equal(twin.sample_chain(x, 2), sampler.sample_chain(x, 2))

    def test_a_callback_stops_the_run(self, make_sampler: MakeSampler) -> None:
        seen = []
        result = make_sampler(self.energy()).sample(
            self.start(),
            n_steps=50,
            seed=0,
            keep="trajectory",
            callback=lambda result: seen.append(result.n_draws) or len(seen) == 2,  # type: ignore[func-returns-value]
        )
        assert len(seen) == 2
        assert result.n_draws == seen[-1] < 50

    def test_wrong_arguments_are_refused(self, make_sampler: MakeSampler) -> None:
        sampler, x = make_sampler(self.energy()), self.start()
        for arguments in (
            {"x_init": x, "n_steps": 0},
            {"x_init": x, "n_steps": -5},
            {"x_init": x, "n_steps": 2.5},
            {"x_init": x, "n_steps": 2, "thin": 3},
            {"x_init": x, "n_steps": 2, "thin": 0},
            {"x_init": x, "n_steps": 2, "burn_in": -1},
            {"x_init": x, "n_steps": 2, "n_samples": 6},
            {"x_init": x, "n_steps": 2, "dim": 2},
            {"x_init": x[0], "n_steps": 2},
            {"x_init": x, "n_steps": 2, "seed": -1},
            {"n_steps": 2},
        ):
            _must_raise(EBMError, partial(sampler.sample, **arguments))


def _must_raise(error: type[Exception], call: Callable[[], Any]) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"{error.__name__} was not raised")
