"""Contrastive divergence: lower the energy of data, raise that of samples of the model.

The gradient of the mean negative log-likelihood is

    ∇_θ NLL = mean ∇_θ E(data) - E_model[∇_θ E],

and every objective here puts a batch of *negatives* in place of the model's expectation. They
differ only in where the negatives' chains start: `ContrastiveObjective` holds what they share, and
a subclass writes `draw_negatives`.

The value of the loss is mean E(data) - mean E(negatives). Its gradient is the one above, with the
negatives as constants; the value itself is no likelihood and need not fall.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ebm_core import ConfigurationError, EnergyLike, NumericalError, Sampler, ShapeError
from ebm_core.validation import check_integer, check_positive
from ebm_losses._checks import (
    check_batch,
    check_finite_states,
    check_floating_energies,
    check_states_like,
)
from ebm_losses._sampler_loss import SamplerLoss, check_sampler, constants
from ebm_losses._terms import EnergyTerms
from ebm_losses.divergence import RunawayGuard
from ebm_losses.jitter import DataJitter
from ebm_losses.regularization import ContrastiveBatch, Regularizer
from ebm_losses.replay_buffer import (
    Initializer,
    ReplayBuffer,
    check_n_negatives,
    initializer_on,
)

Jitter = Callable[[Tensor], Tensor]
"""What changes the data of a call: ``(batch, *event)`` to the same shape."""


class ContrastiveObjective(SamplerLoss):
    """Data against negatives; what contrastive objectives share.

    ``loss(x)`` draws negatives by the sampler, ``loss(x, negatives)`` takes the caller's. The
    sampler's state (its random stream and adaptation) is part of ``state_dict`` where the sampler
    has ``state_dict`` and ``load_state_dict``.

    Calls that draw negatives are watched by a `RunawayGuard`, which raises when the run blows up.

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``.
        sampler: An object with ``sample_chain(x_init, n_steps) -> final states``, on the same
            energy.
        k_steps: Transitions of each chain a call, at least 1.
        regularizers: Terms to add, such as `EnergyMagnitude`; none by default. Those that are
            modules are moved, trained and saved with the objective.
        jitter: What is done to the data of each call: the standard deviation of Gaussian noise (a
            `DataJitter`), or a callable ``x -> x``; None for nothing.
        guard: A `RunawayGuard` with limits of one's own; True for its defaults, False for none.

    Attributes:
        negatives: The negatives of the last call, ``(n, *event)``, detached; None before the first.
        metrics: ``data_energy``, ``negative_energy`` (means over the batch), ``energy_gap`` (the
            second minus the first), and, where they exist, ``regularization`` and the sampler's
            ``acceptance_rate``.

    Raises:
        ConfigurationError: If ``sampler`` has no ``sample_chain``, or a number is out of range.
    """

    def __init__(
        self,
        energy: EnergyLike,
        sampler: Sampler,
        k_steps: int = 1,
        *,
        regularizers: Sequence[Regularizer] = (),
        jitter: Jitter | float | None = None,
        guard: RunawayGuard | bool = True,
    ) -> None:
        super().__init__(energy, check_sampler(sampler))
        self.k_steps = check_integer("k_steps", k_steps, at_least=1)
        self.regularizers = _check_regularizers(regularizers)
        for i, term in enumerate(self.regularizers):
            if isinstance(term, nn.Module):  # moved, trained and saved with the objective
                self.add_module(f"regularizer_{i}", term)
        self.jitter = _check_jitter(jitter)
        self.guard = _check_guard(guard)
        self.negatives: Tensor | None = None
        self._has_drawn = False
        self._together = True

    @abstractmethod
    def draw_negatives(self, x: Tensor) -> Tensor:
        """Negatives ``(n, *event)`` for data ``(batch, *event)``; subclasses use `advance`."""

    def energies_of(self, x: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        """E of data ``(batch, *event)`` and of negatives ``(n, *event)``, with their graph.

        By one call of the energy with both, which takes less time than two; layers that look at the
        whole batch (batch normalisation) see data and negatives alike. An energy that refuses them
        together, since it knows how many states come (labels, a condition), is called twice.
        """
        if self._together:
            with suppress(Exception):  # what is wrong is said below
                both = self._evaluated(torch.cat([x, negatives]))
                return both[: len(x)], both[len(x) :]
        found = self._evaluated(x), self._evaluated(negatives)
        self._together = False
        return found

    def _evaluated(self, states: Tensor) -> Tensor:
        return check_floating_energies(
            self.evaluate_terms(EnergyTerms(self.energy), states)[0], states
        )

    def mean_over_negatives(self, energies: Tensor) -> Tensor:
        """The mean of ``(n,)`` energies of negatives, in which a subclass may weight them."""
        return energies.mean()

    def keep_chains(self) -> None:
        """Keep what `draw_negatives` has made: nothing, unless a subclass says otherwise.

        Called at the end of a call that drew negatives and found nothing wrong.
        """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The loss on a batch of data; see `BaseLoss.forward` and `compute`."""
        loss = super().forward(x, *args, **kwargs)
        if self._has_drawn:
            if self.guard is not None:
                self.guard(self.metrics, x[0].numel())
            # Only now are the loss, and so the energies of the chains, known to be sound.
            self.keep_chains()
        return loss

    def advance(self, start: Tensor, **options: Any) -> Tensor:
        """Advance chains ``(n, *event)`` by ``k_steps`` transitions of the sampler.

        The energy is in eval mode meanwhile: the sampler sees one energy, without dropout.

        Args:
            start: The chains; a copy that the sampler may spoil.
            **options: Handed to ``sample_chain``, such as ``beta``.

        Raises:
            ShapeError: If the sampler gave states of another shape.
            ConfigurationError: If it gave no tensor, or one of another dtype or device.
            NumericalError: If it gave states that are not finite.
        """
        return check_finite_states(
            self.run_sampler(start, self.k_steps, **options),
            origin=f"from {type(self.sampler).__name__}",
            remedy="lower the sampler's step size or the learning rate, use a sampler with an "
            "accept step, and check that the data are finite",
        )

    def compute(
        self, x: Tensor, negatives: Tensor | None = None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean E(x) minus mean E(negatives), plus the regularisers.

        Args:
            x: Data, ``(batch, *event)``.
            negatives: Samples of the model, ``(n, *event)``; None to draw them.

        Raises:
            ShapeError: If data or negatives are no batch of the energy's states, or a regulariser
                gave no scalar.
            ConfigurationError: If negatives are no tensor, or one of another dtype or device than
                the data, or a regulariser gave no number.
            NumericalError: If negatives are not finite.
        """
        check_batch(self.energy, x)
        return self.contrast(self._jittered(x), negatives)

    def contrast(self, x: Tensor, negatives: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What `compute` does with data that have been checked and jittered."""
        self._has_drawn = negatives is None
        negatives = self.draw_negatives(x) if negatives is None else _check_negatives(negatives, x)
        self.negatives = negatives = constants(negatives)
        data_energy, negative_energy = self.energies_of(x, negatives)
        data_mean, negative_mean = data_energy.mean(), self.mean_over_negatives(negative_energy)
        loss = data_mean - negative_mean
        metrics = {
            "data_energy": data_mean,
            "negative_energy": negative_mean,
            "energy_gap": -loss,
        }
        if self.regularizers:
            batch = ContrastiveBatch(self.energy, x, negatives, data_energy, negative_energy)
            penalty = torch.stack([_penalty(term, batch) for term in self.regularizers]).sum()
            loss = loss + penalty
            metrics["regularization"] = penalty
        rate = getattr(self.sampler, "acceptance_rate", None)
        if self._has_drawn and isinstance(rate, Tensor | float):
            metrics["acceptance_rate"] = torch.as_tensor(rate).mean()
        return loss, metrics

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        if self.guard is None:  # what a guard has seen is of no use then
            state_dict.pop(f"{prefix}guard._extra_state", None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _jittered(self, x: Tensor) -> Tensor:
        if self.jitter is None:
            return x
        return check_states_like(
            self.jitter(x),
            x,
            len(x),
            origin="jitter",
            remedy="return the batch with each of its states changed, of the same shape and dtype",
        )

    def extra_repr(self) -> str:
        """Sampler and steps, for ``repr``."""
        return f"sampler={type(self.sampler).__name__}, k_steps={self.k_steps}"


class ContrastiveDivergence(ContrastiveObjective):
    """CD-k: chains start from the data of each call (Hinton 2002, Neural Computation 14:1771).

    Fast and biased: negatives stay near data, so modes far from all data go unnoticed. Takes the
    arguments, and has the attributes, of `ContrastiveObjective`.

    Example:
        >>> class Drift:
        ...     def sample_chain(self, x_init, n_steps):
        ...         return x_init + n_steps
        >>> loss_fn = ContrastiveDivergence(lambda x: x.sum(1), Drift(), k_steps=2)
        >>> loss_fn(torch.zeros(4, 3)), loss_fn.negatives.shape
        (tensor(-6.), torch.Size([4, 3]))
    """

    def draw_negatives(self, x: Tensor) -> Tensor:
        """Chains that start from the data, after ``k_steps`` transitions."""
        return self.advance(x.detach().clone())


class PersistentContrastiveDivergence(ContrastiveObjective):
    """PCD: chains go on from where the last calls left them (Tieleman 2008, ICML).

    Each call draws ``min(batch, buffer_size)`` chains (or ``n_negatives``) from the `ReplayBuffer`,
    advances them by ``k_steps`` transitions and writes each back to its slot. ``state_dict`` holds
    the buffer and the sampler's state, so that a restored run, with torch's random state, goes on
    as if it had not been cut.

    Every call advances the chains, also one that only evaluates the loss; but a call with given
    negatives, or one that raises, leaves them where they were.

    For densities: a sampler with an accept step, a buffer about as large as the batch, so that all
    chains move at each call, and no chain begun anew; ``leave_out_stuck=True`` where the density
    has sharp edges, at which single chains get stuck. Chains that begin anew keep samples diverse,
    but are high above the data's energies for many calls, the more so the longer they wait in a
    large buffer, and can drive the run apart.

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``.
        sampler: An object with ``sample_chain(x_init, n_steps) -> final states``, on the same
            energy.
        k_steps: Transitions of each drawn chain a call, at least 1.
        buffer_size: Number of chains. With as many as the batch, or fewer, all are advanced at each
            call.
        reinit_probability: With this probability a drawn chain begins anew; see above.
        n_negatives: Number of chains drawn a call, at most ``buffer_size``; None for ``min(batch,
            buffer_size)``.
        leave_out_stuck: Leave out of the loss the negatives that no transition of the call has
            moved. A chain that is stuck in a steep place is raised at each visit, which makes the
            place steeper; by this a run can blow up in spite of an accept step. For samplers on
            continuous states with an accept step and several transitions a call: chains that are in
            equilibrium must hardly ever reject all of them, or the loss is biased. A call in which
            none moves raises.
        initializer: Makes the states that chains begin from, called like ``torch.randn``; None for
            N(0, I), or uniform states where the energy's support is finite.
        regularizers: As in `ContrastiveObjective`.
        jitter: As in `ContrastiveObjective`.
        guard: As in `ContrastiveObjective`.

    Attributes:
        buffer: The `ReplayBuffer`; ``buffer.states`` is ``(buffer_size, *event)``, None before the
            first call.
        negatives: As in `ContrastiveObjective`.
        metrics: As in `ContrastiveObjective`, and with ``leave_out_stuck`` ``stuck``, the share of
            negatives that did not move; ``negative_energy`` is the mean over the others then.

    Raises:
        ConfigurationError: If ``sampler`` has no ``sample_chain``, or a number is out of range.
    """

    def __init__(
        self,
        energy: EnergyLike,
        sampler: Sampler,
        k_steps: int = 10,
        buffer_size: int = 1000,
        reinit_probability: float = 0.0,
        *,
        n_negatives: int | None = None,
        leave_out_stuck: bool = False,
        initializer: Initializer | None = None,
        regularizers: Sequence[Regularizer] = (),
        jitter: Jitter | float | None = None,
        guard: RunawayGuard | bool = True,
    ) -> None:
        super().__init__(
            energy, sampler, k_steps, regularizers=regularizers, jitter=jitter, guard=guard
        )
        self.buffer = ReplayBuffer(
            buffer_size,
            reinit_probability=reinit_probability,
            initializer=initializer_on(self.energy.support) if initializer is None else initializer,
        )
        self.n_negatives = check_n_negatives(n_negatives, self.buffer.size)
        if not isinstance(leave_out_stuck, bool):
            raise ConfigurationError(
                f"leave_out_stuck is {leave_out_stuck!r}", "True or False", "pass one of the two"
            )
        self.leave_out_stuck = leave_out_stuck
        self._drawn_slots: Tensor | None = None
        self._moved: Tensor | None = None

    def draw_negatives(self, x: Tensor) -> Tensor:
        """Chains of the buffer, ``k_steps`` transitions on; the call puts them back at its end."""
        self.buffer.prepare(x.shape[1:], device=x.device, dtype=x.dtype)
        self._drawn_slots, chains = self.draw_chains(x)
        start = chains.clone() if self.leave_out_stuck else None
        negatives = self.advance(chains)
        if start is not None:
            self._moved = (negatives != start).reshape(len(start), -1).any(1)
            if not self._moved.any():
                raise NumericalError(
                    f"none of the {len(start)} negatives has moved in {self.k_steps} transitions",
                    "chains that move, as stuck ones are left out of the loss",
                    "lower the sampler's step size or let it adapt first, take more k_steps, lower "
                    "the learning rate, or pass leave_out_stuck=False",
                )
        return negatives

    def draw_chains(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Slots and a copy of their chains, for data ``x``."""
        return self.buffer.draw(self.n_negatives or min(len(x), self.buffer.size))

    def mean_over_negatives(self, energies: Tensor) -> Tensor:
        """The mean energy of negatives, with ``leave_out_stuck`` of those that moved."""
        if not self._has_drawn or self._moved is None:
            return energies.mean()
        weights = self._moved.to(energies)
        return (weights * energies).sum() / weights.sum()

    def contrast(self, x: Tensor, negatives: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """As in `ContrastiveObjective`, with ``stuck`` among the metrics."""
        loss, metrics = super().contrast(x, negatives)
        if not self._has_drawn or self._moved is None:
            return loss, metrics
        return loss, {**metrics, "stuck": 1.0 - self._moved.to(loss).mean()}

    def keep_chains(self) -> None:
        """Put the negatives back to the slots that they were drawn from."""
        assert self._drawn_slots is not None, "keep_chains follows draw_negatives"
        assert self.negatives is not None, "keep_chains follows draw_negatives"
        self.buffer.write(self._drawn_slots, self.negatives)


def _check_regularizers(regularizers: Any) -> tuple[Regularizer, ...]:
    terms = tuple(regularizers) if isinstance(regularizers, Sequence) else (None,)
    if not all(callable(term) for term in terms):
        raise ConfigurationError(
            f"regularizers is {regularizers!r}",
            "a sequence of callables that take a ContrastiveBatch and give a scalar",
            "pass regularizers=[EnergyMagnitude(0.01)], for example",
        )
    return terms


def _check_jitter(jitter: Any) -> Jitter | None:
    return (
        jitter
        if jitter is None or callable(jitter)
        else DataJitter(check_positive("jitter", jitter))
    )


def _check_guard(guard: Any) -> RunawayGuard | None:
    if isinstance(guard, RunawayGuard):
        return guard
    if not isinstance(guard, bool):
        raise ConfigurationError(
            f"guard is {guard!r}",
            "True, False, or a RunawayGuard",
            "pass guard=RunawayGuard(gap_limit=100.0), for example",
        )
    return RunawayGuard() if guard else None


def _check_negatives(negatives: Any, x: Tensor) -> Tensor:
    states = check_states_like(
        negatives,
        x,
        origin="for negatives the caller",
        remedy="pass at least one negative, of the data's event shape, dtype and device",
    )
    return check_finite_states(
        states, origin="given by the caller", remedy="check where the negatives come from"
    )


def _penalty(term: Regularizer, batch: ContrastiveBatch) -> Tensor:
    """The value of a regulariser as a scalar of the energies' dtype and device."""
    value: Any = term(batch)
    name = getattr(term, "__name__", type(term).__name__)
    if not isinstance(value, Tensor | Real):
        raise ConfigurationError(
            f"the regulariser {name} gave a {type(value).__name__}",
            "a scalar tensor or a number",
            "return the term's value, its weight included",
        )
    energies = batch.data_energy
    penalty = torch.as_tensor(value, dtype=energies.dtype, device=energies.device)
    if penalty.ndim != 0:
        raise ShapeError(
            f"the regulariser {name} gave shape {tuple(penalty.shape)}",
            "a scalar, shape ()",
            "reduce it with .mean()",
        )
    return penalty
