"""Gibbs sampling of discrete states, a block of units at a time.

Two kinds of energies offer what it takes (`ebm_core.protocols`), without either package knowing the
other: those that draw blocks of their own sites (`BlockConditionals`), and restricted Boltzmann
machines (`BipartiteBinary`), whose hidden units are drawn on the way from one visible state to the
next, v → h → v'.

Temperatures. The energy of a machine is the free energy F(v), and beta asks for exp(-beta F). A
Gibbs step at beta is another thing: with all bonds and biases multiplied by beta, the hidden units
summed out leave exp(-F_beta(v)) with

    F_beta(v) = -beta b·v - Σ_j softplus(beta a_j),   a_j = c_j + W_j·v,

which is beta F(v) at beta = 1 alone. But the step v → h → v' is reversible with respect to that
law, and so is a proposal whose Metropolis test needs no more than the ratio of both laws: accept
with probability min(1, exp(D(v) - D(v'))), D = beta F - F_beta = Σ_j [softplus(beta a_j) - beta
softplus(a_j)]. That makes exp(-beta F) exactly invariant, as replica exchange between temperatures
presumes. A term of D is between 0 and (1 - beta) log 2 for beta < 1, so that most proposals pass.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from ebm_core import ConfigurationError, EnergyLike, ShapeError, SupportError, require_discrete
from ebm_core.energy import check_energies
from ebm_core.support import same_support
from ebm_samplers.acceptance import metropolis
from ebm_samplers.sampler import MarkovSampler
from ebm_samplers.states import Context, State, Statistics
from ebm_samplers.streams import Stream

_BIPARTITE = ("weight", "visible_bias", "hidden_bias")


@dataclass(frozen=True)
class UnitState(State):
    """Discrete states; there are no gradients, and ``gradient`` is zeros ``(chain,)``.

    Attributes:
        inputs: Of a machine, what its hidden units are given, c + Wv, ``(chain, n_hidden)``; else
            zeros ``(chain,)``.
    """

    inputs: Tensor


class BlockGibbs(MarkovSampler):
    """Block Gibbs: a transition draws all blocks, one after the other, from their conditionals.

    Of energies on spins, binary units or labels that satisfy `ebm_core.BlockConditionals` or
    `ebm_core.BipartiteBinary` (where both, the first). States keep the dtype they start with;
    int8 is enough for spins and binary units. Every element of a state uses one uniform a
    transition, and every hidden unit one. Runs on the torch engine, step by step, on any device.

    Leaves exp(-beta E) exactly invariant. Of restricted Boltzmann machines with beta other than 1,
    a transition ends in a Metropolis test (see `ebm_samplers.gibbs`). Statistics:
    ``acceptance_rate`` where there is such a test (no ``n_steps``, which counts gradients);
    ``step_size`` of results is 1 and means nothing.

    Args:
        energy: Such an energy, on a discrete support.
        engine: ``"auto"`` or ``"torch"``; there is no kernel yet.

    Raises:
        SupportError: If the energy is not defined on discrete states, or a machine not on binary
            ones.
        ConfigurationError: If it satisfies neither protocol.

    Example:
        >>> class Machine(torch.nn.Module):
        ...     support, event_shape = constraints.boolean, torch.Size([3])
        ...     weight = torch.tensor([[2.0, -1.0, 0.0]])
        ...     visible_bias, hidden_bias = torch.zeros(3), torch.ones(1)
        ...     def forward(self, v):
        ...         inputs = v.float() @ self.weight.T + self.hidden_bias
        ...         return -v.float() @ self.visible_bias - F.softplus(inputs).sum(1)
        >>> result = BlockGibbs(Machine()).sample(n_samples=1000, n_steps=20, seed=0)
        >>> result.final.dtype, result.final.float().mean(0)
        (torch.int8, tensor([0.8..., 0.2..., 0.4...]))
    """

    adjusted: ClassVar[bool] = False  # the size of energies does not enter its test, see D above
    statistics: ClassVar[tuple[str, ...]] = ("acceptance_rate",)
    state_class: ClassVar[type[State]] = UnitState

    def __init__(self, energy: EnergyLike, *, engine: str = "auto") -> None:
        super().__init__(energy, 1.0, engine=engine)
        self.source: Any = energy
        self._compared = False
        self.by_blocks = hasattr(energy, "sample_block") and hasattr(energy, "n_blocks")
        machine = all(hasattr(energy, name) for name in _BIPARTITE)
        if not self.by_blocks and not machine:
            raise ConfigurationError(
                f"{type(energy).__name__} has neither n_blocks and sample_block nor "
                f"{', '.join(_BIPARTITE)}",
                "an energy that satisfies BlockConditionals or BipartiteBinary of ebm_core",
                "give it these methods; of a tempered or scaled energy pass the energy itself, and "
                "beta to sample",
            )
        if not self.by_blocks and not same_support(self.energy.support, constraints.boolean):
            raise SupportError(
                f"BlockGibbs was given a bipartite energy on the support {self.energy.support}",
                "binary units, the support torch.distributions.constraints.boolean",
                "write the energy in units of 0 and 1",
            )

    def require_support(self) -> None:
        """Refuse continuous states.

        Raises:
            SupportError: If the energy is defined on such.
        """
        require_discrete(self.energy.support, type(self).__name__)

    def prepare(self, x: Tensor, context: Context) -> None:
        """Weight and biases of a machine, once a run: they may be computed from others."""
        if not self.by_blocks:
            context.prepared["machine"] = tuple(getattr(self.source, name) for name in _BIPARTITE)

    def start(self, x: Tensor, context: Context) -> UnitState:
        """States with energies; of machines by their formula, which is once compared with forward.

        Raises:
            ConfigurationError: If a machine's ``forward`` is not the free energy of its weights.
        """
        if self.by_blocks:
            energy = check_energies(self.energy(x), x.shape[:1])
            zeros = torch.zeros_like(energy)
            return UnitState(x, energy, zeros, zeros)
        weight, visible_bias, hidden_bias = context.prepared["machine"]
        v = x.to(weight.dtype)
        inputs = F.linear(v, weight, hidden_bias)
        energy = _free_energy(v, visible_bias, inputs)
        if not self._compared:
            self._compare(x[:4], energy[:4])
        return UnitState(x, energy, torch.zeros_like(energy), inputs)

    def transition(self, state: State, context: Context) -> tuple[State, Statistics]:
        """All blocks, or hidden and then visible units."""
        assert isinstance(state, UnitState)
        if self.by_blocks:
            return self._sweep(state, context), {}
        beta = context.beta
        if beta is None:
            return self._visible_by_hidden(state, context, None), {}
        beta = beta[:, None] if isinstance(beta, Tensor) else beta
        proposal = self._visible_by_hidden(state, context, beta)
        delta = _excess(proposal.inputs, beta) - _excess(state.inputs, beta)
        verdict = metropolis(delta, context.uniforms(Stream.ACCEPT))
        return verdict.choose(proposal, state), {"acceptance_rate": verdict.probability}

    def _visible_by_hidden(
        self, state: UnitState, context: Context, beta: float | Tensor | None
    ) -> UnitState:
        """v → h → v' with bonds and biases times beta."""
        weight, visible_bias, hidden_bias = context.prepared["machine"]
        n_hidden, n_visible = weight.shape
        uniforms = context.uniforms_all(Stream.UNITS, n_hidden + n_visible)
        inputs = state.inputs if beta is None else beta * state.inputs
        h = (uniforms[:, :n_hidden] < inputs.sigmoid()).to(weight.dtype)
        inputs = torch.addmm(visible_bias, h, weight)
        inputs = inputs if beta is None else beta * inputs
        on = uniforms[:, n_hidden:] < inputs.sigmoid()
        v = on.to(weight.dtype)
        inputs = F.linear(v, weight, hidden_bias)
        energy = _free_energy(v, visible_bias, inputs)
        x = v if state.x.dtype == v.dtype else on.to(state.x.dtype)
        return UnitState(x, energy, state.gradient, inputs)

    def _sweep(self, state: UnitState, context: Context) -> UnitState:
        x, beta = state.x, context.beta
        uniforms = context.uniforms_all(Stream.UNITS, x[0].numel()).view(x.shape)
        options = {} if beta is None else {"beta": beta}
        for block in range(self.source.n_blocks):
            drawn = self.source.sample_block(x, block, uniforms, **options)
            x = _check_block(drawn, x)
        return replace(state, x=x, energy=self.energy(x))

    def _compare(self, x: Tensor, energy: Tensor) -> None:
        """Hold ``forward`` to the formula, on a few states of the first run."""
        wanted = check_energies(self.energy(x), x.shape[:1])
        error = (wanted - energy).abs()
        # Not finite ones are refused with the start states.
        if bool((error > 1e-3 * (1 + energy.abs())).any()):
            raise ConfigurationError(
                f"forward gives {wanted[0].item():.6g} where the weights and biases give a free "
                f"energy of {energy[0].item():.6g}",
                "forward(v) = -b·v - Σ_j softplus(c_j + W_j·v) with weight W (n_hidden, n_visible)",
                "make forward that free energy, or give the energy n_blocks and sample_block",
            )
        self._compared = True


def _check_block(drawn: Any, x: Tensor) -> Tensor:
    is_tensor = isinstance(drawn, Tensor)
    if not is_tensor or drawn.shape != x.shape or drawn.dtype != x.dtype:
        given = f"{tuple(drawn.shape)}, {drawn.dtype}" if is_tensor else type(drawn).__name__
        raise ShapeError(
            f"sample_block gave {given} for states {tuple(x.shape)}, {x.dtype}",
            "states of the same shape and dtype",
            "return all sites, those of other blocks as they were",
        )
    checked: Tensor = drawn
    return checked


def _free_energy(v: Tensor, bias: Tensor, inputs: Tensor) -> Tensor:
    return torch.addmv(F.softplus(inputs).sum(1), v, bias, beta=-1, alpha=-1)


def _excess(inputs: Tensor, beta: float | Tensor) -> Tensor:
    """D of the module's text, ``(chain,)``."""
    return (F.softplus(beta * inputs) - beta * F.softplus(inputs)).sum(1)
