import math

import pytest
import torch

from ebm_core import ConfigurationError
from ebm_energies import Phi4Lattice


def test_is_the_sum_over_sites_and_bonds() -> None:
    energy = Phi4Lattice((3, 4), mass_squared=-0.5, coupling=0.25).double()
    field = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for i in range(3):
        for j in range(4):
            phi = field[i, j].item()
            expected += 0.5 * (field[(i + 1) % 3, j].item() - phi) ** 2
            expected += 0.5 * (field[i, (j + 1) % 4].item() - phi) ** 2
            expected += -0.25 * phi**2 + 0.0625 * phi**4
    assert energy(field[None]).item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(energy, field[None].clone().requires_grad_())


@pytest.mark.parametrize("shape", (5, (2, 3), (3, 2, 2)))
def test_the_free_field_is_the_gaussian_of_its_hessian(shape: int | tuple[int, ...]) -> None:
    energy = Phi4Lattice(shape, mass_squared=0.75, coupling=0.0).double()
    zero = energy.mean()[None]
    sites = zero.numel()
    hessian = torch.autograd.functional.hessian(lambda x: energy(x).sum(), zero).reshape(
        sites, sites
    )
    torch.testing.assert_close(energy.covariance(), torch.linalg.inv(hessian))
    log_normalizer = 0.5 * sites * math.log(2 * math.pi) - 0.5 * torch.logdet(hessian)
    torch.testing.assert_close(energy.log_normalizer(), log_normalizer)
    n = 50_000
    draws = energy.exact_sample(n, seed=0).flatten(1)
    products = draws[:, :, None] * draws[:, None, :]
    z = (products.mean(0) - energy.covariance()) / (products.std(0) / math.sqrt(n))
    assert z.abs().max() < 5


@pytest.mark.parametrize(("mass_squared", "coupling"), ((1.0, 0.0), (-1.0, 1.0)))
@pytest.mark.parametrize("scale", (1e10, 1e19, 3e19))
def test_large_fields_have_large_energies(
    mass_squared: float, coupling: float, scale: float
) -> None:
    energy = Phi4Lattice((2,), mass_squared, coupling)
    field = scale * torch.tensor([[1.0, 1.0], [1.0, -0.5]])
    expected = energy.double()(field.double()).float()
    torch.testing.assert_close(energy.float()(field), expected)
    finite = expected.isfinite()
    assert energy.gradient(field)[finite].isfinite().all()


def test_symmetric_and_broken_minima() -> None:
    broken = Phi4Lattice((4, 4), mass_squared=-1.0, coupling=0.25).double()
    assert broken(broken.minima()).tolist() == pytest.approx([-16.0, -16.0])
    assert broken.minima().unique().tolist() == [-2.0, 2.0]
    assert Phi4Lattice(3, mass_squared=1.0).minima().tolist() == [[0.0] * 3]


@pytest.mark.parametrize(
    "make",
    (
        lambda: Phi4Lattice(()),
        lambda: Phi4Lattice((4, 0)),
        lambda: Phi4Lattice((4, 4.0)),
        lambda: Phi4Lattice(4, coupling=-1.0),
        lambda: Phi4Lattice(4, mass_squared=math.nan),
        lambda: Phi4Lattice(4, mass_squared=0.0, coupling=0.0),
    ),
)
def test_wrong_parameters(make: object) -> None:
    with pytest.raises(ConfigurationError):
        make()
