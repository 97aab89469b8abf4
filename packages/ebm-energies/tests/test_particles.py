import math

import pytest
import torch
from scipy import integrate

from ebm_core import ConfigurationError
from ebm_energies import LennardJonesCluster


def test_is_the_sum_over_pairs() -> None:
    energy = LennardJonesCluster(5, 3, epsilon=2.0, sigma=0.75, trap_stiffness=0.5).double()
    x = 2 * torch.rand(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for state, value in zip(x, energy(x), strict=True):
        expected = 0.25 * state.square().sum().item()
        for i in range(5):
            for j in range(i):
                power = (0.75 / (state[i] - state[j]).norm().item()) ** 6
                expected += 8 * (power**2 - power)
        assert value.item() == pytest.approx(expected)
    x[:, :, 0] += torch.arange(5)
    assert torch.autograd.gradcheck(energy, x.requires_grad_())


def test_a_pair_is_deepest_at_its_known_distance() -> None:
    energy = LennardJonesCluster(2, trap_stiffness=1e-12)
    x = torch.zeros(1, 2, 3)
    x[0, 1, 0] = 2 ** (1 / 6)
    assert energy(x).item() == pytest.approx(-1.0)
    assert energy.gradient(x).abs().max() < 1e-4


def test_thirteen_particles_reach_the_icosahedron() -> None:
    """The global minimum of LJ13, -44.326801 (Hoare & Pal, Advances in Physics 20, 1971)."""
    golden = (1 + math.sqrt(5)) / 2
    corners = [(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    ring = [p[k:] + p[:k] for p in corners for k in range(3)]
    points = torch.tensor([(0, 0, 0), *ring], dtype=torch.float64)
    energy = LennardJonesCluster(13, trap_stiffness=1e-12).double()
    scales = torch.linspace(0.5, 0.65, 3001, dtype=torch.float64)
    assert energy(scales[:, None, None] * points).min().item() == pytest.approx(
        -44.326801, abs=1e-4
    )


def test_large_radii_do_not_overflow_in_float32() -> None:
    energy = LennardJonesCluster(2, 3, sigma=1700.0, trap_stiffness=1e-6)
    x = torch.tensor([[[0.0, 0.0, 0.0], [2040.0, 0.0, 0.0]]])
    found, slope = energy.energy_and_gradient(x)
    assert torch.isfinite(slope).all()
    assert found.item() == pytest.approx(energy.double()(x.double()).item(), rel=1e-5)


def test_coinciding_particles_have_infinite_energy_and_spoil_no_other_state() -> None:
    energy = LennardJonesCluster(3)
    x = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    x[0, 1] = x[0, 0]
    value, gradient = energy.energy_and_gradient(x)
    assert value.isinf().tolist() == [True, False]
    assert gradient[1].isfinite().all()


def test_two_particles_in_space_against_adaptive_quadrature() -> None:
    energy = LennardJonesCluster(2, 3, epsilon=1.5, sigma=1.0, trap_stiffness=0.25).double()

    def density(r: float) -> float:
        return 4 * math.pi * r * r * math.exp(-6 * (r**-12 - r**-6) - r * r / 16)

    z, _ = integrate.quad(density, 0.3, 40, points=[1.0, 1.5, 3.0], epsrel=1e-11, limit=200)
    square, _ = integrate.quad(
        lambda r: r * r * density(r), 0.3, 40, points=[1.0, 1.5, 3.0], limit=200
    )
    log_z = 1.5 * math.log(math.pi / 0.25) + math.log(z)
    assert energy.log_normalizer().item() == pytest.approx(log_z, rel=1e-8)
    relative = square / z / 12
    covariance = energy.covariance()
    assert covariance[0, 0].item() == pytest.approx(2.0 + relative, rel=1e-7)
    assert covariance[0, 3].item() == pytest.approx(2.0 - relative, rel=1e-7)
    assert covariance[0, 1] == 0


@pytest.mark.parametrize(
    "make",
    (
        lambda: LennardJonesCluster(1),
        lambda: LennardJonesCluster(3, 0),
        lambda: LennardJonesCluster(3, epsilon=-1.0),
        lambda: LennardJonesCluster(3, sigma=0.0),
        lambda: LennardJonesCluster(3, trap_stiffness=0.0),
    ),
)
def test_wrong_parameters(make: object) -> None:
    with pytest.raises(ConfigurationError):
        make()
