"""`RunawayGuard`: stops a contrastive run that blows up, and says which knob to turn.

How such runs end. Chains without an accept step overshoot where the energy has become steep; their
states have high energies, and the objective lowers its value without bound by raising those
further. Chains with one are stuck there instead, and acceptance falls to 0. Or energies drift away
together, as nothing in the objective holds their level, until float32 has no digits left for
differences. In each case the loss stays finite for long after the model is lost.

What is watched are the metrics that the objective has anyhow; all of them are read from their
device in one transfer a call.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ebm_core import NumericalError
from ebm_core.validation import check_integer, check_number, check_positive

GROWTH = 4.0


class RunawayGuard(nn.Module):
    """Raises when a contrastive run leaves the range where runs recover.

    Call it with the metrics of each call of the objective. It raises

    - when a metric is not finite;
    - when the gap between the mean energies of negatives and data is above a limit *and growing*;
    - likewise for the energies themselves;
    - when the sampler's acceptance rate has been low for some calls in a row.

    Growing means: four times as large as at its least since it was last below the limit. A run that
    begins far from its data, with a large gap that falls, passes; so does a large constant in the
    energy. Limits are in nats for each element of an event, of which at least two are counted,
    since energies of independent elements add up.

    Args:
        gap_limit: Limit of |mean E(negatives) - mean E(data)| for each element; None: not watched.
        energy_limit: Limit of the larger of |mean E(data)| and |mean E(negatives)| for each
            element; None: not watched.
        min_acceptance: Acceptance rates below this are low; None: not watched. Proposals on
            discrete states may be rejected more often in an honest run.
        patience: Calls in a row with low acceptance that are one too many, at least 1.

    Raises:
        ConfigurationError: If a number is out of range.

    Example:
        >>> guard = RunawayGuard()
        >>> for gap in (3.0, 30.0, 60.0):
        ...     guard({"energy_gap": torch.tensor(gap)}, n_elements=2)
        >>> guard({"energy_gap": torch.tensor(500.0)}, n_elements=2)
        Traceback (most recent call last):
        ...
        ebm_core.errors.NumericalError: the energy gap of negatives and data, 500, is above 20 ...
    """

    def __init__(
        self,
        *,
        gap_limit: float | None = 10.0,
        energy_limit: float | None = 1000.0,
        min_acceptance: float | None = 0.1,
        patience: int = 50,
    ) -> None:
        super().__init__()
        self.gap_limit = None if gap_limit is None else check_positive("gap_limit", gap_limit)
        self.energy_limit = (
            None if energy_limit is None else check_positive("energy_limit", energy_limit)
        )
        self.min_acceptance = (
            None
            if min_acceptance is None
            else check_number("min_acceptance", min_acceptance, at_least=0.0, at_most=1.0)
        )
        self.patience = check_integer("patience", patience, at_least=1)
        self._least: dict[str, float] = {}
        self._n_low = 0

    def forward(self, metrics: Mapping[str, Tensor], n_elements: int = 1) -> None:
        """Look at the metrics of one call.

        Args:
            metrics: ``data_energy``, ``negative_energy``, ``energy_gap``, ``acceptance_rate``,
                scalars; what is absent is not watched.
            n_elements: Number of elements of one event.

        Raises:
            NumericalError: If the run blows up.
        """
        watched = ("data_energy", "negative_energy", "energy_gap", "acceptance_rate")
        names = [name for name in watched if name in metrics]
        if not names:
            return
        found = dict(zip(names, _numbers([metrics[name] for name in names]), strict=True))
        self._check_finite(found)
        size = max(n_elements, 2)
        if self.gap_limit is not None and "energy_gap" in found:
            name = "energy gap of negatives and data"
            remedy = _UPHILL if found["energy_gap"] > 0 else _DOWNHILL
            self._check_growth(name, abs(found["energy_gap"]), self.gap_limit * size, remedy)
        levels = [abs(found[name]) for name in names if name in _LEVELS]
        if self.energy_limit is not None and levels:
            self._check_growth("mean energy", max(levels), self.energy_limit * size, _DRIFT)
        if self.min_acceptance is not None and "acceptance_rate" in found:
            self._check_acceptance(found["acceptance_rate"], self.min_acceptance)

    def get_extra_state(self) -> dict[str, Any]:
        """What has been seen so far, as part of ``state_dict``."""
        return {"least": dict(self._least), "n_low": self._n_low}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore what had been seen."""
        self._least, self._n_low = dict(state.get("least", {})), state.get("n_low", 0)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        state_dict.setdefault(f"{prefix}_extra_state", {})  # saved without a guard: nothing seen
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """The limits, for ``repr``."""
        names = ("gap_limit", "energy_limit", "min_acceptance", "patience")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _check_finite(self, found: Mapping[str, float]) -> None:
        for name, value in found.items():
            if not math.isfinite(value):
                raise NumericalError(
                    f"{name.replace('_', ' ')} of the contrastive run is {value}",
                    "a finite number",
                    "lower the learning rate or the sampler's step size, use a sampler with an "
                    "accept step (MALA), and check that the data are finite",
                )

    def _check_growth(self, name: str, value: float, limit: float, remedy: str) -> None:
        if value <= limit:
            self._least.pop(name, None)
            return
        least = self._least[name] = min(value, self._least.get(name, value))
        if value >= GROWTH * least:
            raise NumericalError(
                f"the {name}, {value:.4g}, is above {limit:.4g} and has grown from {least:.4g}: "
                "the run blows up",
                f"one that stays below {limit:.4g} nats, or falls",
                f"{remedy}; where such energies are right, pass guard=RunawayGuard(...) with "
                "higher limits, or guard=False",
            )

    def _check_acceptance(self, rate: float, least: float) -> None:
        self._n_low = self._n_low + 1 if rate < least else 0
        if self._n_low >= self.patience:
            raise NumericalError(
                f"the sampler's acceptance rate, {rate:.3g}, has been below {least:g} in "
                f"{self._n_low} calls in a row: the chains are stuck",
                "chains that move",
                "lower the sampler's step size or let it adapt (target_acceptance=0.6), or lower "
                "the learning rate; where most proposals are rejected for good reasons, as single "
                "flips at sharp modes of discrete states are, pass "
                "guard=RunawayGuard(min_acceptance=None)",
            )


def _numbers(scalars: list[Tensor]) -> list[float]:
    """Scalars as numbers, by one transfer from their device."""
    if all(scalar.device.type == "cpu" for scalar in scalars):
        return [scalar.item() for scalar in scalars]
    numbers: list[float] = torch.stack([scalar.to(scalars[0]) for scalar in scalars]).tolist()
    return numbers


_LEVELS = ("data_energy", "negative_energy")
_UPHILL = (
    "go back to an earlier checkpoint and lower the sampler's step size, use a sampler with an "
    "accept step (MALA) if this one has none, begin no chains anew (reinit_probability=0), or "
    "lower the learning rate"
)
_DOWNHILL = (
    "check that the sampler has the energy that is trained and that the data are scaled to a few "
    "units, lower the learning rate, or add regularizers=[EnergyMagnitude(0.01)]"
)
_DRIFT = (
    "lower the learning rate, add regularizers=[EnergyMagnitude(0.01)], or subtract a constant "
    "from the energy"
)
