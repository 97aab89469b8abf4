import math

import pytest
import torch

from ebm_core import ConfigurationError, EnergyFunction
from ebm_energies import Ackley, Himmelblau, MullerBrown, Rastrigin, StyblinskiTang

X = torch.tensor([[0.7, -1.3], [2.1, 0.4]], dtype=torch.float64)


def rastrigin(u: float, v: float) -> float:
    return 20 + u * u + v * v - 10 * (math.cos(2 * math.pi * u) + math.cos(2 * math.pi * v))


def ackley(u: float, v: float) -> float:
    waves = 0.5 * (math.cos(2 * math.pi * u) + math.cos(2 * math.pi * v))
    return -20 * math.exp(-0.2 * math.sqrt(0.5 * (u * u + v * v))) - math.exp(waves) + 20 + math.e


def himmelblau(u: float, v: float) -> float:
    return (u * u + v - 11) ** 2 + (u + v * v - 7) ** 2


def styblinski_tang(u: float, v: float) -> float:
    return 0.5 * sum(w**4 - 16 * w**2 + 5 * w for w in (u, v))


def muller_brown(u: float, v: float) -> float:
    return (
        -200 * math.exp(-((u - 1) ** 2) - 10 * v**2)
        - 100 * math.exp(-(u**2) - 10 * (v - 0.5) ** 2)
        - 170 * math.exp(-6.5 * (u + 0.5) ** 2 + 11 * (u + 0.5) * (v - 1.5) - 6.5 * (v - 1.5) ** 2)
        + 15 * math.exp(0.7 * (u + 1) ** 2 + 0.6 * (u + 1) * (v - 1) + 0.7 * (v - 1) ** 2)
    )


@pytest.mark.parametrize(
    ("energy", "formula"),
    (
        (Rastrigin(), rastrigin),
        (Ackley(b=torch.tensor(0.2, dtype=torch.float64)), ackley),
        (Himmelblau(), himmelblau),
        (StyblinskiTang(), styblinski_tang),
        (MullerBrown(), muller_brown),
    ),
    ids=lambda value: type(value).__name__ if isinstance(value, EnergyFunction) else "",
)
def test_formulas(energy: EnergyFunction, formula: object) -> None:
    expected = [formula(*row) for row in X.tolist()]
    assert energy(X).tolist() == pytest.approx(expected, rel=1e-7)
    assert torch.autograd.gradcheck(energy, X.clone().requires_grad_())


@pytest.mark.parametrize(
    ("energy", "depths"),
    (
        (Rastrigin(dim=2), [0.0]),
        (Ackley(dim=2), [0.0]),
        (Himmelblau(), [0.0] * 4),
        (StyblinskiTang(dim=1), [-39.16616570377142, -25.0294]),
        (MullerBrown(), [-146.69952, -108.16672, -80.76782]),
    ),
    ids=lambda value: type(value).__name__ if isinstance(value, EnergyFunction) else "",
)
def test_depths_known_from_the_literature(energy: EnergyFunction, depths: list[float]) -> None:
    energy = energy.double()
    assert energy(energy.minima()).tolist() == pytest.approx(depths, abs=1e-4)


def test_ackley_has_a_gradient_at_its_kink() -> None:
    x = torch.zeros(1, 3)
    assert torch.equal(Ackley().gradient(x), x)


def test_muller_brown_rises_in_every_direction() -> None:
    angles = torch.linspace(0, 2 * math.pi, 33)
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    axes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for radius in (1e3, 3e19, 1e38):
        assert (MullerBrown()(radius * torch.cat([directions, axes])) == math.inf).all()


def test_scales() -> None:
    for energy in (Himmelblau, StyblinskiTang, MullerBrown):
        torch.testing.assert_close(energy(0.25)(X), 0.25 * energy()(X))


@pytest.mark.parametrize(
    "make",
    (
        lambda: Rastrigin(-1.0),
        lambda: Ackley(b=0.0),
        lambda: Ackley(c=math.inf),
        lambda: Himmelblau(0.0),
        lambda: StyblinskiTang(-1.0),
        lambda: MullerBrown(math.nan),
        lambda: Rastrigin().minima(),
        lambda: Ackley().minima(),
    ),
)
def test_wrong_parameters(make: object) -> None:
    with pytest.raises(ConfigurationError):
        make()
