"""A step size that follows the acceptance rate, pooled over all chains.

After every transition log h moves by ``gain · (acceptance - target)``, where acceptance is the
chains' mean acceptance probability (0 for a proposal that is not finite). The gain is the same in
both directions, so that in equilibrium the mean acceptance is the target, however much that of few
chains fluctuates. It decays to 0.1, not to 0 as in dual averaging, because the target distribution
of a training run never stops moving.

Far from the target acceptance is 1 or 0, and log h moves by gain · (1 - target) or gain · target.
Therefore the gain begins at 0.06 over the smaller of ``target`` and ``1 - target``, and decays over
100 transitions. A burn-in counts them from its own beginning; ``sample_chain`` by the sampler's
random stream, so that many short calls are one long run. Measured with MALA and HMC on a Gaussian
in 5 dimensions, targets 0.5 to 0.9: 300 chains bring a step that is ten times too small to within a
quarter of its place in 42 to 61 transitions, one that is ten times too large in 5 to 43; later a
single chain's step fluctuates by 4 to 10 % (standard deviation of log h), with a mean acceptance
within 0.005 of the target. A step that has become far too small later moves at the lasting gain: a
factor of ten takes 23 / (1 - target) transitions. Setting ``step_size`` is then quicker.

Chains that keep adapting are not exactly invariant, so ``sample`` freezes the step after
``burn_in``. One step serves all chains, also where each has its own ``beta``: then it settles where
acceptance is right on average.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from ebm_core.validation import check_number

GAIN = 0.1
EARLY_SPEED = 0.06
EARLY = 100


@dataclass(frozen=True)
class StepSizeAdaptation:
    """The rule; the step itself belongs to the run.

    Attributes:
        target: The acceptance rate to reach, in (0, 1).
        lasting_gain: Change of log h for an acceptance of 1 above the target, in the long run.
    """

    target: float
    lasting_gain: float = GAIN

    def __post_init__(self) -> None:
        check_number("target_acceptance", self.target, above=0, below=1)
        check_number("lasting_gain", self.lasting_gain, above=0)

    def gain(self, age: int) -> float:
        """The gain after ``age`` transitions.

        Example:
            >>> [round(StepSizeAdaptation(0.8).gain(age), 3) for age in (0, 100, 1000)]
            [0.3, 0.174, 0.1]
        """
        early = EARLY_SPEED / min(self.target, 1 - self.target)
        return self.lasting_gain + (early - self.lasting_gain) * math.exp(-age / EARLY)

    def moved(self, step_size: Tensor, acceptance: Tensor, age: int) -> Tensor:
        """h after a transition.

        Args:
            step_size: h before it, a scalar.
            acceptance: Acceptance probabilities, ``(chain,)``.
            age: Number of transitions before it.
        """
        return step_size * (self.gain(age) * (acceptance.mean() - self.target)).exp()
