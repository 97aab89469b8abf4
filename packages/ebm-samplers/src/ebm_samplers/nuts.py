"""The No-U-Turn sampler: Hamiltonian Monte Carlo that finds the length of its trajectories.

Hoffman & Gelman (2014, JMLR 15) in the form of Betancourt (2017, arXiv:1701.02434): leaves are
drawn with their multinomial weights, and U-turns are told by momenta. The trees are in
`ebm_samplers.trees`, those of the fused engine in `ebm_samplers.fused.kernels.nuts`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebm_core import ConfigurationError
from ebm_core.energy import EnergyLike
from ebm_core.validation import check_integer
from ebm_samplers.attributes import Check
from ebm_samplers.mass import checked_mass, kernel_mass, mass_for
from ebm_samplers.sampler import MarkovSampler
from ebm_samplers.schedules import Schedule
from ebm_samplers.states import Context, State, Statistics, per_chain
from ebm_samplers.streams import Stream
from ebm_samplers.trees import Dynamics, Point, Tree, doubled

DEEPEST = 15
"""Of all trees: what numbers in the random streams leave room for."""


def _checked_depth(max_tree_depth: Any) -> int:
    depth = check_integer("max_tree_depth", max_tree_depth, at_least=1)
    if depth > DEEPEST:
        raise ConfigurationError(
            f"max_tree_depth is {depth}",
            f"an integer from 1 to {DEEPEST}",
            "raise step_size, or give a mass: trajectories of 2¹⁵ leapfrogs do not pay",
        )
    return depth


class NUTS(MarkovSampler):
    """The No-U-Turn sampler, with multinomial weights and the generalised U-turn.

    Leaves exp(-E) exactly invariant, on events of any shape. A trajectory doubles until it turns
    back, at a cost of 2^depth - 1 gradients a transition; each chain has its own. Statistics:
    ``acceptance_rate`` (mean over the leaves of min(1, exp(H₀ - H)), which ``target_acceptance``
    steers), ``diverging`` (H rose by more than 1000 nats, or was not finite: the trajectory ends),
    ``n_steps`` (leapfrogs), ``energy`` (H of the new state), ``tree_depth``.

    Args:
        energy: An `EnergyFunction` or any callable ``(chain, *event) -> (chain,)``.
        step_size: ε of the leapfrog, positive; a number or a schedule ``step -> number``.
        max_tree_depth: Doublings at most, from 1 to 15; a chain that gets there turns around by
            chance.
        mass: As in `HamiltonianMonteCarlo`.
        target_acceptance: Acceptance rate that ε is to follow, see `MarkovSampler`; 0.8 is usual.
        engine: See `MarkovSampler`.

    Raises:
        ConfigurationError: If a setting makes no sense.
        ShapeError: If ``mass`` does not fit the event.

    Example:
        >>> sampler = NUTS(lambda x: x.square().sum(1) / 2, step_size=0.5)
        >>> result = sampler.sample(n_samples=100, dim=3, n_steps=5, keep="trajectory", seed=0)
        >>> result.stats["tree_depth"].shape
        torch.Size([100, 5])
    """

    statistics: ClassVar[tuple[str, ...]] = (*MarkovSampler.statistics, "energy", "tree_depth")
    usual_acceptance: ClassVar[float] = 0.8
    kernel: ClassVar[str | None] = "nuts"
    checks: ClassVar[Mapping[str, Check]] = {"max_tree_depth": _checked_depth}

    def __init__(
        self,
        energy: EnergyLike,
        step_size: float | Schedule = 0.1,
        max_tree_depth: int = 10,
        mass: Tensor | None = None,
        *,
        target_acceptance: float | None = None,
        engine: str = "auto",
    ) -> None:
        super().__init__(energy, step_size, target_acceptance=target_acceptance, engine=engine)
        self.max_tree_depth = max_tree_depth
        self.mass = None if mass is None else checked_mass(mass, self.energy.event_shape)

    def prepare(self, x: Tensor, context: Context) -> None:
        """Fit the mass to the states."""
        context.prepared["mass"] = mass_for(self.mass, x)

    def kernel_constants(self, x: Tensor) -> dict[str, Tensor]:
        """M⁻¹ and the Cholesky factor of M."""
        return kernel_mass(self.mass, x)

    def kernel_lengths(self, n: int, uniforms: Any) -> int:
        """Doublings at most."""
        return self.max_tree_depth

    @property
    def kernel_gradients(self) -> int:
        """Those of the deepest tree."""
        return int(2**self.max_tree_depth)

    def transition(self, state: State, context: Context) -> tuple[State, Statistics]:
        """A fresh momentum, and a draw from the trajectory through the state."""
        mass = context.prepared["mass"]
        momentum = mass.momentum(context.normals(Stream.MOMENTUM))
        start = Point(state.x, state.energy, state.gradient, momentum)
        dynamics = Dynamics(self.evaluate, mass, context.step_size, context.beta, start)
        tree = Tree.of(state, momentum)
        for depth in range(self.max_tree_depth):
            (index,) = tree.growing.nonzero(as_tuple=True)
            if not len(index):
                break
            sides = context.uniforms_of(Stream.DIRECTION, 16, depth, 1)[index, 0]
            chance = context.uniforms_of(Stream.ACCEPT, 16, depth, 1)[index, 0]
            leaves = _Leaves(context, index, depth)
            doubled(tree, dynamics, index, torch.where(sides < 0.5, -1, 1), leaves, chance)
        new, everyone = tree.proposal, torch.arange(len(state.x), device=state.x.device)
        rise = dynamics.rise(new, everyone)
        hamiltonian = context.temper(state.energy) + per_chain(dynamics.kinetic) / 2
        return State(new.x, new.energy, new.gradient), {
            "acceptance_rate": tree.chance / tree.n_leaves,
            "diverging": tree.diverging,
            "n_steps": tree.n_leaves,
            "energy": hamiltonian + rise,
            "tree_depth": tree.depth,
        }


class _Leaves:
    """Uniforms for the leaves of a subtree, some at a time.

    Leaf i of the subtree of a depth has number 2^depth + i of the transition's 2¹⁶.
    """

    at_once = 64

    def __init__(self, context: Context, index: Tensor, depth: int) -> None:
        self.context, self.index, self.depth = context, index, depth

    def __call__(self, leaf: int) -> Tensor:
        first = leaf % self.at_once
        if first == 0:
            n = min(self.at_once, 2**self.depth)
            numbers = self.context.uniforms_of(Stream.LEAF, 2**16, 2**self.depth + leaf, n)
            self.numbers = numbers[self.index].unbind(1)
        return self.numbers[first]
