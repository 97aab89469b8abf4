"""`BernoulliRBM`: the restricted Boltzmann machine as an energy of its visible units.

The joint energy of visible units v and hidden units h, both in {0, 1}, is

    E(v, h) = -b·v - c·h - h·Wv,

and what samplers and losses see is the free energy of v, the sum over h done in closed form:
F(v) = -log Σ_h exp(-E(v, h)) = -b·v - Σ_j softplus(c_j + W_j·v).

Centring. The gradient of the likelihood with respect to W depends on where the zero of a unit is: a
unit that is mostly on, or mostly off, makes those of W and of the biases nearly parallel, and
learning slow. A centred machine (Montavon & Müller 2012; Melchior, Fischer & Wiskott 2016, "How to
center deep Boltzmann machines", JMLR 17:99) has the same joint distributions in other coordinates,

    E(v, h) = -(v - μ)·b̃ - (h - λ)·c̃ - (h - λ)·W(v - μ) + constant,

with offsets μ and λ near the units' means, so that W and b̃, c̃ are what is learned. Here the offsets
are buffers, the parameters are W, b̃ and c̃, and b = b̃ - Wᵀλ, c = c̃ - Wμ are computed from them: any
objective that is differentiated by autograd has the centred gradient. With offsets of zero it is
the plain one. `recentre` moves the offsets and the parameters together, such that b and c, and so
all energies, stay what they are.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn import functional as F

from ebm_core import ConfigurationError, EnergyFunction, ShapeError, SupportError
from ebm_core.validation import check_integer, check_number, check_positive
from ebm_models.saving import register

LARGEST = 22
"""Units of the smaller layer up to which all of its states are summed."""

_CHUNK = 2**20
"""Elements of an array of states times units that are held at once."""


@register
class BernoulliRBM(EnergyFunction):
    """F(v) = -b·v - Σ_j softplus(c_j + W_j·v): the free energy of v in {0, 1}ⁿ (Smolensky 1986).

    Weights start from N(0, ``weight_scale``²), biases from zero (Hinton 2012, "A practical guide to
    training restricted Boltzmann machines"); `initialize_from` sets them from data. States may be
    of a boolean, integer or floating dtype; at real numbers F is the same formula. Satisfies
    `ebm_core.protocols.BipartiteBinary`, so that block Gibbs samplers run it.

    Args:
        n_visible: Number of visible units.
        n_hidden: Number of hidden units.
        weight_scale: Standard deviation of the initial weights, positive.

    Attributes:
        weight: W, ``(n_hidden, n_visible)``.
        centred_visible_bias: b̃, ``(n_visible,)``; see the module's text.
        centred_hidden_bias: c̃, ``(n_hidden,)``.
        visible_offset: μ, ``(n_visible,)``, a buffer; zeros unless the machine has been centred.
        hidden_offset: λ, ``(n_hidden,)``, likewise.

    Raises:
        ConfigurationError: If a number is out of range.

    Example:
        >>> rbm = BernoulliRBM(n_visible=9, n_hidden=4)
        >>> v = torch.randint(0, 2, (5, 9), dtype=torch.int8)
        >>> rbm(v).shape, rbm.hidden_given_visible(v).shape
        (torch.Size([5]), torch.Size([5, 4]))
        >>> log_likelihood = -rbm(v) - rbm.log_normalizer()
    """

    support: Constraint = constraints.boolean
    visible_offset: Tensor
    hidden_offset: Tensor

    def __init__(self, n_visible: int, n_hidden: int, *, weight_scale: float = 0.01) -> None:
        super().__init__()
        self.n_visible = check_integer("n_visible", n_visible, at_least=1)
        self.n_hidden = check_integer("n_hidden", n_hidden, at_least=1)
        self.event_shape = torch.Size([self.n_visible])
        scale = check_positive("weight_scale", weight_scale)
        self.weight = nn.Parameter(scale * torch.randn(self.n_hidden, self.n_visible))
        self.centred_visible_bias = nn.Parameter(torch.zeros(self.n_visible))
        self.centred_hidden_bias = nn.Parameter(torch.zeros(self.n_hidden))
        self.register_buffer("visible_offset", torch.zeros(self.n_visible))
        self.register_buffer("hidden_offset", torch.zeros(self.n_hidden))

    @property
    def visible_bias(self) -> Tensor:
        """b = b̃ - Wᵀλ, ``(n_visible,)``; differentiable."""
        return self.centred_visible_bias - self.hidden_offset @ self.weight

    @property
    def hidden_bias(self) -> Tensor:
        """c = c̃ - Wμ, ``(n_hidden,)``; differentiable."""
        return self.centred_hidden_bias - self.weight @ self.visible_offset

    def forward(self, v: Tensor) -> Tensor:
        """The free energy: ``(batch, n_visible) -> (batch,)``, in nats.

        Raises:
            ShapeError: If ``v`` is no batch of states.
        """
        self.batch_size(v)
        v = v.to(self.weight.dtype)
        inputs = F.linear(v, self.weight, self.hidden_bias)
        return -(v @ self.visible_bias) - _softplus(inputs).sum(1)

    def joint_energy(self, v: Tensor, h: Tensor) -> Tensor:
        """E(v, h) = -b·v - c·h - h·Wv, ``(batch,)``.

        Args:
            v: ``(batch, n_visible)``.
            h: ``(batch, n_hidden)``.
        """
        v, h = self._visible(v), self._hidden(h)
        return -(v @ self.visible_bias) - (h * F.linear(v, self.weight, self.hidden_bias)).sum(1)

    def hidden_given_visible(self, v: Tensor) -> Tensor:
        """P(h_j = 1 | v): ``(batch, n_visible) -> (batch, n_hidden)``.

        Raises:
            ShapeError: If ``v`` is of another shape.
        """
        return F.linear(self._visible(v), self.weight, self.hidden_bias).sigmoid()

    def visible_given_hidden(self, h: Tensor) -> Tensor:
        """P(v_i = 1 | h): ``(batch, n_hidden) -> (batch, n_visible)``.

        Raises:
            ShapeError: If ``h`` is of another shape.
        """
        return F.linear(self._hidden(h), self.weight.T, self.visible_bias).sigmoid()

    def log_normalizer(self) -> Tensor:
        """Log Σ_v exp(-F(v)) in nats, a scalar, by enumeration of the smaller layer.

        Differentiable (its graph holds all states of that layer). With 20 units a sum over a
        million states, done in pieces.

        Raises:
            ConfigurationError: If both layers have more than 22 units.
        """
        smaller = min(self.n_visible, self.n_hidden)
        if smaller > LARGEST:
            raise ConfigurationError(
                f"the layers have {self.n_visible} and {self.n_hidden} units",
                f"a layer of at most {LARGEST}, whose 2^{LARGEST} states can be summed",
                "estimate log Z by annealed importance sampling, or use fewer units",
            )
        weight: Tensor = self.weight
        own, other = self.visible_bias, self.hidden_bias
        if self.n_hidden < self.n_visible:
            weight, own, other = weight.T, other, own
        parts = [
            torch.logsumexp(x @ own + _softplus(F.linear(x, weight, other)).sum(1), 0)
            for x in _all_states(smaller, max(1, _CHUNK // max(weight.shape)), weight)
        ]
        return torch.logsumexp(torch.stack(parts), 0)

    @torch.no_grad()
    def recentre(self, v: Tensor, rate: float = 1.0) -> None:
        """Move the offsets towards the units' means on data; energies stay the same.

        μ moves to the mean of ``v``, λ to that of P(h = 1 | v), by the fraction ``rate`` of the
        way, and b̃ and c̃ with them. Call it once on the data, after `initialize_from`, or before
        each step on the batch with a rate of about 0.01, since λ moves as the machine learns. The
        distribution stays the same, but not what an optimiser remembers of the gradients, nor a
        running average of the parameters: these belong to the coordinates of before. (An average
        is that of the machine only while the offsets stay, or hardly move.)

        Args:
            v: Data, ``(batch, n_visible)``.
            rate: From 0 (nothing moves) to 1.

        Raises:
            ShapeError: If ``v`` is of another shape, or empty.
            SupportError: If it has elements that are not 0 or 1.
            ConfigurationError: If ``rate`` is out of range.
        """
        rate = check_number("rate", rate, at_least=0, at_most=1)
        v = self._data(v)
        visible_move = rate * (v.mean(0) - self.visible_offset)
        hidden_move = rate * (self.hidden_given_visible(v).mean(0) - self.hidden_offset)
        self._move(visible_move, hidden_move)

    @torch.no_grad()
    def decentre(self) -> None:
        """Set the offsets to zero: the plain parametrisation; energies stay the same."""
        self._move(-self.visible_offset, -self.hidden_offset)

    @torch.no_grad()
    def initialize_from(self, v: Tensor, *, centre: bool = True) -> None:
        """Set the visible bias to the log odds of data, and centre the machine on them.

        With its small initial weights the machine then has the data's means from the start (Hinton
        2012, section 8.1). A unit that is on in k of n patterns gets log((k + ½)/(n - k + ½)),
        finite also where k is 0 or n.

        Args:
            v: Data, ``(batch, n_visible)``.
            centre: Call `recentre` too.

        Raises:
            ShapeError: If ``v`` is of another shape, or empty.
            SupportError: If it has elements that are not 0 or 1.
        """
        v = self._data(v)
        on = v.sum(0)
        log_odds = (on + 0.5).log() - (len(v) - on + 0.5).log()
        self.centred_visible_bias.add_(log_odds - self.visible_bias)
        if centre:
            self.recentre(v)

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        return f"n_visible={self.n_visible}, n_hidden={self.n_hidden}"

    def _move(self, visible: Tensor, hidden: Tensor) -> None:
        """Move the offsets, and the centred biases such that b and c stay."""
        self.centred_visible_bias.add_(hidden @ self.weight)
        self.centred_hidden_bias.add_(self.weight @ visible)
        self.visible_offset.add_(visible)
        self.hidden_offset.add_(hidden)

    def _visible(self, v: Tensor) -> Tensor:
        return _units("v", v, self.n_visible).to(self.weight.dtype)

    def _hidden(self, h: Tensor) -> Tensor:
        return _units("h", h, self.n_hidden).to(self.weight.dtype)

    def _data(self, v: Tensor) -> Tensor:
        v = self._visible(v)
        if len(v) == 0:
            raise ShapeError(
                f"v has shape {tuple(v.shape)}", "at least one pattern", "pass the data"
            )
        wrong = int(((v != 0) & (v != 1)).sum())
        if wrong:
            raise SupportError(
                f"{wrong} elements of v are neither 0 nor 1",
                "binary data",
                "make them binary, as in (x > threshold).float()",
            )
        return v.to(self.weight.device)


def _softplus(inputs: Tensor) -> Tensor:
    # Above torch's own threshold, 20, the linear branch is off by up to 2e-9, and so its slope.
    return F.softplus(inputs, threshold=40.0)


def _units(name: str, x: Tensor, n: int) -> Tensor:
    if x.ndim != 2 or x.shape[1] != n:
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}",
            f"(batch, {n})",
            f"add the batch axis with {name}[None], or flatten images with {name}.flatten(1)",
        )
    return x


def _all_states(n: int, at_once: int, like: Tensor) -> Iterator[Tensor]:
    """All states of n binary units, ``(chunk, n)`` each, of the dtype and device of ``like``."""
    bits = torch.arange(n, device=like.device)
    at_once = 2 ** int(math.log2(at_once))
    for first in range(0, 2**n, at_once):
        numbers = torch.arange(first, min(first + at_once, 2**n), device=like.device)
        yield ((numbers[:, None] >> bits) & 1).to(like.dtype)
