"""Short-run MCMC: chains that begin as noise at each call."""

from collections.abc import Sequence

from torch import Tensor

from ebm_core import EnergyLike, Sampler
from ebm_core.validation import check_integer
from ebm_losses.contrastive import ContrastiveObjective, Jitter
from ebm_losses.divergence import RunawayGuard
from ebm_losses.regularization import Regularizer
from ebm_losses.replay_buffer import Initializer, begun, check_initializer, initializer_on


class ShortRunContrastiveDivergence(ContrastiveObjective):
    """Negatives are chains that begin as noise and take ``k_steps`` (Nijkamp et al. 2019).

    From arXiv:1904.09770. The chains do not converge, and are not meant to: what is learned is a
    sampler, noise followed by ``k_steps`` transitions of this energy, whose draws resemble the
    data. Draw from it in the same way, with the same steps. The energy itself is in general *not*
    that of the data's density: longer chains leave the data.

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``.
        sampler: An object with ``sample_chain(x_init, n_steps) -> final states``, on the same
            energy.
        k_steps: Transitions of each chain, at least 1; the paper takes 100.
        n_negatives: Number of chains a call; None for as many as data.
        initializer: Makes the states that chains begin from, called like ``torch.randn``; None for
            N(0, I), or uniform states where the energy's support is finite. (The paper takes
            uniform noise over the range of the data.)
        regularizers: As in `ContrastiveObjective`.
        jitter: As in `ContrastiveObjective`; the paper adds noise of 0.03 to data in [-1, 1].
        guard: As in `ContrastiveObjective`.

    Attributes:
        negatives: As in `ContrastiveObjective`.
        metrics: As in `ContrastiveObjective`.

    Raises:
        ConfigurationError: If ``sampler`` has no ``sample_chain``, or a number is out of range.

    Example:
        >>> import torch
        >>> class Shrink:
        ...     def sample_chain(self, x_init, n_steps):
        ...         return x_init * 0.5**n_steps
        >>> energy = lambda x: x.square().sum(1)
        >>> loss_fn = ShortRunContrastiveDivergence(
        ...     energy, Shrink(), k_steps=2, initializer=torch.ones
        ... )
        >>> loss_fn(torch.zeros(4, 3)), loss_fn.negatives[0]
        (tensor(-0.1875), tensor([0.2500, 0.2500, 0.2500]))
    """

    def __init__(
        self,
        energy: EnergyLike,
        sampler: Sampler,
        k_steps: int = 100,
        *,
        n_negatives: int | None = None,
        initializer: Initializer | None = None,
        regularizers: Sequence[Regularizer] = (),
        jitter: Jitter | float | None = None,
        guard: RunawayGuard | bool = True,
    ) -> None:
        super().__init__(
            energy, sampler, k_steps, regularizers=regularizers, jitter=jitter, guard=guard
        )
        self.n_negatives = (
            None if n_negatives is None else check_integer("n_negatives", n_negatives, at_least=1)
        )
        self.initializer = (
            initializer_on(self.energy.support)
            if initializer is None
            else check_initializer(initializer)
        )

    def draw_negatives(self, x: Tensor) -> Tensor:
        """Chains from noise, after ``k_steps`` transitions."""
        shape = (self.n_negatives or len(x), *x.shape[1:])
        return self.advance(begun(self.initializer, shape, device=x.device, dtype=x.dtype))
