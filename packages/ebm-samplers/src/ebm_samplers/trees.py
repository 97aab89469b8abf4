"""The trees of NUTS: trajectories that double until they turn back, for many chains at once.

A tree's leaves are consecutive states of leapfrog, 2^depth of them; it grows by a subtree of as
many on a random side. It stops where a subtree, or the whole, makes a U-turn: then going on would
come back. For detailed balance every aligned subtree (leaves 0–1, 2–3, 0–3, …) is looked at; of
these, a subtree under way keeps the first momentum and the sum of momenta so far (Phan, Pradhan &
Jankowiak 2019, arXiv:1912.11554), as many as it is deep, instead of recursion.

All functions here take chains in rows; those that have stopped are masked or left out.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ebm_samplers.acceptance import DIVERGENCE
from ebm_samplers.mass import Mass
from ebm_samplers.states import State, per_chain


@dataclass
class Point:
    """A state of the dynamics: position, energy, gradient and momentum."""

    x: Tensor
    energy: Tensor
    gradient: Tensor
    momentum: Tensor

    def rows(self, index: Tensor) -> "Point":
        """The points of some chains."""
        return Point(*(getattr(self, f.name)[index] for f in fields(self)))

    def put(self, index: Tensor, taken: Tensor, other: "Point") -> None:
        """Let chains ``index[taken]`` be where rows ``taken`` of another are."""
        for f in fields(self):
            getattr(self, f.name)[index[taken]] = getattr(other, f.name)[taken]


@dataclass
class Tree:
    """The trees of all chains.

    Attributes:
        left, right: Their first and last leaves in time.
        proposal: A leaf drawn with probability ∝ exp(-H).
        momentum: The sum of the leaves' momenta.
        log_weight: log Σ exp(H₀ - H) over the leaves.
        growing: Chains whose trees go on.
        depth, n_leaves: Doublings, and leaves made, ``(chain,)``, int64.
        chance: Sum of min(1, exp(H₀ - H)) over the leaves made.
        diverging: Chains that met a leaf whose H is 1000 nats above H₀, or not finite.
    """

    left: Point
    right: Point
    proposal: Point
    momentum: Tensor
    log_weight: Tensor
    growing: Tensor
    depth: Tensor
    n_leaves: Tensor
    chance: Tensor
    diverging: Tensor

    @classmethod
    def of(cls, state: State, momentum: Tensor) -> "Tree":
        """Trees of one leaf."""

        def point() -> Point:
            return Point(
                state.x.clone(), state.energy.clone(), state.gradient.clone(), momentum.clone()
            )

        n = torch.zeros_like(state.energy, dtype=torch.int64)
        zero, no = torch.zeros_like(state.energy), torch.zeros_like(n, dtype=torch.bool)
        return cls(
            *(point(), point(), point(), momentum.clone()),
            *(zero, ~no, n, n.clone(), zero.clone(), no),
        )


@dataclass
class Subtree:
    """Subtrees of some chains, as in `Tree`; ``whole`` where all leaves could be made."""

    end: Point
    proposal: Point
    momentum: Tensor
    log_weight: Tensor
    whole: Tensor
    n_leaves: Tensor
    chance: Tensor
    diverging: Tensor


class Dynamics:
    """Leapfrogs of a sampler, and what H they lead to.

    Args:
        evaluate: Gives the `State` at positions.
        mass: M.
        step_size: h, a number or scalar.
        beta: Inverse temperatures, ``(chain,)``, a number, or None for 1.
        start: Where trajectories begin.
    """

    def __init__(
        self, evaluate: Any, mass: Mass, step_size: Any, beta: float | Tensor | None, start: Point
    ) -> None:
        self.evaluate, self.mass, self.step_size, self.start = evaluate, mass, step_size, start
        self.beta = (
            torch.ones_like(start.energy)
            if beta is None
            else beta * start.energy.new_ones(len(start.energy))
        )
        self.kinetic = start.momentum * mass.velocity(start.momentum)

    def leapfrog(self, at: Point, sign: Tensor, index: Tensor) -> Point:
        """A step of chains ``index``, forwards (sign 1) or backwards (-1) in time."""
        axes = (-1, *(1,) * (at.x.ndim - 1))
        h = (sign.to(at.x.dtype) * self.step_size).view(axes)
        beta = self.beta[index].view(axes)
        momentum = at.momentum - h / 2 * beta * at.gradient
        new = self.evaluate(at.x + h * self.mass.velocity(momentum))
        momentum = momentum - h / 2 * beta * new.gradient
        return Point(new.x, new.energy, new.gradient, momentum)

    def rise(self, at: Point, index: Tensor) -> Tensor:
        """H - H₀ of chains ``index``; infinite where it is not finite."""
        kinetic = at.momentum * self.mass.velocity(at.momentum)
        energies = self.beta[index] * (at.energy - self.start.energy[index])
        rise = energies + per_chain(kinetic - self.kinetic[index]) / 2
        infinity = float("inf")
        return rise.nan_to_num(nan=infinity, posinf=infinity, neginf=infinity)

    def turned(self, first: Tensor, last: Tensor, total: Tensor) -> Tensor:
        """Whether a trajectory begins to come back, from its momenta: at its ends, and their sum.

        The generalised criterion of Betancourt (2017, arXiv:1701.02434, A.4.2). The ends count half
        in the sum, which is then M(x_last - x_first)/h.
        """
        along = total - (first + last) / 2
        return (per_chain(self.mass.velocity(first) * along) <= 0) | (
            per_chain(self.mass.velocity(last) * along) <= 0
        )


def subtree(
    dynamics: Dynamics, start: Point, sign: Tensor, index: Tensor, depth: int, uniforms: Any
) -> Subtree:
    """Make 2^depth leaves from ``start`` on.

    Args:
        dynamics: Of all chains.
        start: The leaves before the first, one for each of some chains.
        sign: The direction of time, 1 or -1.
        index: Numbers of these chains.
        depth: Of the subtree.
        uniforms: Gives, for a leaf's number, uniforms ``(row,)``.
    """
    n = torch.zeros_like(index)
    zero = torch.zeros_like(start.energy)
    tree = Subtree(
        end=start,
        proposal=start.rows(torch.arange(len(index), device=index.device)),
        momentum=torch.zeros_like(start.momentum),
        log_weight=torch.full_like(zero, float("-inf")),
        whole=n == 0,
        n_leaves=n,
        chance=zero,
        diverging=n != 0,
    )
    firsts, sums = [tree.momentum] * depth, [tree.momentum] * depth
    everyone = torch.arange(len(index), device=index.device)
    for leaf in range(2**depth):
        if not tree.whole.any():
            break
        under_way = tree.whole
        at = dynamics.leapfrog(tree.end, sign, index)
        rise = dynamics.rise(at, index)
        log_weight = torch.logaddexp(tree.log_weight, -rise)
        taken = under_way & (uniforms(leaf) < (-rise - log_weight).exp())
        tree.proposal.put(everyone, taken, at)
        tree.log_weight = torch.where(under_way, log_weight, tree.log_weight)
        tree.chance = tree.chance + torch.where(under_way, rise.neg().exp().clamp(max=1), 0)
        tree.n_leaves = tree.n_leaves + under_way
        tree.diverging = tree.diverging | (under_way & (rise > DIVERGENCE))
        tree.end, tree.momentum = at, tree.momentum + at.momentum
        turned = torch.zeros_like(under_way)
        newest = (leaf >> 1).bit_count()
        if leaf % 2 == 0:
            if depth:
                firsts[newest], sums[newest] = at.momentum, tree.momentum
        else:
            oldest = newest - (~leaf & (leaf + 1)).bit_length() + 2
            for i in range(oldest, newest + 1):
                total = tree.momentum - sums[i] + firsts[i]
                turned |= dynamics.turned(firsts[i], at.momentum, total)
        tree.whole = under_way & ~turned & ~tree.diverging
    return tree


def doubled(
    tree: Tree, dynamics: Dynamics, index: Tensor, sign: Tensor, uniforms: Any, chance: Tensor
) -> None:
    """Let the trees of chains ``index`` grow by a subtree of their own size.

    Args:
        tree: The trees of all chains, of equal depth where they are growing; changed.
        dynamics: Of all chains.
        index: The growing chains.
        sign: Their directions, 1 or -1.
        uniforms: As in `subtree`.
        chance: Uniforms that choose between the old leaves and the new.
    """
    forward = sign > 0
    start = tree.left.rows(index)
    start.put(torch.arange(len(index), device=index.device), forward, tree.right.rows(index))
    depth = int(tree.depth[index[0]])
    new = subtree(dynamics, start, sign, index, depth, uniforms)
    whole = new.whole
    # biased towards the new half, which is further away (Betancourt 2017, A.3.2)
    taken = whole & (chance < (new.log_weight - tree.log_weight[index]).exp())
    tree.proposal.put(index, taken, new.proposal)
    tree.right.put(index, whole & forward, new.end)
    tree.left.put(index, whole & ~forward, new.end)
    kept = index[whole]
    tree.momentum[kept] += new.momentum[whole]
    tree.log_weight[kept] = torch.logaddexp(tree.log_weight[kept], new.log_weight[whole])
    tree.depth[kept] += 1
    tree.n_leaves[index] += new.n_leaves
    tree.chance[index] += new.chance
    tree.diverging[index] |= new.diverging
    ends = tree.left.momentum[index], tree.right.momentum[index]
    tree.growing[index] = whole & ~dynamics.turned(*ends, tree.momentum[index])
