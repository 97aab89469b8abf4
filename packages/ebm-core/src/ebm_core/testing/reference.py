"""An energy about which everything is known, and the plainest sampler, to test others with."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ebm_core.energy import EnergyFunction, EnergyLike, evaluation_mode, state_options
from ebm_core.errors import ConfigurationError
from ebm_core.protocols import BaseSampler, Callback, Keep
from ebm_core.results import Moments, SampleResult
from ebm_core.seeding import draw_key, make_generator
from ebm_core.support import require_continuous
from ebm_core.validation import check_event_shape, check_integer, check_positive


class QuadraticEnergy(EnergyFunction):
    """E(x) = ½ Σ_i precision_i (x_i - mean_i)²: independent Gaussians with trainable parameters.

    A full `ExactDistribution`.

    Args:
        mean: Of the event's shape.
        precision: Positive, of the same shape; ones by default.
    """

    def __init__(self, mean: Tensor, precision: Tensor | None = None) -> None:
        super().__init__()
        self.location = nn.Parameter(mean.clone())
        self.precision = nn.Parameter(torch.ones_like(mean) if precision is None else precision)
        self.event_shape = mean.shape

    def forward(self, x: Tensor) -> Tensor:
        """½ Σ precision (x - mean)²: ``(*batch, *event) -> (*batch,)``."""
        squares = self.precision * (x - self.location).square()
        return 0.5 * squares.flatten(x.ndim - self.location.ndim).sum(-1)

    def log_normalizer(self) -> Tensor:
        """½ Σ log(2π / precision)."""
        return 0.5 * (2 * math.pi / self.precision).log().sum()

    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` draws, ``(n, *event)``."""
        generator = make_generator(seed, self.location.device)
        shape, dtype, device = (n, *self.location.shape), self.location.dtype, self.location.device
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return (self.location + noise / self.precision.sqrt()).detach()

    def mean(self) -> Tensor:
        """The mean, of the event's shape."""
        return self.location.detach()

    def covariance(self) -> Tensor:
        """The covariance of the flattened event, ``(d, d)``."""
        return torch.diag(1 / self.precision.detach().flatten())


