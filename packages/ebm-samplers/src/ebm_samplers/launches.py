"""Chains that make some transitions, then some more at other settings.

What a warm-up consists of. `sample` could be called again and again instead, but most of what a
call of it takes is opening chains: `Launches` opens them once, and anew only where something has
changed that chains prepare.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ebm_samplers.chains import Chains
from ebm_samplers.recorder import Recorder
from ebm_samplers.sampler import MarkovSampler


@dataclass(frozen=True)
class Made:
    """Transitions that a launch has made.

    Attributes:
        draws: All states, ``(chain, draw, *event)``.
        acceptance_rate: Mean over chains and transitions.
        n_gradients: Of single states, of all chains together.
        n_diverging: Transitions of any chain that diverged.
    """

    draws: Tensor
    acceptance_rate: float
    n_gradients: int
    n_diverging: int

    @property
    def n_transitions(self) -> int:
        """Of all chains together."""
        return self.draws.shape[0] * self.draws.shape[1]


class Launches:
    """Launches of one sampler's chains, between which its settings may be set; to be closed.

    Args:
        sampler: Whose chains: with an accept test, without adaptation.
        x: Where they begin, ``(chain, *event)``.
        key: The 64-bit seed.
        total: How many transitions there will be, about.

    Attributes:
        x: Where chains stand.
    """

    def __init__(self, sampler: MarkovSampler, x: Tensor, key: int, total: int) -> None:
        self.sampler, self.x, self.total = sampler, x, total
        self._position = sampler._position(x=x, key=key)
        self._begun = False
        self._chains: Chains | None = None
        self._open = ExitStack()

    def make(self, n: int) -> Made:
        """Make ``n`` transitions."""
        chains = self._chains or self._opened()
        recorder = Recorder(chains, "trajectory", n, 0)
        recorder.record(n)
        columns: Mapping[str, Any] = recorder.columns()
        self.x = chains.x
        diverging = columns.get("diverging")
        n_steps = columns.get("n_steps")
        return Made(
            columns["x"],
            columns["acceptance_rate"].double().mean().item(),
            n * len(self.x) if n_steps is None else int(n_steps.sum()),
            0 if diverging is None else int(diverging.sum()),
        )

    def renew(self) -> None:
        """What chains have prepared no longer holds, such as a mass: the next launch opens anew."""
        if self._chains is not None:
            self._position = self._chains.position(self._chains.moment())
            self.close()

    def close(self) -> None:
        """Close the chains."""
        self._chains = None
        self._open.close()

    def _opened(self) -> Chains:
        first, self._begun = not self._begun, True
        running = self.sampler._running(
            self._position, 0, self.total, adapts=False, check_start=first
        )
        self._chains = self._open.enter_context(running)
        return self._chains
