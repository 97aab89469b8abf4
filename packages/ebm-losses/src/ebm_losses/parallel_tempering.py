"""Contrastive divergence with negatives from parallel tempering.

A persistent chain at beta = 1 alone is caught in the modes that it began in. Here each slot of the
buffer holds a whole ladder of replicas, replica i at exp(-beta_i E); hot ones move between modes,
and swaps bring their states down.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ebm_core import (
    ConfigurationError,
    EnergyLike,
    NumericalError,
    TemperedSampler,
    evaluation_mode,
    state_options,
)
from ebm_core.validation import check_integer
from ebm_losses._checks import floating_energies
from ebm_losses.contrastive import ContrastiveObjective, Jitter
from ebm_losses.divergence import RunawayGuard
from ebm_losses.regularization import Regularizer
from ebm_losses.replay_buffer import (
    Initializer,
    ReplayBuffer,
    check_n_negatives,
    initializer_on,
)
from ebm_losses.replica_exchange import (
    check_ladder,
    equalized_ladder,
    geometric_ladder,
    swap_probabilities,
    swapped_order,
)

# Energies whose rounding error is larger than this, in nats, say nothing about their differences.
MAX_ROUNDING = 0.02


class ParallelTemperingContrastiveDivergence(ContrastiveObjective):
    """Persistent chains at several temperatures that swap states.

    From Desjardins et al. 2010 (AISTATS), with the even-odd swaps of Syed et al. 2022
    (arXiv:1905.02939). Each call draws ``min(batch, buffer_size)`` slots, advances all their
    replicas by ``k_steps`` transitions in one call of the sampler, each at its own beta, then tries
    to swap neighbours: pairs (0, 1), (2, 3), … at one visit of a slot, (1, 2), (3, 4), … at the
    next. A swap is accepted with probability min(1, exp((beta_i - beta_j)(E_i - E_j))). Negatives
    are the replicas at beta = 1. Swaps draw from torch's default generator.

    Works on any support and event shape, with any sampler that has it and takes ``beta``. As in
    PCD, a call with given negatives, or one that raises, leaves everything where it was.
    ``state_dict`` holds chains, ladder, swap rates and the sampler's state: a restored run, with
    torch's random state, goes on as if it had not been cut.

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``.
        sampler: An object with ``sample_chain(x_init, n_steps, beta=...) -> final states``, on the
            same energy, where beta is one number a chain (a `TemperedSampler`). What it leaves
            invariant must be exp(-beta E), E being the energy that is trained: the free energy, of
            a machine with hidden units.
        k_steps: Transitions of each replica between swaps, at least 1.
        buffer_size: Number of slots, each a chain at beta = 1 with its hotter replicas.
        betas: Inverse temperatures that begin with 1 and fall; None for `geometric_ladder`, 8
            replicas from 1 to 0.1. On a support without bounds exp(-betas[-1] E) must have a finite
            integral, as it has with a Gaussian base term in the energy.
        adapt_betas: Every so many calls, move the inner rungs to where swap rates are equal, see
            `equalized_ladder`; 0 to leave them (the energy changes slowly, 100 is often enough).
        n_negatives: Number of slots drawn a call, at most ``buffer_size``; None for ``min(batch,
            buffer_size)``.
        initializer: As in `PersistentContrastiveDivergence`; called with ``(slot, replica,
            *event)``.
        regularizers: As in `ContrastiveObjective`.
        jitter: As in `ContrastiveObjective`.
        guard: As in `ContrastiveObjective`.

    Attributes:
        buffer: The `ReplayBuffer`; ``buffer.states`` is ``(slot, replica, *event)``, None before
            the first call.
        betas: The ladder, ``(replica,)``.
        swap_rates: Mean probability that a swap of replicas i and i + 1 is accepted, ``(replica -
            1,)``: the mean over the calls since the ladder was last moved, or one that forgets
            after about 100 calls. NaN before the first call.
        negatives: As in `ContrastiveObjective`.
        metrics: As in `ContrastiveObjective`, and ``swap_rate_0``, ``swap_rate_1``, …: the elements
            of ``swap_rates``.

    Raises:
        ConfigurationError: If the sampler does not take ``beta``, ``betas`` do not fall from 1, or
            a number is out of range.

    Example:
        >>> from ebm_core.testing import QuadraticEnergy, ReferenceLangevin
        >>> energy = QuadraticEnergy(torch.zeros(2))
        >>> sampler = ReferenceLangevin(energy, step_size=0.1)
        >>> loss_fn = ParallelTemperingContrastiveDivergence(energy, sampler, betas=[1.0, 0.5, 0.2])
        >>> loss_fn(torch.randn(64, 2)).backward()
        >>> loss_fn.buffer.states.shape, loss_fn.negatives.shape, loss_fn.swap_rates.shape
        (torch.Size([256, 3, 2]), torch.Size([64, 2]), torch.Size([2]))
    """

    betas: Tensor
    parity: Tensor
    swap_rates: Tensor

    def __init__(
        self,
        energy: EnergyLike,
        sampler: TemperedSampler,
        k_steps: int = 2,
        buffer_size: int = 256,
        betas: Sequence[float] | Tensor | None = None,
        *,
        adapt_betas: int = 0,
        n_negatives: int | None = None,
        initializer: Initializer | None = None,
        regularizers: Sequence[Regularizer] = (),
        jitter: Jitter | float | None = None,
        guard: RunawayGuard | bool = True,
    ) -> None:
        super().__init__(
            energy, sampler, k_steps, regularizers=regularizers, jitter=jitter, guard=guard
        )
        _check_tempered(sampler)
        device, dtype = state_options(self.energy)
        ladder = check_ladder(geometric_ladder() if betas is None else betas)
        self.register_buffer("betas", ladder.to(device, dtype, copy=True))
        self.adapt_betas = check_integer("adapt_betas", adapt_betas)
        self.buffer = ReplayBuffer(
            buffer_size,
            initializer=initializer_on(self.energy.support) if initializer is None else initializer,
        )
        self.n_negatives = check_n_negatives(n_negatives, self.buffer.size)
        self.register_buffer("parity", torch.zeros(self.buffer.size, dtype=torch.int8))
        self.register_buffer("swap_rates", torch.full_like(self.betas[1:], torch.nan))
        self._n_averaged = 0
        self._drawn: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def n_replicas(self) -> int:
        """Number of rungs of the ladder."""
        return len(self.betas)

    def draw_negatives(self, x: Tensor) -> Tensor:
        """States at beta = 1 after transitions and swaps; the call keeps the chains at its end."""
        event_shape = (self.n_replicas, *x.shape[1:])
        self.buffer.prepare(event_shape, device=x.device, dtype=x.dtype)
        with torch.inference_mode(False):
            for name in ("betas", "parity", "swap_rates"):  # chains follow the data's device
                setattr(self, name, getattr(self, name).to(x.device))
        n = self.n_negatives or min(len(x), self.buffer.size)
        slots, chains = self.buffer.draw(n)
        states = self.advance(chains.flatten(0, 1), beta=self.betas.repeat(n))
        energies = self._energies(states).reshape(n, self.n_replicas)
        probabilities = swap_probabilities(energies, self.betas.to(energies))
        order = swapped_order(probabilities, self.parity[slots], torch.rand_like(probabilities))
        rows = torch.arange(n, device=x.device)[:, None]
        states = states.reshape(n, *event_shape)[rows, order]
        self._drawn = slots, states, probabilities.mean(0).to(self.swap_rates)
        return states[:, 0]

    def keep_chains(self) -> None:
        """Put the replicas back, count their visits, and move the ladder if it is time."""
        assert self._drawn is not None, "keep_chains follows draw_negatives"
        slots, states, _ = self._drawn
        # Tensors of inference mode could be neither trained with nor loaded into.
        with torch.inference_mode(False), torch.no_grad():
            self.buffer.write(slots, states)
            self.parity[slots] = 1 - self.parity[slots]
            self.swap_rates = self._averaged().clone()
            self._n_averaged += 1
            if 0 < self.adapt_betas <= self._n_averaged:
                self.betas = equalized_ladder(self.betas, self.swap_rates)
                self._n_averaged = 0
        self._drawn = None

    def contrast(self, x: Tensor, negatives: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """As in `ContrastiveObjective`, with swap rates among the metrics."""
        loss, metrics = super().contrast(x, negatives)
        if not self._has_drawn:
            return loss, metrics
        rates = {f"swap_rate_{i}": rate for i, rate in enumerate(self._averaged())}
        return loss, {**metrics, **rates}

    def get_extra_state(self) -> dict[str, Any]:
        """As in `ContrastiveObjective`, and how many calls ``swap_rates`` is the mean of."""
        return {**super().get_extra_state(), "n_averaged": self._n_averaged}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_extra_state` gave; see `ContrastiveObjective.set_extra_state`."""
        super().set_extra_state(state)
        self._n_averaged = state.get("n_averaged", 0)

    def extra_repr(self) -> str:
        """Sampler, steps and ladder, for ``repr``."""
        ladder = ", ".join(f"{beta:.3g}" for beta in self.betas.tolist())
        return f"{super().extra_repr()}, betas=({ladder}), adapt_betas={self.adapt_betas}"

    def _averaged(self) -> Tensor:
        """Swap rates with those of this call."""
        assert self._drawn is not None, "this call has drawn negatives"
        rates = self._drawn[2]
        if self._n_averaged == 0:
            return rates
        weight = 1.0 / min(self._n_averaged + 1, max(100, self.adapt_betas))
        return self.swap_rates + weight * (rates - self.swap_rates)

    def _energies(self, states: Tensor) -> Tensor:
        """E of all replicas, if swaps can be decided by it."""
        with torch.no_grad(), evaluation_mode(self.energy):
            energies = floating_energies(self.energy, states)
        largest = energies.abs().max().item()
        if not torch.finfo(energies.dtype).eps * largest <= MAX_ROUNDING:  # NaN is refused, too
            raise NumericalError(
                f"replicas have energies of up to {largest:g} in {energies.dtype}",
                f"energies that are exact to {MAX_ROUNDING} nats, for the accept test of swaps",
                "lower the learning rate or the sampler's step size; if such energies are right, "
                "subtract a constant or use float64",
            )
        return energies


def _check_tempered(sampler: Any) -> None:
    try:
        parameters = inspect.signature(sampler.sample_chain).parameters.values()
    except (TypeError, ValueError):  # compiled code has none to look at
        return
    if not any(p.name == "beta" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise ConfigurationError(
            f"sample_chain of {type(sampler).__name__} takes no beta",
            "a tempered sampler: sample_chain(x_init, n_steps, *, beta=...)",
            "use one that targets exp(-beta E), such as those of ebm-samplers, or "
            "PersistentContrastiveDivergence",
        )
