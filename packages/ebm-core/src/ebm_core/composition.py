"""Energies made of energies: sums, multiples, mixtures.

All are modules, so that their parts stay trainable and movable. Written with operators:
``e1 + e2``, ``beta * e``, ``-e``, ``e.tempered(T)``; a mixture by its class, since its weights
refer to the unnormalised parts and must be explicit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ebm_core.energy import EnergyFunction, EnergyLike, as_energy, state_options
from ebm_core.errors import ConfigurationError, ShapeError
from ebm_core.support import common_support, same_support
from ebm_core.validation import check_number, check_tensor


class SumEnergy(EnergyFunction):
    """E(x) = Σ_k E_k(x): a product of experts.

    Args:
        *terms: Energies of one event shape and on one support (or callables).

    Raises:
        ShapeError: If event shapes differ.
        SupportError: If supports differ.

    Example:
        >>> energy = as_energy(lambda x: x.square().sum(1)) + as_energy(lambda x: x.sum(1))
        >>> energy(torch.ones(1, 3))
        tensor([6.])
    """

    def __init__(self, *terms: EnergyLike) -> None:
        super().__init__()
        flat = _flatten(terms)
        self.terms = nn.ModuleList(flat)
        _adopt_events(self, flat)

    def forward(self, x: Tensor) -> Tensor:
        """Σ_k E_k(x): ``(batch, *event) -> (batch,)``."""
        first, *rest = self.terms
        total: Tensor = first(x)
        for term in rest:
            total = total + term(x)
        return total


class ScaledEnergy(EnergyFunction):
    """E(x) = factor · E_1(x); the factor is a buffer, or a parameter if it was given as one.

    Args:
        energy: The energy (or callable) to scale.
        factor: A finite number of either sign, or a tensor of one element.
    """

    factor: Tensor

    def __init__(self, energy: EnergyLike, factor: float | Tensor) -> None:
        super().__init__()
        number = check_number("factor", factor)
        self.energy = as_energy(energy)
        _adopt_events(self, [self.energy])
        if isinstance(factor, nn.Parameter):
            self.factor = factor
        else:
            device, dtype = state_options(self.energy)
            self.register_buffer("factor", torch.tensor(number, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Factor · E_1(x): ``(batch, *event) -> (batch,)``."""
        energies: Tensor = self.energy(x)
        return self.factor * energies


class MixtureEnergy(EnergyFunction):
    """E(x) = -log Σ_k exp(log_weights[k] - E_k(x)).

    The weights multiply the *unnormalised* densities exp(-E_k). For mixture proportions π_k give
    ``log π_k - log Z_k``, with log Z_k the component's ``log_normalizer()``.

    Args:
        energies: The K components, of one event shape and on one support.
        log_weights: ``(K,)``, any finite numbers; a parameter stays a parameter.

    Raises:
        ShapeError: If event shapes, or the number of weights, do not match.
        SupportError: If supports differ.

    Example:
        >>> left, right = (as_energy(lambda x, c=c: (x - c).square().sum(1)) for c in (-1.0, 1.0))
        >>> MixtureEnergy([left, right], [0.0, 0.0])(torch.zeros(1, 1))
        tensor([0.3069])
    """

    log_weights: Tensor

    def __init__(
        self, energies: Sequence[EnergyLike], log_weights: Sequence[float] | Tensor
    ) -> None:
        super().__init__()
        if len(energies) == 0:
            raise ConfigurationError(
                "a mixture of no energies", "at least one energy", "pass components"
            )
        components = [as_energy(energy) for energy in energies]
        self.energies = nn.ModuleList(components)
        _adopt_events(self, components)
        weights = check_tensor("log_weights", log_weights, (len(energies),))
        if isinstance(weights, nn.Parameter):
            self.log_weights = weights
        else:
            device, dtype = state_options(self.energies)
            dtype = weights.dtype if isinstance(log_weights, Tensor) else dtype
            self.register_buffer("log_weights", weights.detach().clone().to(device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        """-log Σ_k exp(log_weights[k] - E_k(x)): ``(batch, *event) -> (batch,)``."""
        energies = torch.stack([energy(x) for energy in self.energies], dim=-1)
        return -torch.logsumexp(self.log_weights - energies, dim=-1)


def _flatten(terms: Sequence[EnergyLike]) -> list[EnergyFunction]:
    """Terms as energies, those of a nested sum in its place: a + b + c is one sum of three."""
    flat: list[EnergyFunction] = []
    for term in terms:
        if isinstance(term, SumEnergy):
            flat.extend(_flatten(list(term.terms)))
        else:
            flat.append(as_energy(term))
    if not flat:
        raise ConfigurationError("a sum of no energies", "at least one energy", "pass terms")
    return flat


def _adopt_events(whole: EnergyFunction, parts: Sequence[EnergyFunction]) -> None:
    """Give ``whole`` the event shape, event axes and support that its parts have in common."""
    support = None
    for part in parts:
        if part.event_shape is not None:
            if whole.event_shape is not None and whole.event_shape != part.event_shape:
                shapes = f"{tuple(whole.event_shape)} and {tuple(part.event_shape)}"
                raise ShapeError(
                    f"energies of event shapes {shapes} were combined",
                    "energies of one event shape",
                    "combine energies of equal shape",
                )
            whole.event_shape = part.event_shape
        if part.event_ndim is not None:
            whole.event_ndim = part.event_ndim
        support = part.support if support is None else common_support(support, part.support)
    if support is not None and not same_support(support, whole.support):
        whole.support = support
