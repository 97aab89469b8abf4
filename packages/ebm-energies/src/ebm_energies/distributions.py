"""Any continuous ``torch.distributions.Distribution`` as an energy.

A distribution is not a module: its tensors sit in it, in the distributions it is made of, and in
transforms. A `_Mirror` holds those tensors as buffers, in a tree of modules of the same form, and
puts together a distribution of the present tensors when asked, without running any constructor.
"""

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Transform, VonMises, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import _InverseTransform

from ebm_core import ConfigurationError, EnergyFunction, SupportError, state_options
from ebm_core.seeding import folded_key
from ebm_core.validation import check_integer
from ebm_energies._base import available_if, hold


class DistributionEnergy(EnergyFunction):
    """E(x) = -log p(x) of a continuous distribution, infinite outside its support.

    The distribution's tensors are copied and become buffers, moved by ``.to`` and saved in
    ``state_dict``; those of distributions and transforms inside it too. Not moved are tensors that
    hide elsewhere, such as in the network of a user's own transform. ``mean`` and ``covariance``
    are there if the distribution knows them.

    Args:
        distribution: Any continuous distribution without batch axes; scalar ones give energies of
            states ``(batch,)``.

    Raises:
        SupportError: If it is discrete, or a law on the circle (VonMises).
        ConfigurationError: If it is no distribution, or has batch axes.

    Example:
        >>> from torch.distributions import Gamma, Independent
        >>> energy = DistributionEnergy(Independent(Gamma(torch.tensor([1.0, 2.0]), 1.0), 1))
        >>> energy(torch.tensor([[1.0, 1.0], [-1.0, 1.0]])), energy.mean()
        (tensor([2., inf]), tensor([1., 2.]))
    """

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        if not isinstance(distribution, Distribution):
            raise ConfigurationError(
                f"the distribution is {distribution!r}",
                "a torch.distributions.Distribution",
                "pass an instance",
            )
        if distribution.batch_shape:
            raise ConfigurationError(
                f"the distribution has batch shape {tuple(distribution.batch_shape)}",
                "one distribution, of batch shape ()",
                f"wrap it in torch.distributions.Independent(..., {len(distribution.batch_shape)})",
            )
        if _support(distribution).is_discrete:
            raise SupportError(
                f"{type(distribution).__name__} is a discrete distribution",
                "a continuous distribution",
                "write its energy as an EnergyFunction with a discrete support",
            )
        self.mirror = _Mirror(distribution)
        self.event_shape = distribution.event_shape
        self.event_ndim = len(distribution.event_shape)

    @property
    def distribution(self) -> Distribution:
        """The distribution, made of this energy's present tensors, without validation."""
        distribution: Distribution = self.mirror.build()
        return distribution

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        """The distribution's support, on its tensors' present device; ``real`` if it is all."""
        support = _support(self.distribution)
        return constraints.real if _is_everything(support) else support

    def forward(self, x: Tensor) -> Tensor:
        """-log p(x), infinite outside the support: ``(..., *event) -> (...)``."""
        distribution = self.distribution
        energy = -distribution.log_prob(x)
        if x.requires_grad and not energy.requires_grad:
            # A flat density (Uniform) forgets x; its gradient is zero, not absent.
            energy = energy + (0.0 * x).reshape(*energy.shape, -1).sum(-1)
        support = _support(distribution)
        if _is_everything(support):
            return energy
        inside = support.check(x)  # type: ignore[no-untyped-call]
        return torch.where(inside, energy, math.inf)

    def log_normalizer(self) -> Tensor:
        """Zero."""
        device, dtype = state_options(self)
        return torch.zeros((), device=device, dtype=dtype)

    @available_if(lambda self: _mean(self.distribution) is not None)
    def mean(self) -> Tensor:
        """E[x], of the event's shape.

        Raises:
            ConfigurationError: If there is none (a Cauchy law).
        """
        return self._existing("mean", _mean(self.distribution))

    @available_if(lambda self: _covariance(self.distribution) is not None)
    def covariance(self) -> Tensor:
        """Cov[x], ``(d, d)`` for the d elements of the flattened event.

        Raises:
            ConfigurationError: If there is none.
        """
        return self._existing("covariance", _covariance(self.distribution))

    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` independent draws, ``(n, *event)``.

        Distributions draw from the global generator of their device; it is seeded for the call, and
        its state restored after it.
        """
        check_integer("n", n, at_least=1)
        key, device = folded_key(seed), state_options(self)[0]
        on_gpu = device.type == "cuda"
        with torch.random.fork_rng(devices=[device] if on_gpu else []):
            torch.default_generator.manual_seed(key)  # manual_seed would seed all devices
            if on_gpu:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(key)
            return self.distribution.sample((n,))

    def _existing(self, name: str, moment: Tensor | None) -> Tensor:
        if moment is None or not torch.isfinite(moment).all():
            raise ConfigurationError(
                f"the {name} of {self.distribution} does not exist",
                f"a distribution with a {name}",
                "compare quantiles instead of moments",
            )
        return moment.clone()


class _Mirror(nn.Module):
    """The tensors of a distribution or transform as buffers, and the rest of it as a template."""

    def __init__(self, source: Distribution | Transform) -> None:
        super().__init__()
        self.template = copy.copy(source)
        attributes = vars(self.template)
        for name, value in vars(source).items():
            if name == "_inv" and not isinstance(source, _InverseTransform):
                continue  # the cached inverse, made anew when asked for
            if isinstance(value, Tensor):
                hold(self, name, value.detach())
            elif isinstance(value, Distribution | Transform):
                self.add_module(name, _Mirror(value))
            elif isinstance(value, list) and value and all(isinstance(v, Transform) for v in value):
                self.add_module(name, nn.ModuleList(_Mirror(v) for v in value))
            else:
                continue
            attributes.pop(name)
        if isinstance(source, Distribution):
            # The energy checks the support itself, without raising.
            attributes["_validate_args"] = False
        else:
            attributes["_cached_x_y"] = None, None

    def build(self) -> Any:
        """The distribution or transform with the present tensors."""
        clone = copy.copy(self.template)
        attributes = vars(clone)
        attributes.update(self.named_buffers(recurse=False, remove_duplicate=False))
        for name, child in self.named_children():
            if isinstance(child, nn.ModuleList):
                attributes[name] = [cast(_Mirror, part).build() for part in child]
            else:
                attributes[name] = cast(_Mirror, child).build()
        return clone


def _support(distribution: Distribution) -> Constraint:
    support, base = distribution.support, distribution
    while isinstance(base, Independent):
        base = base.base_dist
    if isinstance(base, VonMises):
        raise SupportError(
            "VonMises is a law on the circle, which torch takes for one on the real numbers",
            "a law on a support of torch.distributions.constraints",
            "sample its energy, -κ cos(x - μ), as a function, and take the draws modulo 2π",
        )
    if support is None:
        raise ConfigurationError(
            f"{type(distribution).__name__} names no support", "a support", "define its `support`"
        )
    return support


def _is_everything(support: Constraint) -> bool:
    """Whether every finite state is in the support, so that it need not be checked."""
    while (inner := getattr(support, "base_constraint", None)) is not None:
        support = inner
    return isinstance(support, type(constraints.real))


def _mean(distribution: Distribution) -> Tensor | None:
    try:
        return distribution.mean
    except NotImplementedError:
        return None


def _covariance(distribution: Distribution) -> Tensor | None:
    matrix, n = getattr(distribution, "covariance_matrix", None), distribution.event_shape.numel()
    vector = len(distribution.event_shape) == 1
    if isinstance(matrix, Tensor) and vector and matrix.shape == (n, n):
        return matrix  # of a Wishart law it is a parameter
    scalar = distribution.event_shape.numel() == 1
    product = isinstance(distribution, Independent) and not distribution.base_dist.event_shape
    try:
        return distribution.variance.flatten().diag() if scalar or product else None
    except NotImplementedError:
        return None
