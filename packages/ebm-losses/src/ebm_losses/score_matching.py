"""Score matching: the energy's score is fitted to that of the data, without their normaliser.

With s = -∇E, Hyvärinen (2005) turns the mean squared distance of s to the data's unknown score, by
partial integration, into

    J = mean_data (½ |∇E|² - ΔE),        ΔE = Σ_i ∂²E/∂x_i²,

up to a constant of the data. `ScoreMatching` computes the Laplacian ΔE exactly, one second
derivative an element; `SlicedScoreMatching` looks along random directions v, for which a single
vᵀ∇²E v does. The optimum of both is the data's density itself, no noise added. Both are sums over
the elements of the event, whatever its shape, and means over the batch; nothing is divided by the
number of elements.

Second derivatives are taken by autograd, through any network that is smooth in x (SiLU, GELU, tanh,
softplus). One of ReLUs has none: its Laplacian is 0 almost everywhere, and it is refused. (Where a
smooth term is added, such as a Gaussian base, the Laplacian is that of this term alone: what is
learned is wrong, and that goes unnoticed.) So is, by torch itself, one that torch.compile has
compiled, which cannot be differentiated twice.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ebm_core import (
    BaseLoss,
    ConfigurationError,
    EnergyFunction,
    EnergyLike,
    Evaluator,
    require_continuous,
)
from ebm_core.validation import check_integer
from ebm_losses._checks import check_batch, check_floating
from ebm_losses._terms import CurvatureTerms, quadratic_forms

_AT_ONCE = 64  # second derivatives in one batched backward pass


class ScoreMatching(BaseLoss):
    """Exact score matching (Hyvärinen 2005, JMLR 6:695).

    The loss is

        mean_batch (½ Σ_event (∂E/∂x_i)² - Σ_event ∂²E/∂x_i²).

    It takes one more backward pass for each element of the event (several are batched): for events
    of more than some tens of elements `SlicedScoreMatching` costs less. The whole graph is kept for
    the loss's own backward pass, so that memory grows in proportion to the elements, too.

    Partial integration needs a density that vanishes at infinity (or at the support's boundary),
    with a score that exists everywhere.

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``, on a
            continuous support and twice differentiable with respect to x.
        chunk_size: Elements whose second derivatives are taken in one batched backward pass; None
            for 64 where events are vectors, else 1. It changes speed and memory, never the value.
        evaluator: As in `ebm_core.BaseLoss`; for events of a few elements.

    Attributes:
        metrics: ``energy`` (mean over the data), ``score_rms`` (root mean square of an element of
            the score), ``laplacian`` (mean ΔE over the data).

    Raises:
        ConfigurationError: If ``chunk_size`` is no integer of at least 1.
        SupportError: If the energy's support is discrete.

    Example:
        For E = ½ |x|² in two dimensions, ½ |∇E|² is E itself and ΔE is 2:

        >>> loss_fn = ScoreMatching(lambda x: 0.5 * x.square().sum(1))
        >>> loss_fn(torch.tensor([[1.0, 0.0], [2.0, 2.0]])).item()
        0.25
    """

    def __init__(
        self,
        energy: EnergyLike,
        *,
        chunk_size: int | None = None,
        evaluator: Evaluator | None = None,
    ) -> None:
        super().__init__(energy, evaluator)
        require_continuous(self.energy.support, type(self).__name__)
        self.chunk_size = (
            None if chunk_size is None else check_integer("chunk_size", chunk_size, at_least=1)
        )

    def compute(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss on data ``(batch, *event)``; see the class.

        Raises:
            ShapeError: If ``x`` is no batch of the energy's states.
            ConfigurationError: If the data are not floating, or the energy has no second
                derivatives.
        """
        check_batch(self.energy, x)
        check_floating(x, type(self).__name__)
        at_once = _directions_at_once(x) if self.chunk_size is None else self.chunk_size
        directions = _basis(x).expand(-1, *x.shape).transpose(0, 1)
        terms, energies, squares, curvature = self.evaluate_terms(
            CurvatureTerms(self.energy, chunk_size=at_once, complete=True), x, directions
        )
        _check_curvature(self, x, curvature)
        return terms.mean(), {
            "energy": energies.mean(),
            "score_rms": squares.mean().sqrt(),
            "laplacian": curvature.mean(),
        }

    def extra_repr(self) -> str:
        """Chunk size, for ``repr``."""
        return f"chunk_size={self.chunk_size}"


class SlicedScoreMatching(BaseLoss):
    """Sliced score matching (Song, Garg, Shi & Ermon 2019, arXiv:1905.07088).

    With ``n_projections`` directions v for each state the loss is

        mean_batch mean_v (½ |∇E|² - vᵀ∇²E v),      variance-reduced (SSM-VR), or
        mean_batch mean_v (½ (vᵀ∇E)² - vᵀ∇²E v),    plain (SSM).

    Directions are drawn afresh at each call, their elements ±1 with probability ½ (Rademacher), by
    torch's default generator. As E[v vᵀ] = I, both are unbiased for exact `ScoreMatching`; of the
    laws with that property, this one has the least variance where elements are independent (the
    diagonal of the Hessian then counts exactly), and Gaussian directions add to it. All directions
    share one evaluation of energy and gradient.

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``, on a
            continuous support and twice differentiable with respect to x.
        n_projections: Directions for each state, at least 1. More lower the variance, at the cost
            of one more second derivative each.
        variance_reduction: Use ½ |∇E|² itself (SSM-VR) instead of its estimate along v.
        evaluator: As in `ebm_core.BaseLoss`.

    Attributes:
        metrics: ``energy`` (mean over the data), ``score_rms`` (root mean square of an element of
            the score), ``laplacian`` (its estimate, mean over data and directions).

    Raises:
        ConfigurationError: If ``n_projections`` is no integer of at least 1, or
            ``variance_reduction`` no bool.
        SupportError: If the energy's support is discrete.

    Example:
        Where the Hessian is diagonal, one direction is as good as all:

        >>> loss_fn = SlicedScoreMatching(lambda x: 0.5 * x.square().sum(1))
        >>> loss_fn(torch.tensor([[1.0, 0.0], [2.0, 2.0]])).item()
        0.25
    """

    def __init__(
        self,
        energy: EnergyLike,
        n_projections: int = 1,
        variance_reduction: bool = True,
        *,
        evaluator: Evaluator | None = None,
    ) -> None:
        super().__init__(energy, evaluator)
        require_continuous(self.energy.support, type(self).__name__)
        self.n_projections = check_integer("n_projections", n_projections, at_least=1)
        if not isinstance(variance_reduction, bool):
            raise ConfigurationError(
                f"variance_reduction is {variance_reduction!r}",
                "True or False",
                "pass n_projections for the number of directions",
            )
        self.variance_reduction = variance_reduction

    def compute(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss on data ``(batch, *event)``; see the class.

        Raises:
            ShapeError: If ``x`` is no batch of the energy's states.
            ConfigurationError: If the data are not floating, or the energy has no second
                derivatives.
        """
        check_batch(self.energy, x)
        check_floating(x, type(self).__name__)
        shape = (self.n_projections, *x.shape)
        directions = torch.randint(2, shape, device=x.device, dtype=x.dtype).mul_(2).sub_(1)
        terms, energies, squares, curvature = self.evaluate_terms(
            CurvatureTerms(self.energy, self.variance_reduction, _directions_at_once(x)),
            x,
            directions.transpose(0, 1),
        )
        _check_curvature(self, x, curvature)
        return terms.mean(), {
            "energy": energies.mean(),
            "score_rms": squares.mean().sqrt(),
            "laplacian": curvature.mean(),
        }

    def extra_repr(self) -> str:
        """Projections and variance reduction, for ``repr``."""
        return f"n_projections={self.n_projections}, variance_reduction={self.variance_reduction}"


def _directions_at_once(x: Tensor) -> int:
    """Second derivatives in one batched backward pass, which slows convolutions down."""
    return _AT_ONCE if x.ndim <= 2 else 1


def _basis(x: Tensor) -> Tensor:
    """The unit vectors of the event, ``(elements, 1, *event)``."""
    n_elements = x[0].numel()
    return torch.eye(n_elements, dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])


def _is_curved(energy: EnergyFunction, x: Tensor) -> bool:
    """Whether there are second derivatives where all vᵀ∇²E v were 0, which may be by chance.

    Looked for near the states and near 0, along Gaussian directions.
    """
    generator = torch.Generator(x.device).manual_seed(0)
    shape = (2, *x.shape)
    for centre in (x.detach(), torch.zeros_like(x)):
        noise, v = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
        if quadratic_forms(energy, centre + noise, v[None], 1)[2].any():
            return True
    return False


def _check_curvature(loss: BaseLoss, x: Tensor, curvature: Tensor) -> None:
    """Refuse an energy that has gradients, but no second derivatives.

    Raises:
        ConfigurationError: If it has none anywhere.
    """
    if curvature.any() or not loss.energy.gradient(x).any() or _is_curved(loss.energy, x):
        return
    raise ConfigurationError(
        f"all second derivatives of {type(loss.energy).__name__} along the directions of "
        f"{type(loss).__name__} are 0",
        "an energy that is smooth and curved in x",
        "use smooth activations (SiLU, GELU, tanh) instead of ReLU, or an objective that needs no "
        "second derivatives in x, such as DenoisingScoreMatching",
    )
