"""Random numbers and settings as graphs see them: by where they lie, not by their values."""

from typing import Any

import torch
from torch import Tensor

from ebm_samplers.captured.graph import CannotCapture
from ebm_samplers.noise import Noise
from ebm_samplers.states import Context


class PlacedNoise(Noise):
    """The random numbers of chains whose place in the streams lies in memory.

    Args:
        place: Key, number of the first chain and number of the next step, int64 of length 3 on the
            device of the states; the key's bits.
        like: A batch of states ``(chain, *event)``.

    Attributes:
        told: Streams of which hosts have numbers, since `MarkovSampler.branch` asked for them.
        telling: Whether it is asking now.
    """

    def __init__(self, place: Tensor, like: Tensor) -> None:
        self.place = place
        self.told: set[int] = set()
        self.telling = False
        super().__init__(0, 0, like)

    def open(self, first_step: int, n_steps: int) -> None:
        """Make ready for steps."""
        super().open(first_step, n_steps)
        self._step = first_step
        self._made: dict[tuple[bool, int], Tensor] = {}

    def normals(self, stream: int, step: int) -> Tensor:
        """Standard normals of a step, ``(chain, *event)``."""
        return self._placed(False, stream, step, self.size).view(self.like.shape)

    def uniforms(self, stream: int, step: int) -> Tensor:
        """Uniforms in (0, 1) of a step, ``(chain,)``."""
        return self._placed(True, stream, step, 1).view(-1)

    def uniforms_of(self, stream: int, per_step: int, step: int, first: int, n: int) -> Tensor:
        """Steps that ask for some of many look at what came of the others.

        Raises:
            CannotCapture: Always.
        """
        raise CannotCapture("a step asks for a number of uniforms that depends on states")

    def uniforms_all(self, stream: int, per_step: int, step: int) -> Tensor:
        """Not offered in graphs.

        Raises:
            CannotCapture: Always.
        """
        raise CannotCapture("a step asks for several uniforms a chain")

    def shared_uniform(self, stream: int, step: int) -> float:
        """A number that all chains share: of the host, so that a graph holds what follows from it.

        Raises:
            CannotCapture: If ``branch`` does not tell of it.
        """
        if self.telling:
            self.told.add(stream)
        elif stream not in self.told:
            raise CannotCapture(
                "a step asks for a shared uniform, and `branch` does not tell what follows from it"
            )
        return super().shared_uniform(stream, step)

    def moved(
        self, x: Tensor, velocity: Tensor, h: float, spread: float, stream: int, step: int
    ) -> Tensor:
        """x - h·velocity + spread·ξ with the normals ξ of a step, from one kernel."""
        from ebm_samplers.fused.cuda.noise import move

        ahead = step - self.first_step
        return move(x.contiguous(), velocity.contiguous(), h, spread, stream, self.place, ahead)

    def _placed(self, uniform: bool, stream: int, step: int, length: int) -> Tensor:
        from ebm_samplers.fused.cuda.noise import fill_placed

        if step != self._step:  # nobody asks for an earlier one again
            self._step = step
            self._made.clear()
        if (uniform, stream) not in self._made:
            double = self.like.dtype == torch.float64
            dtype = torch.float64 if double else torch.float32
            out = torch.empty((len(self.like), length), dtype=dtype, device=self.like.device)
            fill_placed(out, uniform, stream, self.place, step - self.first_step)
            self._made[uniform, stream] = out if uniform else out.to(self.like.dtype)
        return self._made[uniform, stream]


class PlacedContext(Context):
    """What a transition is given while it is captured."""

    _noise: PlacedNoise

    def moved(
        self,
        x: Tensor,
        velocity: Tensor,
        h: float | Tensor,
        spread: float | Tensor,
        stream: int,
    ) -> Tensor:
        """x - h·velocity + spread·ξ; by one kernel where numbers are frozen and of a kind."""
        plain = x.dtype in (torch.float32, torch.float64) and _kind(velocity) == _kind(x)
        if not plain or isinstance(h, Tensor) or isinstance(spread, Tensor):
            return super().moved(x, velocity, h, spread, stream)
        return self._noise.moved(x, velocity, h, spread, stream, self._step)


def _kind(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.device
