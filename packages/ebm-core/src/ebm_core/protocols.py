"""What components expect of each other: protocols to match by shape, base classes to inherit from.

A loss needs of a sampler one method, `Sampler.sample_chain`; anything that has it will do.
`BaseSampler` and `BaseLoss` are conveniences for those who write new ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ebm_core.energy import EnergyFunction, EnergyLike, as_energy, misfits_explained
from ebm_core.errors import ConfigurationError
from ebm_core.results import SampleResult
from ebm_core.validation import check_finite_loss

Keep = Literal["final", "trajectory", "moments"]
Callback = Callable[[SampleResult], bool | None]


@runtime_checkable
class Sampler(Protocol):
    """Whatever advances chains."""

    def sample_chain(self, x_init: Tensor, n_steps: int) -> Tensor:
        """Advance chains by ``n_steps`` transitions.

        Args:
            x_init: Start states, ``(chain, *event)``; not modified.
            n_steps: Number of transitions.

        Returns:
            Final states of the shape, dtype and device of ``x_init``, detached. Consecutive calls
            use fresh randomness.
        """
        ...


@runtime_checkable
class TemperedSampler(Protocol):
    """A `Sampler` that can target exp(-beta E).

    ``isinstance`` looks at names alone, so that every `Sampler` passes for one.
    """

    def sample_chain(
        self, x_init: Tensor, n_steps: int, *, beta: float | Tensor | None = None
    ) -> Tensor:
        """Advance chains under exp(-beta E).

        Args:
            x_init: Start states, ``(chain, *event)``.
            n_steps: Number of transitions.
            beta: Inverse temperature, a positive number or one a chain, ``(chain,)``; None for 1.
        """
        ...


@runtime_checkable
class ExactDistribution(Protocol):
    """An energy about which everything is known.

    An energy that knows some of these offers just those methods (test with ``hasattr``);
    `log_normalizer` and `exact_sample` are what noise-contrastive estimation needs. A moment that
    does not exist (the mean of a Cauchy law) raises a `ConfigurationError`.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Energies ``(batch,)`` of ``(batch, *event)``; log p(x) = -E(x) - log_normalizer()."""
        ...

    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """Independent draws, ``(n, *event)``, on the energy's device; see `make_generator`."""
        ...

    def log_normalizer(self) -> Tensor:
        """Log ∫ exp(-E(x)) dx in nats, a scalar tensor."""
        ...

    def mean(self) -> Tensor:
        """E[x], of the event's shape."""
        ...

    def covariance(self) -> Tensor:
        """Cov[x], ``(d, d)`` for the ``d`` elements of the flattened event."""
        ...


class BlockConditionals(Protocol):
    """An energy on discrete states whose blocks of sites can be drawn from their conditionals.

    Sites of a block are independent of each other, given the rest (the two colours of a
    checkerboard). `n_blocks` conditionals one after the other leave exp(-beta E) invariant.

    Attributes:
        n_blocks: Number of blocks; together they are all sites.
    """

    n_blocks: int

    def sample_block(
        self, x: Tensor, block: int, uniforms: Tensor, *, beta: float | Tensor | None = None
    ) -> Tensor:
        """Draw the sites of one block from their law given all others, under exp(-beta E).

        Args:
            x: States, ``(chain, *event)``, of an integer or floating dtype; not modified.
            block: Number of the block, from 0 to ``n_blocks`` - 1.
            uniforms: In (0, 1), of the shape of ``x``: one a site; those of other blocks are not
                used. A function of these and of ``x`` alone, the result can be repeated.
            beta: Inverse temperature, a number or one a chain, ``(chain,)``; None for 1. Samplers
                leave it out where it is 1.

        Returns:
            States of the shape and dtype of ``x``.
        """
        ...


