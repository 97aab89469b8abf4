"""Energy matching: an energy that carries noise to data, and is their density where they are.

Far from the data the energy's gradient is fitted to optimal transport from noise to data, as in
flow matching, but with one potential for all times. Near the data a contrastive term shapes it into
a Boltzmann density.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ebm_core import (
    EnergyFunction,
    EnergyLike,
    Sampler,
    evaluation_mode,
    require_continuous,
)
from ebm_core.validation import check_integer, check_number, check_positive
from ebm_losses._checks import check_batch, check_finite_states, check_floating
from ebm_losses._coupling import import_pot, optimal_pairs
from ebm_losses._sampler_loss import SamplerLoss
from ebm_losses._terms import EnergyTerms, SlopeTerms


class EnergyMatching(SamplerLoss):
    """Energy matching (Balcerak et al. 2025, arXiv:2504.10612).

    The first ``warm_up`` training calls are the paper's Algorithm 1, flow alone,

        L_OT = mean_batch Σ_event (∇E(x_t) + x - ε)²,     x_t = (1 - t) ε + t x,

    with t ~ U(0, 1) and noise ε ~ N(0, I) paired with the batch by optimal transport (POT's exact
    network simplex, squared distances). All later calls are Algorithm 2, L_OT + λ L_CD, with

        L_CD = mean_batch E(x) - mean_negatives E(x̃).

    Negatives are Langevin chains x̃ ← x̃ - Δt ∇E + √(2 Δt ε(t)) ξ, one for each state of the batch:
    half start from data, at the temperature ε_max throughout; half from noise at t = 0, at the
    temperature ε(t) = 0 until t = τ*, from there rising linearly to ε_max at t = 1, where it stays.
    So a chain from noise first travels along the flow, one unit of time long, and then settles.

    The learned density is exp(-E/ε_max), not exp(-E): `equilibrium` is the energy that belongs to
    it. It is the data's as far as the contrastive term outweighs the flow, which goes on pulling,
    and as far as chains travel: the relative weight of modes that they do not cross between is set
    by the flow, whatever the data's. Samples come from the same chains, started from noise. Bring
    data to about unit scale first, as noise has unit variance.

    Sums run over the event; code that averages the flow term over its elements, as the paper's
    authors do, has a λ smaller by their number.

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``, on a
            continuous support and twice differentiable.
        warm_up: Training calls (those with gradients on) that use the flow alone, at least 0. The
            count is saved with ``state_dict``.
        contrastive_weight: λ, at least 0.
        temperature: ε_max, positive, in the units of E.
        ramp_start: τ*, in [0, 1].
        n_steps: Langevin steps of a negative, at least 1.
        step_size: Δt, positive.
        sampler: Makes negatives instead of the scheme above, by ``sample_chain(start, n_steps)``
            from the same starts; it should target exp(-E/ε_max), so give it
            ``energy.tempered(temperature)``. Its state is saved with ``state_dict``. None for the
            paper's scheme.

    Attributes:
        n_calls: Training calls so far, an integer tensor.
        negatives: Those of the last call, ``(batch, *event)``; None without any.
        metrics: ``flow`` (L_OT); after the warm-up ``data_energy``, ``negative_energy`` and
            ``energy_gap`` (the second minus the first).

    Raises:
        ConfigurationError: If a number is out of range, ``sampler`` has no ``sample_chain``, or POT
            is not installed (``pip install 'ebm-losses[ot]'``).
        SupportError: If the energy's support is discrete.

    Example:
        >>> loss_fn = EnergyMatching(lambda x: 0.5 * x.square().sum(1), warm_up=1)
        >>> sorted(loss_fn(torch.randn(64, 2)) and loss_fn.metrics)
        ['flow']
        >>> sorted(loss_fn(torch.randn(64, 2)) and loss_fn.metrics)
        ['data_energy', 'energy_gap', 'flow', 'negative_energy']
    """

    n_calls: Tensor

    def __init__(
        self,
        energy: EnergyLike,
        warm_up: int = 1000,
        *,
        contrastive_weight: float = 1.0,
        temperature: float = 0.1,
        ramp_start: float = 0.9,
        n_steps: int = 200,
        step_size: float = 0.01,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__(energy, sampler)
        require_continuous(self.energy.support, type(self).__name__)
        self.warm_up = check_integer("warm_up", warm_up)
        self.contrastive_weight = check_number("contrastive_weight", contrastive_weight, at_least=0)
        self.temperature = check_positive("temperature", temperature)
        self.ramp_start = check_number("ramp_start", ramp_start, at_least=0, at_most=1)
        self.n_steps = check_integer("n_steps", n_steps, at_least=1)
        self.step_size = check_positive("step_size", step_size)
        self.negatives: Tensor | None = None
        self.register_buffer("n_calls", torch.zeros((), dtype=torch.int64))
        import_pot(type(self).__name__)

    @property
    def equilibrium(self) -> EnergyFunction:
        """E/ε_max, the energy of the learned density."""
        return self.energy.tempered(self.temperature)

    def temperature_at(self, time: float) -> float:
        """ε(t) of a chain that starts from noise at t = 0; see the class."""
        if time >= 1:
            return self.temperature
        if time <= self.ramp_start:
            return 0.0
        return self.temperature * (time - self.ramp_start) / (1 - self.ramp_start)

    def flow(self, x: Tensor) -> Tensor:
        """L_OT on data ``(batch, *event)``, a scalar."""
        noise = torch.randn_like(x)
        noise = noise[optimal_pairs(x, noise, import_pot(type(self).__name__))]
        time = torch.rand((len(x), *[1] * (x.ndim - 1)), device=x.device, dtype=x.dtype)
        mixed, target = torch.lerp(noise, x, time), noise - x
        return self.evaluate_terms(SlopeTerms(self.energy), mixed, target)[0].mean()

    def draw_negatives(self, x: Tensor) -> Tensor:
        """Negatives ``(batch, *event)`` for data of that shape, detached; see the class.

        Raises:
            NumericalError: If they are not finite.
        """
        n_from_data = len(x) // 2
        start = torch.cat([x[:n_from_data], torch.randn_like(x[n_from_data:])]).detach()
        if self.sampler is None:
            with evaluation_mode(self.energy):
                final = self._langevin(start, n_from_data)
        else:
            final = self.run_sampler(start, self.n_steps)
        return check_finite_states(
            final,
            origin=f"of {type(self).__name__}",
            remedy="lower step_size, contrastive_weight or the learning rate, warm up for longer, "
            "and check that the data are finite",
        )

    def compute(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss on data ``(batch, *event)``; see the class.

        Raises:
            ShapeError: If ``x`` is no batch of the energy's states.
            ConfigurationError: If the data are not floating.
            NumericalError: If data or negatives are not finite.
        """
        check_batch(self.energy, x)
        check_floating(x, type(self).__name__)
        flow = self.flow(x)
        loss, metrics = flow, {"flow": flow}
        self.negatives = None
        if int(self.n_calls) >= self.warm_up and self.contrastive_weight > 0:
            self.negatives = self.draw_negatives(x)
            data_energy, negative_energy = (
                self.evaluate_terms(EnergyTerms(self.energy), states)[0].mean()
                for states in (x, self.negatives)
            )
            loss = flow + self.contrastive_weight * (data_energy - negative_energy)
            metrics |= {
                "data_energy": data_energy,
                "negative_energy": negative_energy,
                "energy_gap": negative_energy - data_energy,
            }
        if torch.is_grad_enabled():
            self.n_calls += 1
        return loss, metrics

    def extra_repr(self) -> str:
        """What sets the phases and the chains apart, for ``repr``."""
        return (
            f"warm_up={self.warm_up}, contrastive_weight={self.contrastive_weight}, "
            f"temperature={self.temperature}, n_steps={self.n_steps}, step_size={self.step_size}"
        )

    def _langevin(self, states: Tensor, n_from_data: int) -> Tensor:
        for step in range(self.n_steps):
            temperatures = states.new_full((len(states),), self.temperature)
            temperatures[n_from_data:] = self.temperature_at(step * self.step_size)
            scale = (2 * self.step_size * temperatures).sqrt()
            noise = scale.reshape(-1, *[1] * (states.ndim - 1)) * torch.randn_like(states)
            states = states - self.step_size * self.energy.gradient(states) + noise
        return states
