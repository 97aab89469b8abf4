"""Energies made of energies: sums, multiples, mixtures.

All are modules, so that their parts stay trainable and movable. Written with operators:
``e1 + e2``, ``beta * e``, ``-e``, ``e.tempered(T)``; a mixture by its class, since its weights
refer to the unnormalised parts and must be explicit.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from ebm_core.energy import EnergyFunction, EnergyLike, as_energy, state_options
from ebm_core.errors import ConfigurationError, ShapeError
from ebm_core.support import common_support
from ebm_core.validation import check_number, check_tensor


class CompositeEnergy(EnergyFunction):
    """An energy made of others; event shape and support are what its parts have in common."""

    @abstractmethod
    def parts(self) -> list[EnergyFunction]:
        """The energies it is made of."""

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        """The parts' common support, as it is now (bounds move with ``.to``)."""
        return reduce(common_support, (part.support for part in self.parts()))

    def _adopt(self) -> None:
        """Take over the parts' event shape; check that supports fit, once the parts are set."""
        ranks = {rank for part in self.parts() if (rank := _rank(part)) is not None}
        if len(ranks) > 1:
            raise ShapeError(
                f"energies of events of {' and '.join(map(str, sorted(ranks)))} axes were combined",
                "energies of one event shape",
                "combine energies of equal shape, by one that flattens its states for example",
            )
        for part in self.parts():
            if part.event_shape is not None:
                if self.event_shape not in (None, part.event_shape):
                    raise ShapeError(
                        f"energies of event shapes {tuple(self.event_shape or ())} and "
                        f"{tuple(part.event_shape)} were combined",
                        "energies of one event shape",
                        "combine energies of equal shape",
                    )
                self.event_shape = part.event_shape
            if part.event_ndim is not None:
                self.event_ndim = part.event_ndim
        _ = self.support

    def _hold(self, name: str, value: Tensor, given: Any) -> None:
        """Register a number: the parameter that was given as one, else a buffer."""
        if isinstance(given, nn.Parameter):
            self.register_parameter(name, given)
            return
        device, dtype = state_options(self.parts()[0])
        dtype = given.dtype if isinstance(given, Tensor) and given.ndim else dtype
        with torch.inference_mode(False):  # a buffer that autograd can use later
            self.register_buffer(name, torch.tensor(value.tolist(), device=device, dtype=dtype))


def _rank(energy: EnergyFunction) -> int | None:
    """The number of axes of its events, if it says so."""
    return energy.event_ndim if energy.event_shape is None else len(energy.event_shape)


class SumEnergy(CompositeEnergy):
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
        self.terms = nn.ModuleList(_flatten(terms))
        self._adopt()

    def parts(self) -> list[EnergyFunction]:
        """The terms."""
        return _energies(self.terms)

    def forward(self, x: Tensor) -> Tensor:
        """Σ_k E_k(x): ``(batch, *event) -> (batch,)``."""
        first, *rest = self.terms
        total: Tensor = first(x)
        for term in rest:
            total = total + term(x)
        return total


class ScaledEnergy(CompositeEnergy):
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
        self._adopt()
        self._hold("factor", torch.tensor(number, dtype=torch.float64), factor)

    def parts(self) -> list[EnergyFunction]:
        """The energy that is scaled."""
        return [self.energy]

    def forward(self, x: Tensor) -> Tensor:
        """Factor · E_1(x): ``(batch, *event) -> (batch,)``."""
        energies: Tensor = self.energy(x)
        return self.factor * energies


class MixtureEnergy(CompositeEnergy):
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
            raise ConfigurationError("a mixture of no energies", "at least one", "pass components")
        self.energies = nn.ModuleList(as_energy(energy) for energy in energies)
        self._adopt()
        weights = check_tensor("log_weights", log_weights, (len(energies),))
        self._hold("log_weights", weights, log_weights)

    def parts(self) -> list[EnergyFunction]:
        """The components."""
        return _energies(self.energies)

    def forward(self, x: Tensor) -> Tensor:
        """-log Σ_k exp(log_weights[k] - E_k(x)): ``(batch, *event) -> (batch,)``."""
        logs = self.log_weights - torch.stack([energy(x) for energy in self.energies], dim=-1)
        # Far out logsumexp's gradient suffers from the rounding of its value: shift by hand.
        top = logs.detach().amax(-1).clamp(min=torch.finfo(logs.dtype).min)
        return -(top + (logs - top.unsqueeze(-1)).exp().sum(-1).log())


def _energies(modules: nn.ModuleList) -> list[EnergyFunction]:
    return [module for module in modules if isinstance(module, EnergyFunction)]


def _flatten(terms: Sequence[EnergyLike]) -> list[EnergyFunction]:
    """Terms as energies, those of a nested sum in its place: a + b + c is one sum of three."""
    flat: list[EnergyFunction] = []
    for term in terms:
        if isinstance(term, SumEnergy):
            flat.extend(term.parts())
        else:
            flat.append(as_energy(term))
    if not flat:
        raise ConfigurationError("a sum of no energies", "at least one energy", "pass terms")
    return flat
