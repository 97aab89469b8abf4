"""How well an energy tells strange data from its own, and whether a classifier's odds are honest.

The area under the receiver operating characteristic (AUROC) is the probability that a strange state
has the higher score, ties counted half: 0.5 is chance, 1 is perfect. It is exact here, by ranks
(Mann & Whitney 1947), and needs no threshold.

The expected calibration error (ECE) of Naeini et al. 2015 in the form of Guo et al. 2017
(arXiv:1706.04599, equation 3): predictions are put into equal bins of their confidence, the largest
probability of a row, and

    ECE = Σ_b (n_b / n) |accuracy_b - mean confidence_b|.

It is biased upwards. With p_b the confidence of a bin, that of a perfectly calibrated classifier is
about Σ_b (n_b / n) sqrt(2 p_b (1 - p_b) / (π n_b)), which falls with the number of data and rises
with that of bins. Compare classifiers on the same data and bins alone.
"""

import torch
from torch import Tensor

from ebm_core import (
    ConfigurationError,
    EnergyLike,
    NumericalError,
    ShapeError,
    as_energy,
    evaluation_mode,
    state_options,
)
from ebm_core.energy import check_energies
from ebm_core.validation import check_integer
from ebm_utils.arrays import TensorLike, to_tensor

SUM_TOLERANCE = 1e-3  # by how much probabilities may miss one


def auroc(positive: TensorLike, negative: TensorLike) -> float:
    """The probability that a positive score is above a negative one, ties counted half.

    Args:
        positive: Scores of what is to be detected, ``(n,)``; infinite ones are allowed.
        negative: Scores of the rest, ``(m,)``.

    Raises:
        ShapeError: If scores are not one axis of at least one.
        NumericalError: If a score is NaN.

    Example:
        >>> auroc([2.0, 3.0], [1.0, 2.0])
        0.875
    """
    scores = [_scores(name, v) for name, v in (("positive", positive), ("negative", negative))]
    high, low = scores[0], scores[1].to(scores[0].device).sort().values
    below = torch.searchsorted(low, high, right=False) + torch.searchsorted(low, high, right=True)
    return float(below.double().mean() / (2 * len(low)))


def ood_auroc(
    energy: EnergyLike, inside: TensorLike, outside: TensorLike, *, batch_size: int = 1024
) -> float:
    """AUROC of out-of-distribution detection with the energy as its score.

    Args:
        energy: An energy or a callable ``(batch, *event) -> (batch,)``; evaluated in eval mode,
            without gradients. A bounded classifier's confidence is no energy: see `auroc`.
        inside: Held-out data of the law that was learned, ``(n, *event)``.
        outside: Other data, ``(m, *event)``.
        batch_size: States evaluated at once.

    Returns:
        The probability that a state of ``outside`` has a higher energy than one of ``inside``.

    Raises:
        ShapeError: If states are none of the energy's.
        NumericalError: If an energy is NaN.

    Example:
        >>> inside, outside = torch.zeros(4, 2), torch.ones(3, 2)
        >>> ood_auroc(lambda x: x.square().sum(1), inside, outside)
        1.0
    """
    model = as_energy(energy)
    size = check_integer("batch_size", batch_size, at_least=1)
    device, dtype = state_options(model)

    def energies(name: str, states: TensorLike) -> Tensor:
        x = to_tensor(name, states)
        x = x.to(device, dtype if x.is_floating_point() else x.dtype)
        model.batch_size(x)
        parts = [
            check_energies(model(part), model.batch_shape(part)) for part in torch.split(x, size)
        ]
        return torch.cat(parts)

    with torch.no_grad(), evaluation_mode(model):
        return auroc(energies("outside", outside), energies("inside", inside))


def expected_calibration_error(
    probabilities: TensorLike, labels: TensorLike, n_bins: int = 15
) -> float:
    """The expected calibration error of class probabilities; see the module for its definition.

    Args:
        probabilities: ``(n, classes)``, rows that sum to one.
        labels: The true classes, ``(n,)``, integers from 0.
        n_bins: Number of equal bins (b/B, (b+1)/B] of confidence.

    Returns:
        A number from 0 to 1.

    Raises:
        ShapeError: If shapes do not fit.
        ConfigurationError: If labels are no classes, or a number is out of range.
        NumericalError: If rows are no probabilities.

    Example:
        >>> certain = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
        >>> round(expected_calibration_error(certain, torch.tensor([0, 1])), 6)
        0.4
    """
    n_bins = check_integer("n_bins", n_bins, at_least=1)
    p, y = to_tensor("probabilities", probabilities), to_tensor("labels", labels)
    eps = torch.finfo(p.dtype).eps if p.is_floating_point() else 0.0
    p, y = p.detach().double(), y.to(p.device)
    if p.ndim != 2 or p.shape[0] == 0 or y.shape != p.shape[:1]:
        raise ShapeError(
            f"probabilities have shape {tuple(p.shape)} and labels {tuple(y.shape)}",
            "(n, classes) and (n,), n at least 1",
            "pass one row and one label for each item",
        )
    if y.is_floating_point() or (y < 0).any() or (y >= p.shape[1]).any():
        raise ConfigurationError(
            f"labels are {y.dtype} from {y.min().item()} to {y.max().item()}",
            f"integers from 0 to {p.shape[1] - 1}",
            "pass the index of the true class of each item",
        )
    tolerance = max(SUM_TOLERANCE, 2 * eps)  # rounded probabilities add up so far beside one
    if not ((p >= 0).all() and ((p.sum(1) - 1).abs() <= tolerance).all()):
        raise NumericalError(
            "a row of probabilities is negative, NaN or does not sum to 1",
            "probabilities",
            "pass logits.softmax(1)",
        )
    confidence, predicted = p.max(1)
    gap = (predicted == y).double() - confidence
    bins = (confidence * n_bins).ceil().long().clamp(1, n_bins) - 1
    sums = torch.zeros(n_bins, dtype=torch.float64, device=p.device).index_add(0, bins, gap)
    return float(sums.abs().sum() / len(p))


def _scores(name: str, values: TensorLike) -> Tensor:
    scores = to_tensor(name, values)
    if scores.ndim != 1 or len(scores) == 0:
        raise ShapeError(
            f"{name} scores have shape {tuple(scores.shape)}",
            "one axis, at least one score",
            "pass one score for each state",
        )
    if scores.isnan().any():
        raise NumericalError(f"a {name} score is NaN", "numbers", "check where it comes from")
    return scores.detach().double().contiguous()  # a column would make searchsorted warn
