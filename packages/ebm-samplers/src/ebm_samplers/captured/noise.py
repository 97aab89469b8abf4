"""Random numbers and settings as graphs see them: by where they lie, not by their values."""

from typing import Any

import torch
from torch import Tensor

from ebm_samplers.noise import Noise
from ebm_samplers.states import Context


class PlacedNoise(Noise):
    """The random numbers of chains whose place in the streams lies in memory.

    Args:
        place: Key, number of the first chain and number of the next step, int64 of length 3 on the
            device of the states; the key's bits.
        like: A batch of states ``(chain, *event)``.
    """

    def __init__(self, place: Tensor, like: Tensor) -> None:
        self.place = place
        super().__init__(0, 0, like)

    def normals(self, stream: int, step: int) -> Tensor:
        """Standard normals of a step, ``(chain, *event)``."""
        return self._placed(False, stream, step, self.size).view(self.like.shape)

    def uniforms(self, stream: int, step: int) -> Tensor:
        """Uniforms in (0, 1) of a step, ``(chain,)``."""
        return self._placed(True, stream, step, 1).view(-1)

    def moved(
        self, x: Tensor, velocity: Tensor, h: float, spread: float, stream: int, step: int
    ) -> Tensor:
        """x - h·velocity + spread·ξ with the normals ξ of a step, from one kernel."""
        from ebm_samplers.fused.cuda.noise import move

        return move(x, velocity.contiguous(), h, spread, stream, self.place, step - self.first_step)

    def _placed(self, uniform: bool, stream: int, step: int, length: int) -> Tensor:
        from ebm_samplers.fused.cuda.noise import fill_placed

        made = uniform, stream, step
        if made not in self._made:
            double = self.like.dtype == torch.float64
            dtype = torch.float64 if double else torch.float32
            out = torch.empty((len(self.like), length), dtype=dtype, device=self.like.device)
            ahead = step - self.first_step
            fill_placed(out, uniform, stream, self.place, ahead)
            self._made[made] = out.to(self.like.dtype)
        return self._made[made]

    def open(self, first_step: int, n_steps: int) -> None:
        """Make ready for steps."""
        super().open(first_step, n_steps)
        self._made: dict[Any, Tensor] = {}


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
        """x - h·velocity + spread·ξ."""
        if isinstance(h, Tensor) or isinstance(spread, Tensor) or x.dtype not in REALS:
            return super().moved(x, velocity, h, spread, stream)
        return self._noise.moved(x, velocity, h, spread, stream, self._step)


REALS = (torch.float32, torch.float64)
