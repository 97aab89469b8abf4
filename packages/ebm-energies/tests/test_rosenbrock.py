import math

import pytest
import torch
from scipy.optimize import rosen, rosen_der
from torch import nn

from ebm_core import ConfigurationError, NumericalError
from ebm_energies import Rosenbrock


def test_equals_scipy() -> None:
    x = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    energy = Rosenbrock()
    assert energy(x).tolist() == pytest.approx([rosen(row) for row in x.numpy()])
    gradient = energy.gradient(x)
    torch.testing.assert_close(gradient, torch.as_tensor(rosen_der(x.numpy().T).T))


def test_two_dimensions_in_closed_form() -> None:
    energy = Rosenbrock(2.0, 100.0, dim=2).double()
    assert energy.log_normalizer().item() == pytest.approx(math.log(math.pi / 10))
    assert energy.mean().tolist() == pytest.approx([2.0, 4.5])
    # x_2 = x_1² + noise with x_1 ~ N(2, 1/2): Var x_1² = 4 · 4/2 + 2/4, Cov = 2 · 2/2
    expected = torch.tensor([[0.5, 2.0], [2.0, 8.505]], dtype=torch.float64)
    torch.testing.assert_close(energy.covariance(), expected)


def test_three_dimensions_against_quadrature_of_the_energy() -> None:
    energy = Rosenbrock(0.5, 1.0, dim=3).double()
    axes = [
        torch.linspace(low, high, n, dtype=torch.float64)
        for low, high, n in ((-4.5, 5.5, 61), (-5, 6.5, 81), (-6, 48, 201))
    ]
    x = torch.cartesian_prod(*axes)
    log_weights = -energy(x) + sum((a[1] - a[0]).log() for a in axes)
    weights = log_weights.softmax(0)
    mean = weights @ x
    torch.testing.assert_close(energy.log_normalizer(), log_weights.logsumexp(0), rtol=1e-8, atol=0)
    torch.testing.assert_close(energy.mean(), mean, rtol=1e-7, atol=1e-8)
    covariance = (weights[:, None] * (x - mean)).mT @ (x - mean)
    torch.testing.assert_close(energy.covariance(), covariance, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("a", "b"), ((12.0, 1.0), (-8.0, 1.0), (4.0, 30.0), (-3.0, 5.0)))
def test_the_mass_is_found_far_from_a(a: float, b: float) -> None:
    """Two elements on a fine grid about their minimum, the third in closed form."""
    first = second = torch.linspace(-25, 25, 3001, dtype=torch.float64)
    x, y = first[:, None], second
    log_weights = -b * (y - x.square()).square() - (a - x).square() - (a - y).square()
    log_weights = log_weights + 2 * math.log(50 / 3000)
    weights = log_weights.flatten().softmax(0).reshape(3001, 3001)
    log_normalizer = log_weights.flatten().logsumexp(0) + 0.5 * math.log(math.pi / b)
    over_x, over_y = weights.sum(1), weights.sum(0)
    mean = torch.stack([over_x @ first, over_y @ second, over_y @ second.square()])
    last = over_y @ second**4 + 0.5 / b
    energy = Rosenbrock(a, b, dim=3).double()
    torch.testing.assert_close(energy.log_normalizer(), log_normalizer, rtol=1e-10, atol=0)
    torch.testing.assert_close(energy.mean(), mean, rtol=1e-9, atol=1e-9)
    covariance = energy.covariance()
    torch.testing.assert_close(covariance[2, 2], last - mean[2] ** 2, rtol=1e-8, atol=0)
    mixed = first @ weights @ second - mean[0] * mean[1]
    torch.testing.assert_close(covariance[0, 1], mixed, rtol=1e-8, atol=1e-9)


def test_mass_at_the_edge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebm_energies.rosenbrock.FAR", 5.0)
    with pytest.raises(NumericalError, match="of its mass"):
        Rosenbrock(1.0, 1.0, dim=3).log_normalizer()


@pytest.mark.parametrize("dim", (2, 4))
@pytest.mark.parametrize("known", ("log_normalizer", "mean", "covariance"))
def test_what_is_known_has_its_graph(dim: int, known: str) -> None:
    values = [torch.tensor(v, dtype=torch.float64) for v in (0.7, 2.0)]
    a, b = (nn.Parameter(value) for value in values)

    def answer(a: object, b: object) -> torch.Tensor:
        return getattr(Rosenbrock(a, b, dim=dim), known)().sum()

    gradients = torch.autograd.grad(answer(a, b), (a, b), allow_unused=True)
    for k, gradient in enumerate(gradients):
        up, down = ([v + s * 1e-5 * (i == k) for i, v in enumerate(values)] for s in (1, -1))
        slope = (answer(*up) - answer(*down)) / 2e-5
        torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-7)


def test_five_dimensions_against_importance_sampling() -> None:
    """Draws of the Markov chain without the look-ahead, weighted by it, for narrow walls."""
    n, d, b = 200_000, 5, 20.0
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(n, d, dtype=torch.float64)
    width = 1 / math.sqrt(2 * (b + 1))
    x[:, 0] = 1 + math.sqrt(0.5) * torch.randn(n, generator=generator, dtype=torch.float64)
    log_weight = torch.full((n,), 0.5 * math.log(math.pi), dtype=torch.float64)
    for k in range(1, d):
        noise = torch.randn(n, generator=generator, dtype=torch.float64)
        square = x[:, k - 1].square()
        if k == d - 1:
            x[:, k] = square + noise / math.sqrt(2 * b)
            log_weight = log_weight + 0.5 * math.log(math.pi / b)
        else:
            x[:, k] = (b * square + 1) / (b + 1) + width * noise
            gap = b / (b + 1) * (square - 1).square()
            log_weight = log_weight + 0.5 * math.log(math.pi / (b + 1)) - gap
    energy = Rosenbrock(1.0, b, dim=d).double()
    weight = (log_weight - energy.log_normalizer()).exp()
    mean, covariance = energy.mean(), energy.covariance()
    deviation = x - mean
    for value, truth in (
        (torch.ones(n, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)),
        (x, mean),
        ((deviation[:, :, None] * deviation[:, None, :]).flatten(1), covariance.flatten()),
    ):
        weighted = weight[:, None] * value - truth * weight[:, None] * (value.shape[1] > 1)
        truth = truth * (value.shape[1] == 1)
        z = (weighted.mean(0) - truth) / (weighted.std(0) / math.sqrt(n))
        assert z.abs().max() < 4.5


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: Rosenbrock(b=-1.0), "b is -1"),
        (lambda: Rosenbrock(dim=1), "dim is 1"),
        (lambda: Rosenbrock().mean(), "give dim="),
        (lambda: Rosenbrock().exact_sample(2), "give dim="),
        (lambda: Rosenbrock(b=1e5, dim=3).log_normalizer(), "lower b"),
    ),
)
def test_wrong_parameters(make: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_steep_walls_are_no_trouble_in_two_dimensions() -> None:
    energy = Rosenbrock(b=1e8, dim=2).double()
    assert energy.log_normalizer().item() == pytest.approx(math.log(math.pi / 1e4))
