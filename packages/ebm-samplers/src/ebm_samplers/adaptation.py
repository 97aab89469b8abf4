"""A step size that follows the acceptance rate, pooled over all chains.

After every transition log h moves by ``gain · (acceptance - target)``, where acceptance is the
chains' mean acceptance probability (0 for a proposal that is not finite). The gain is constant,
unlike that of dual averaging or any scheme that converges, because the target distribution of a
training run never stops moving. A gain of 0.1 forgets within some 20 transitions, brings a step
that is ten times too large or too small to its place within 60 to 90, and lets a single chain's
step fluctuate by about a tenth. Chains that keep adapting are not exactly invariant, so ``sample``
freezes the step after ``burn_in``.

One step serves all chains, also where each has its own ``beta``: then it settles where acceptance
is right on average.
"""

from dataclasses import dataclass

from torch import Tensor

from ebm_core.validation import check_number

GAIN = 0.1


@dataclass(frozen=True)
class StepSizeAdaptation:
    """The rule; the step itself belongs to the run.

    Attributes:
        target: The acceptance rate to reach, in (0, 1).
        gain: Change of log h for an acceptance of 1 above the target.
    """

    target: float
    gain: float = GAIN

    def __post_init__(self) -> None:
        check_number("target_acceptance", self.target, above=0, below=1)
        check_number("gain", self.gain, above=0)

    def moved(self, step_size: Tensor, acceptance: Tensor) -> Tensor:
        """h after a transition.

        Args:
            step_size: h before it, a scalar.
            acceptance: Acceptance probabilities, ``(chain,)``.
        """
        return step_size * (self.gain * (acceptance.mean() - self.target)).exp()