class BipartiteBinary(Protocol):
    """A restricted Boltzmann machine: binary visible and hidden units, no bonds within a layer.

    The joint energy is E(v, h) = -b·v - c·h - h·Wv for v and h in {0, 1}; called with v, the object
    gives the free energy F(v) = -b·v - Σ_j log(1 + exp(c_j + W_j·v)), with no constant added. What
    a sampler needs for block Gibbs steps v → h → v, and for the energies that it reports. Test for
    it with ``hasattr``: ``isinstance`` with a protocol does not see the parameters of a
    ``torch.nn.Module``.

    Attributes:
        weight: W, ``(n_hidden, n_visible)``.
        visible_bias: b, ``(n_visible,)``.
        hidden_bias: c, ``(n_hidden,)``.
    """

    @property
    def weight(self) -> Tensor:
        """W, ``(n_hidden, n_visible)``."""
        ...

    @property
    def visible_bias(self) -> Tensor:
        """b, ``(n_visible,)``."""
        ...

    @property
    def hidden_bias(self) -> Tensor:
        """c, ``(n_hidden,)``."""
        ...

    def __call__(self, v: Tensor) -> Tensor:
        """Free energies ``(batch,)`` of ``(batch, n_visible)``."""
        ...


class Terms(Protocol):
    """What an objective averages over its batch: one term a state.

    A function ``terms(x, *drawn)`` of states and of all that was drawn for them, without randomness
    of its own; states of a batch do not meet. Hashable: equal ones (of a frozen dataclass, say) are
    the same function.

    Attributes:
        energy: The energy that is trained.
    """

    @property
    def energy(self) -> EnergyFunction:
        """The energy that is trained."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Terms ``(n,)``, energies ``(n,)``, and statistics ``(n,)`` each.

        Called with tensors alone, by position; `Any` stands for them.

        Args:
            *args: States, ``(n, *event)``, and what else there is of each state, ``(n, ...)``, of
                the same dtype.
            **kwargs: Not used.

        Returns:
            The terms with their history; then, detached, E(x) and whatever is to be reported.
        """
        ...


class Evaluator(Protocol):
    """Evaluates `Terms`, in a quicker way than to call them; ``FusedEvaluator`` of ebm-samplers."""

    def __call__(self, terms: Terms, x: Tensor, *drawn: Tensor) -> tuple[Tensor, ...]:
        """What ``terms(x, *drawn)`` gives, with the history of whatever requires gradients."""
        ...


class BaseSampler(ABC):
    """A sampler of one energy, with results that say how it went.

    Subclasses implement `sample`; ``sample_chain`` follows. (ebm-samplers' ``MarkovSampler``
    implements both from a single transition.)

    Args:
        energy: An `EnergyFunction` or any callable ``(batch, *event) -> (batch,)``.
    """

    def __init__(self, energy: EnergyLike) -> None:
        self.energy: EnergyFunction = as_energy(energy)

    @abstractmethod
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
        """Run chains and report on them.

        Args:
            x_init: Start states, ``(chain, *event)``; None to start from N(0, I).
            n_steps: Transitions after ``burn_in``.
            n_samples: Number of chains, where ``x_init`` is None.
            dim: Event shape (int or tuple), where ``x_init`` is None and the energy's
                ``event_shape`` too.
            thin: Draws are the states after ``thin``, 2·``thin``, … transitions.
            burn_in: Transitions before the first counted one.
            keep: ``"final"`` states only, the ``"trajectory"`` of draws, or running ``"moments"``.
            seed: Key of the random stream; such a call neither reads nor moves the sampler's own
                stream. None: go on with the sampler's stream.
            first_chain: Number of the first chain: chain i of this call has the randomness of chain
                first_chain + i.
            resume: The ``resume`` of an earlier result; goes on as if that run had not been cut.
            progress: Show a progress bar; None: on long runs in a terminal.
            callback: Called with the partial result now and then; a true return value stops the
                run.
        """

    def sample_chain(self, x_init: Tensor, n_steps: int) -> Tensor:
        """Final states after ``n_steps`` transitions; see `Sampler`."""
        return self.sample(x_init, n_steps=n_steps).final

    def state_dict(self) -> dict[str, Any]:
        """What changes from call to call, as numbers and tensors: random stream, adaptation."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ConfigurationError: If it is the state of another kind of sampler.
        """
        if state_dict:
            raise ConfigurationError(
                f"{type(self).__name__} was given a state with {', '.join(state_dict)}",
                "the empty state of a sampler that keeps none",
                "load the state into a sampler of the kind that gave it",
            )


