"""Posteriors of regression models, as energies of their coefficients."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ebm_core import ConfigurationError, EnergyFunction, NumericalError, ShapeError, state_options
from ebm_core.validation import check_tensor
from ebm_energies._base import common_dtype, double_tensor, hold, hold_number, refuse_parameters


class BayesianLogisticRegression(EnergyFunction):
    """E(w) = -Σ_n log P(y_n | x_n, w) + |w|²/2s² with P(y = 1 | x, w) = 1/(1 + e^{-x·w}).

    The posterior of the coefficients w. There is no intercept; append a column of ones to the
    features for one. The energy is convex; its minimum, the maximum a posteriori, is found by
    Newton's method. Normaliser and moments have no closed form.

    Attributes:
        signed_features: Row n is x_n for y_n = 1, and -x_n for y_n = 0, ``(n, d)``.

    Args:
        features: x, ``(n, d)``.
        labels: y, ``(n,)``, each 0 or 1.
        prior_scale: s > 0, the standard deviation of the Gaussian prior of each coefficient.

    Raises:
        ConfigurationError: If a label is neither 0 nor 1, a number is not finite, or
            ``features`` or ``labels`` is a parameter.
        ShapeError: If the shapes do not fit.

    Example:
        >>> energy = BayesianLogisticRegression([[1.0], [-1.0]], [1, 0])
        >>> energy(torch.zeros(1, 1))
        tensor([1.3863])
    """

    signed_features: Tensor
    prior_scale: Tensor
    event_ndim = 1

    def __init__(self, features: Any, labels: Any, prior_scale: Any = 1.0) -> None:
        super().__init__()
        refuse_parameters(
            "to learn them, write the energy as a module and pass it to ebm_core.as_energy",
            features=features,
            labels=labels,
        )
        matrix = double_tensor("features", features, (None, None))
        if 0 in matrix.shape:
            raise ShapeError(
                f"features has shape {tuple(matrix.shape)}", "a row and a column", "pass data"
            )
        targets = check_tensor("labels", labels, (len(matrix),)).to(matrix)
        if not ((targets == 0) | (targets == 1)).all():
            strange = targets[(targets != 0) & (targets != 1)][0].item()
            raise ConfigurationError(
                f"labels hold {strange:g}", "0 and 1 only", "map the two classes to 0 and 1"
            )
        signed = (2.0 * targets - 1.0)[:, None] * matrix
        dtype = common_dtype((features,))
        hold(self, "signed_features", signed, dtype)
        hold_number(self, "prior_scale", prior_scale, dtype=dtype, above=0)
        self.event_shape = torch.Size([matrix.shape[1]])

    def forward(self, x: Tensor) -> Tensor:
        """The negative log posterior density, up to the evidence: ``(..., d) -> (...)``."""
        margins = x @ self.signed_features.mT
        prior = 0.5 * (x / self.prior_scale).square().sum(-1)
        return prior - F.logsigmoid(margins).sum(-1)

    @torch.no_grad()
    def minima(self) -> Tensor:
        """The maximum a posteriori, ``(1, d)``.

        Raises:
            NumericalError: If Newton's method does not come to rest.
        """
        rows, precision = self.signed_features.double(), self.prior_scale.double() ** -2
        identity = torch.eye(rows.shape[1]).to(rows)
        w = rows.new_zeros(rows.shape[1])

        def energy(w: Tensor) -> Tensor:
            return 0.5 * precision * w.square().sum() - F.logsigmoid(rows @ w).sum()

        for _ in range(100):
            miss = torch.sigmoid(-(rows @ w))
            gradient = precision * w - miss @ rows
            hessian = (rows.mT * (miss * (1.0 - miss))) @ rows + precision * identity
            step = torch.linalg.solve(hessian, gradient)
            decrement = gradient @ step
            if decrement < 1e-20 * (1.0 + energy(w).abs()):
                return w[None].to(state_options(self)[1])
            length = 1.0
            enough = energy(w) - 1e-4 * length * decrement
            while length > 1e-6 and energy(w - length * step) > enough:
                length *= 0.5
            w = w - length * step
        raise NumericalError(
            "Newton's method did not find the minimum in 100 steps",
            "a posterior with a resolvable maximum",
            "standardise the features, or lower prior_scale",
        )