class ReferenceLangevin(BaseSampler):
    """Unadjusted Langevin steps x' = x - h ∇E + sqrt(2h) ξ, one after the other, in plain torch.

    For tests that need some sampler: right, slow, with no option to get wrong. Its random numbers
    come from a torch generator made anew for each step from key and step number, so that runs can
    be resumed.

    Args:
        energy: The energy, or any callable ``(batch, *event) -> (batch,)``.
        step_size: h > 0. The stationary variance on a Gaussian of precision λ is 1/(λ(1 - hλ/2)).
    """

    def __init__(self, energy: EnergyLike, step_size: float = 0.1) -> None:
        super().__init__(energy)
        require_continuous(self.energy.support, type(self).__name__)
        self.step_size = check_positive("step_size", step_size)
        self._key: int | None = None
        self._counter = 0

    def sample_chain(
        self, x_init: Tensor, n_steps: int, *, beta: float | Tensor | None = None
    ) -> Tensor:
        """Final states of chains under exp(-beta E); see `TemperedSampler`."""
        self.energy.batch_size(x_init)
        if self._key is None:
            self._key = draw_key(None)
        x = x_init.detach().clone()
        factor = torch.as_tensor(1.0 if beta is None else beta).to(x)
        factor = factor.reshape(-1, *[1] * (x.ndim - 1))
        with evaluation_mode(self.energy):
            for step in range(self._counter, self._counter + n_steps):
                x = self._step(x, self._key, step, factor)
        self._counter += n_steps
        return x

    def sample(
        self,
        x_init: Tensor | None = None,
        *,
        n_steps: int,
        n_samples: int | None = None,
        dim: int | tuple[int, ...] | None = None,
        thin: int = 1,
        burn_in: int = 0,
        keep: Keep = "final",
        seed: int | None = None,
        first_chain: int = 0,
        resume: Mapping[str, Any] | None = None,
        progress: bool | None = None,
        callback: Callback | None = None,
    ) -> SampleResult:
        """Run chains; see `BaseSampler.sample`. ``first_chain`` is refused, ``progress`` unused."""
        check_integer("n_steps", n_steps, at_least=1)
        check_integer("burn_in", burn_in)
        n_draws = n_steps // check_integer("thin", thin, at_least=1)
        if n_draws == 0 or first_chain != 0:
            raise ConfigurationError(
                f"thin={thin}, n_steps={n_steps}, first_chain={first_chain}",
                "thin <= n_steps, and first_chain 0 in this reference sampler",
                "lower thin, or use a sampler with a stream for each chain",
            )
        key, counter = draw_key(seed), 0
        if seed is None:
            key = self._key = key if self._key is None else self._key
            counter = self._counter
            self._counter += burn_in + n_steps
        if resume is not None:
            x, key, counter = resume["x"].clone(), resume["key"], resume["counter"]
        else:
            x = self._start(x_init, n_samples, dim, key)
        draws, moments = [], None
        with evaluation_mode(self.energy):
            for step in range(1 - burn_in, n_steps + 1):
                x = self._step(x, key, counter, torch.ones(()).to(x))
                counter += 1
                if step < 1 or step % thin:
                    continue
                if keep == "trajectory":
                    draws.append(x)
                elif keep == "moments":
                    draw = Moments.of(x)
                    moments = draw if moments is None else moments.merged(draw)
                state = {"x": x, "key": key, "counter": counter}
                if callback is not None and callback(self._result(x, draws, moments, key, state)):
                    break
        return self._result(x, draws, moments, key, {"x": x, "key": key, "counter": counter})

    def state_dict(self) -> dict[str, Any]:
        """Key and step counter."""
        return {"key": self._key, "counter": self._counter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore key and step counter."""
        self._key, self._counter = state_dict["key"], state_dict["counter"]

    def _start(
        self,
        x_init: Tensor | None,
        n_samples: int | None,
        dim: int | tuple[int, ...] | None,
        key: int,
    ) -> Tensor:
        if x_init is not None:
            if n_samples is not None or dim is not None:
                raise ConfigurationError(
                    "x_init together with n_samples or dim", "one or the other", "drop x_init"
                )
            self.energy.batch_size(x_init)
            return x_init.detach().clone()
        event_shape = self.energy.event_shape if dim is None else check_event_shape("dim", dim)
        if event_shape is None or n_samples is None:
            raise ConfigurationError(
                f"no x_init, n_samples={n_samples}, dim={dim}", "both", "pass n_samples and dim"
            )
        device, dtype = state_options(self.energy)
        shape = (check_integer("n_samples", n_samples, at_least=1), *event_shape)
        return torch.randn(shape, generator=make_generator(key), dtype=dtype).to(device)

    def _step(self, x: Tensor, key: int, step: int, factor: Tensor) -> Tensor:
        generator = make_generator((key + 0x9E3779B97F4A7C15 * (step + 1)) % 2**64)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        drift = factor * self.energy.gradient(x)
        return x - self.step_size * drift + math.sqrt(2 * self.step_size) * noise

    def _result(
        self,
        x: Tensor,
        draws: list[Tensor],
        moments: Moments | None,
        key: int,
        resume: Mapping[str, Any],
    ) -> SampleResult:
        trajectory = torch.stack(draws, dim=1) if draws else None
        states = x.unsqueeze(1) if trajectory is None else trajectory
        with torch.no_grad(), evaluation_mode(self.energy):
            potential = self.energy(states.flatten(0, 1)).reshape(states.shape[:2])
        stats = {
            "acceptance_rate": torch.ones_like(potential),
            "diverging": ~torch.isfinite(potential),
            "step_size": torch.full_like(potential[:, 0], self.step_size),
        }
        return SampleResult(x, trajectory, potential, stats, moments, key, resume)