class BaseLoss(nn.Module, ABC):
    """A training objective of an energy: ``loss(x) -> scalar``.

    Subclasses implement `compute`; calling the loss checks the data's shape, runs it, refuses a
    non-finite value and keeps the metrics.

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``.
        evaluator: What computes the terms that the loss averages over its batch, such as
            ``FusedEvaluator()`` of ebm-samplers; None for torch.

    Attributes:
        evaluator: As given. It may be set, also where the constructor has no such argument.
        metrics: Detached scalars of the last call, by name.

    Example:
        >>> class MeanEnergy(BaseLoss):
        ...     def compute(self, x):
        ...         energies = self.energy(x)
        ...         return energies.mean(), {"largest": energies.max()}
        >>> loss = MeanEnergy(lambda x: x.square().sum(1))
        >>> loss(torch.ones(4, 2)), loss.metrics["largest"]
        (tensor(2.), tensor(2.))
    """

    evaluator: Evaluator | None = None

    def __init__(self, energy: EnergyLike, evaluator: Evaluator | None = None) -> None:
        super().__init__()
        self.energy = as_energy(energy)
        self.evaluator = evaluator
        self.metrics: dict[str, Tensor] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; an evaluator is checked, and never becomes a part of the module.

        Raises:
            ConfigurationError: If it cannot be called.
        """
        if name == "evaluator":
            object.__setattr__(self, name, _check_evaluator(value))
        else:
            super().__setattr__(name, value)

    def evaluate_terms(self, terms: Terms, x: Tensor, *drawn: Tensor) -> tuple[Tensor, ...]:
        """What ``terms(x, *drawn)`` gives, by the evaluator if there is one.

        Args:
            terms: What the loss averages.
            x: States, ``(n, *event)``.
            *drawn: What else there is of each state, ``(n, ...)``.

        Returns:
            The terms ``(n,)`` with their history, the energies of ``x`` ``(n,)``, and statistics
            ``(n,)`` each; see `Terms`.
        """
        if self.evaluator is None:
            return terms(x, *drawn)
        return self.evaluator(terms, x, *drawn)

    @abstractmethod
    def compute(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss (scalar, with its graph) and its metrics (scalars).

        Args:
            x: Data, ``(batch, *event)``.
            *args: Further arguments of a particular loss.
            **kwargs: Further arguments of a particular loss.
        """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The loss on a batch of data.

        Args:
            x: Data, ``(batch, *event)``.
            *args: Passed to `compute`.
            **kwargs: Passed to `compute`.

        Raises:
            ConfigurationError: If ``x`` is no tensor, or of a dtype or on a device that the energy
                does not take.
            ShapeError: If ``x`` is no batch of the energy's states, or the loss is no scalar.
            NumericalError: If the loss is NaN or infinite.
        """
        if not isinstance(x, Tensor):
            raise ConfigurationError(
                f"the data are a {type(x).__name__}",
                "a tensor (batch, *event)",
                "pass the tensor itself: (x,) = batch for the batches of a TensorDataset",
            )
        self.energy.batch_size(x)
        if x.is_inference() and not torch.is_inference_mode_enabled():
            x = x.clone()  # which can take part in a backward pass
        with misfits_explained(self.energy, x):
            loss, metrics = self.compute(x, *args, **kwargs)
        # Copies: what changes in place later, a parameter or the loss, would change them too.
        self.metrics = {
            name: torch.as_tensor(value).detach().clone() for name, value in metrics.items()
        }
        return check_finite_loss(
            loss,
            remedy="lower the learning rate or the sampler's step size, and check the data",
        )


def _check_evaluator(evaluator: Any) -> Evaluator | None:
    if evaluator is not None and (not callable(evaluator) or isinstance(evaluator, type)):
        raise ConfigurationError(
            f"evaluator is {evaluator!r}",
            "an object that is called with terms and their arguments, or None",
            "pass evaluator=FusedEvaluator() of ebm-samplers, for example",
        )
    checked: Evaluator | None = evaluator
    return checked
