import pytest
import torch

from ebm_core import ConfigurationError, ShapeError
from ebm_samplers.mass import mass_for

MATRIX = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.7]], dtype=torch.float64)


@pytest.mark.parametrize("event", ((3,), (3, 1)))
@pytest.mark.parametrize("kind", ("unit", "diagonal", "dense"))
def test_momenta_have_that_covariance_and_velocities_are_its_inverse(event, kind):
    x = torch.empty(5, *event, dtype=torch.float64)
    matrix, argument = {
        "unit": (torch.eye(3).double(), None),
        "diagonal": (torch.diag(MATRIX.diag()), MATRIX.diag().view(event)),
        "dense": (MATRIX, MATRIX),
    }[kind]
    mass = mass_for(argument, x)
    basis = torch.eye(3, dtype=torch.float64).view(3, *event)
    root = mass.momentum(basis).flatten(1)  # rows are M^½ e_i
    torch.testing.assert_close(root.T @ root, matrix)
    torch.testing.assert_close(mass.velocity(basis).flatten(1), matrix.inverse())


@pytest.mark.parametrize(
    ("mass", "error"),
    (
        (torch.ones(2), ShapeError),
        (torch.ones(1, 3), ShapeError),
        (torch.tensor([1.0, 0.0, 1.0]), ConfigurationError),
        (torch.tensor([1.0, float("nan"), 1.0]), ConfigurationError),
        (-torch.eye(3), ConfigurationError),
        (torch.eye(3) + torch.tensor([0.0, 0.5, 0.0]), ConfigurationError),
    ),
)
def test_wrong_masses_are_refused(mass, error):
    with pytest.raises(error):
        mass_for(mass, torch.empty(5, 3))
