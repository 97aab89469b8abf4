import math
import pickle

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.utils.data import DataLoader

from ebm_core import ConfigurationError, EBMError, ShapeError
from ebm_utils import (
    Checkerboard,
    Circles,
    EightGaussians,
    GaussianMixture,
    Grid,
    Pinwheel,
    Spirals,
    SwissRoll,
    TwoMoons,
)

SETS = (
    TwoMoons,
    EightGaussians,
    Checkerboard,
    Pinwheel,
    Spirals,
    SwissRoll,
    Circles,
    Grid,
)
DENSITIES = (
    EightGaussians(1),
    EightGaussians(1, weights=range(1, 9)),
    TwoMoons(1),
    TwoMoons(1, noise=0.3, radius=1.0),
    Checkerboard(1),
    Checkerboard(1, n_squares=3, side=1.0),
    Grid(1),
    Circles(1),
    Circles(1, radii=(0.5, 1.0, 2.0), noise=0.2),
    GaussianMixture(1, centers=[[0.0, 0.0], [1.0, 2.0]], scale=0.5, weights=[1, 3]),
)


def cells(data, n):
    """Centres (n, n, 2) and area of the cells of a grid over the bounds of a set."""
    axes, area = [], 1.0
    for low, high in data.bounds:
        width = (high - low) / n
        axes.append(low + (torch.arange(n, dtype=torch.float64) + 0.5) * width)
        area *= width
    return torch.cartesian_prod(*axes).reshape(n, n, 2), area


@pytest.mark.parametrize("kind", SETS)
class TestEverySet:
    def test_is_a_data_set_of_plane_states(self, kind):
        data = kind(103, seed=0)
        assert len(data) == 103
        assert data.data.shape == (103, 2)
        assert data.data.dtype == torch.float32
        assert data.data.isfinite().all()
        assert torch.equal(data[7], data.data[7])
        assert data[7].shape == (2,)
        assert len(list(data)) == 103

    def test_feeds_a_data_loader(self, kind):
        data = kind(10, seed=0)
        batches = list(DataLoader(data, batch_size=4))
        assert [b.shape for b in batches] == [(4, 2), (4, 2), (2, 2)]
        assert torch.equal(torch.cat(batches), data.data)

    def test_the_seed_decides(self, kind):
        assert torch.equal(kind(50, seed=3).data, kind(50, seed=3).data)
        assert not torch.equal(kind(50, seed=3).data, kind(50, seed=4).data)
        assert torch.equal(kind(50).sample(20, seed=5), kind(9, seed=8).sample(20, seed=5))

    def test_a_seed_leaves_the_global_generators_alone(self, kind):
        state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        data = kind(50, seed=3)
        assert data.data.shape == (50, 2)
        data.sample(10, seed=1)
        assert torch.equal(torch.get_rng_state(), state)
        assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002

    def test_without_a_seed_manual_seed_governs(self, kind):
        torch.manual_seed(0)
        first, second = kind(20, seed=None).data, kind(20).sample(20)
        torch.manual_seed(0)
        assert torch.equal(kind(20, seed=None).data, first)
        assert torch.equal(kind(20).sample(20), second)
        assert not torch.equal(first, second)

    def test_dtype_changes_only_the_rounding(self, kind):
        double = kind(50, dtype=torch.float64)
        assert double.data.dtype == torch.float64
        torch.testing.assert_close(double.data.float(), kind(50).data)

    def test_survives_pickling(self, kind):
        data = kind(20, seed=1)
        assert torch.equal(pickle.loads(pickle.dumps(data)).data, data.data)

    def test_draws_none(self, kind):
        assert kind(3).sample(0).shape == (0, 2)

    @pytest.mark.parametrize(
        "wrong",
        (
            {"n_samples": 0},
            {"n_samples": 2.5},
            {"n_samples": 5, "seed": -1},
            {"n_samples": 5, "dtype": torch.int64},
        ),
    )
    def test_wrong_arguments_raise(self, kind, wrong):
        with pytest.raises(ConfigurationError):
            kind(**wrong)


@pytest.mark.parametrize("data", DENSITIES, ids=repr)
class TestEveryDensity:
    def test_integrates_to_one(self, data):
        points, area = cells(data, 120)
        mass = area * data.log_density(points).exp().sum().item()
        assert mass == pytest.approx(1, abs=1e-7)

    def test_draws_follow_it(self, data):
        """Pearson's chi-square on 12 × 12 cells, their probabilities from the density."""
        n_cells, fine, n = 12, 10, 50_000
        points, area = cells(data, n_cells * fine)
        mass = area * data.log_density(points).exp()
        expected = n * mass.reshape(n_cells, fine, n_cells, fine).sum((1, 3)).flatten().numpy()
        draws = data.sample(n, seed=1).double()
        (x_low, x_high), (y_low, y_high) = data.bounds
        counts, _, _ = np.histogram2d(
            *draws.T.numpy(), bins=n_cells, range=[[x_low, x_high], [y_low, y_high]]
        )
        large = expected > 10
        rest = [n - counts.flatten()[large].sum()], [n - expected[large].sum()]
        observed, wanted = counts.flatten()[large], expected[large]
        if rest[1][0] > 5:
            observed, wanted = np.append(observed, rest[0]), np.append(wanted, rest[1])
        wanted *= observed.sum() / wanted.sum()
        assert stats.chisquare(observed, wanted).pvalue > 1e-4

    def test_takes_any_batch_axes_in_their_dtype(self, data):
        x = data.sample(12, seed=0).double()
        flat = data.log_density(x)
        assert flat.dtype == torch.float64
        torch.testing.assert_close(data.log_density(x.reshape(3, 4, 2)), flat.reshape(3, 4))
        torch.testing.assert_close(data.log_density(x[0]), flat[0])
        assert data.log_density(x[:0]).shape == (0,)
        single = data.log_density(x.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), flat, rtol=1e-4, atol=1e-4)

    def test_is_finite_at_its_own_draws(self, data):
        assert data.log_density(data.sample(20_000, seed=2)).isfinite().all()

    def test_entropy_is_the_mean_surprise(self, data):
        surprise = -data.log_density(data.sample(20_000, seed=4).double())
        error = surprise.std().item() / math.sqrt(20_000)
        assert abs(surprise.mean().item() - data.entropy()) < 4.5 * error + 1e-9

    def test_states_of_other_spaces_raise(self, data):
        with pytest.raises(ShapeError, match="batch, 2"):
            data.log_density(torch.zeros(4, 3))
        with pytest.raises(ConfigurationError, match="tensor"):
            data.log_density("here")

    def test_takes_arrays(self, data):
        x = data.sample(12, seed=0).double()
        torch.testing.assert_close(data.log_density(x.numpy()), data.log_density(x))


@pytest.mark.parametrize(
    ("data", "entropy"), ((EightGaussians(1), 1.6981), (TwoMoons(1), 1.8230)), ids=repr
)
def test_entropies_of_the_reference_targets(data, entropy):
    points, area = cells(data, 150)
    p = data.log_density(points).exp()
    by_hand = -area * torch.special.xlogy(p, p).sum().item()
    assert by_hand == pytest.approx(entropy, abs=5e-5)
    assert data.entropy() == pytest.approx(by_hand, abs=1e-7)


@pytest.mark.parametrize("data", DENSITIES[:4] + DENSITIES[6:], ids=repr)
def test_scores_equal_central_differences(data):
    x = data.sample(20, seed=0).double().requires_grad_()
    (score,) = torch.autograd.grad(data.log_density(x).sum(), x)
    step = 1e-6 * torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        difference = torch.stack(
            [data.log_density(x + h) - data.log_density(x - h) for h in step], dim=-1
        )
    torch.testing.assert_close(score, difference / 2e-6, rtol=1e-5, atol=1e-5)


def test_eight_gaussians_sit_on_the_ring_with_their_weights():
    data = EightGaussians(200_000, radius=3.0, scale=0.1, weights=[1, 2, 3, 4, 5, 6, 7, 8])
    angle = torch.atan2(data.data[:, 1], data.data[:, 0])
    which = (angle / (math.pi / 4)).round().long() % 8
    share = torch.bincount(which, minlength=8) / len(data)
    wanted = torch.arange(1, 9) / 36
    assert ((share - wanted).abs() < 4.5 * (wanted / len(data)).sqrt()).all()
    assert data.data.norm(dim=1).mean().item() == pytest.approx(3.0, abs=0.01)


def test_mixture_equals_torch_distributions():
    data = EightGaussians(1, weights=range(1, 9))
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.arange(1.0, 9.0).double()),
        torch.distributions.Independent(torch.distributions.Normal(data.centers, 0.2), 1),
    )
    x = 3 * torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(data.log_density(x), law.log_prob(x))


@pytest.mark.parametrize("x", ((0.0, 0.2), (-1.9, -0.3), (2.3, 0.5), (0.6, -1.0)))
def test_two_moons_approach_the_integral_over_the_arcs(x):
    """With ever more angles the sum becomes the integral."""

    def blurred(t):
        arcs = 1.5 * np.array([[math.cos(t), math.sin(t)], [1 - math.cos(t), 0.5 - math.sin(t)]])
        squares = ((arcs - 1.5 * np.array([0.5, 0.25]) - np.array(x)) ** 2).sum(1)
        return np.exp(-squares / (2 * 0.15**2)).sum() / (4 * math.pi**2 * 0.15**2)

    truth, _ = integrate.quad(blurred, 0, math.pi, epsabs=1e-12)
    density = TwoMoons(1, n_angles=40_000).log_density(torch.tensor(x, dtype=torch.float64)).exp()
    assert density.item() == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("x", ((0.0, 0.0), (0.3, -0.9), (2.2, 0.4), (4.0, 4.0)))
def test_circles_equal_the_integral_over_the_angle(x):
    def blurred(t):
        squares = [(R * math.cos(t) - x[0]) ** 2 + (R * math.sin(t) - x[1]) ** 2 for R in (1, 2)]
        return np.exp(-np.array(squares) / 0.08).sum() / (4 * math.pi * 2 * math.pi * 0.04)

    truth, _ = integrate.quad(blurred, -math.pi, math.pi, epsabs=0, epsrel=1e-10, limit=500)
    log_density = Circles(1, noise=0.2).log_density(torch.tensor(x, dtype=torch.float64))
    assert log_density.item() == pytest.approx(math.log(truth), abs=1e-7)


def test_densities_stay_finite_far_away():
    far = torch.tensor([[50.0, 0.0], [-30.0, 70.0]])
    for data in (EightGaussians(1), TwoMoons(1), Circles(1), Grid(1)):
        assert data.log_density(far).isfinite().all()
    assert (Checkerboard(1).log_density(far) == -math.inf).all()


def test_checkerboard_fills_every_other_square():
    board = Checkerboard(5000, n_squares=4, side=2.0)
    square = ((board.data + 4) / 2).floor()
    assert (square.sum(1) % 2 == 0).all()
    assert board.entropy() == pytest.approx(math.log(32))
    corner_and_neighbour = torch.tensor([[-3.0, -3.0], [-3.0, -1.0]])
    assert board.log_density(corner_and_neighbour).isfinite().tolist() == [True, False]


@pytest.mark.parametrize(
    ("dtype", "n_squares", "side"),
    (
        (torch.float16, 4, 2.0),
        (torch.bfloat16, 4, 0.3),
        (torch.float32, 100, 2.0),
        (torch.float32, 1000, 0.7),
        (torch.float64, 1000, 1.0),
    ),
)
def test_rounding_carries_no_draw_out_of_its_square(dtype, n_squares, side):
    board = Checkerboard(200_000, n_squares=n_squares, side=side, dtype=dtype)
    assert board.log_density(board.data).isfinite().all()
    assert board.log_density(board.data.double()).isfinite().all()


def test_a_board_finer_than_its_dtype_raises():
    with pytest.raises(ConfigurationError, match="fewer squares"):
        Checkerboard(1, n_squares=200, dtype=torch.float16)


def test_noiseless_spirals_lie_on_their_curves():
    roll = SwissRoll(500, noise=0.0, dtype=torch.float64).data
    t = 5 * roll.norm(dim=1)
    torch.testing.assert_close(torch.stack((t.cos(), t.sin()), 1) * t[:, None] / 5, roll)
    arms = Spirals(500, n_arms=3, noise=0.0, dtype=torch.float64).data
    t = 3 * arms.norm(dim=1)
    turned = (torch.atan2(arms[:, 1], arms[:, 0]) - t) / (2 * math.pi / 3)
    torch.testing.assert_close(turned, turned.round(), atol=1e-9, rtol=0)


def test_spirals_spread_evenly_over_their_arms():
    """The square of an angle, so of the distance from the origin, is uniform."""
    arms = Spirals(20_000, turns=2.0, noise=0.0, dtype=torch.float64).data
    squares = (3 * arms.norm(dim=1) / (4 * math.pi)).square()
    assert stats.kstest(squares.numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("rate", (0.25, -0.6))
def test_pinwheel_unbent_is_gaussian(rate):
    """Turned back by rate · exp(first coordinate), a vane is N((1, 0), diag(0.09, 0.0025))."""
    data = Pinwheel(
        20_000, n_vanes=1, radial_scale=0.3, tangential_scale=0.05, rate=rate, dtype=torch.float64
    ).data
    z = torch.view_as_complex(data / 2)
    # |z| and its angle give first and second coordinate once the turn is known, which depends on
    # the first: solve by fixed-point iteration, a contraction at these scales.
    along = z.abs()
    for _ in range(60):
        unbent = z * torch.polar(torch.ones_like(along), -rate * along.exp())
        along = unbent.real
    first, second = (unbent.real - 1) / 0.3, unbent.imag / 0.05
    central = (first.abs() < 2).numpy()  # where the iteration converges, away from the origin
    law = stats.truncnorm(-2, 2)
    assert stats.kstest(first.numpy()[central], law.cdf).pvalue > 1e-4
    assert stats.kstest(second.numpy()[central], "norm").pvalue > 1e-4


def test_pinwheel_vanes_are_equal_up_to_a_turn():
    data = Pinwheel(100_000, n_vanes=4)
    mean = data.data.mean(0)
    assert (mean.abs() < 4.5 * data.data.std(0) / math.sqrt(len(data))).all()


@pytest.mark.parametrize(
    "make",
    (
        lambda: EightGaussians(1, weights=[1.0] * 7),
        lambda: EightGaussians(1, weights=[-1.0] + [1.0] * 7),
        lambda: EightGaussians(1, weights=[math.nan] + [1.0] * 7),
        lambda: EightGaussians(1, scale=0.0),
        lambda: EightGaussians(1, radius=math.nan),
        lambda: TwoMoons(1, noise=-0.1),
        lambda: TwoMoons(1, n_angles=1),
        lambda: Circles(1, radii=()),
        lambda: Circles(1, radii=(1.0, -1.0)),
        lambda: Checkerboard(1, n_squares=0),
        lambda: Grid(1, n_side=0),
        lambda: Spirals(1, n_arms=0),
        lambda: SwissRoll(1, noise=-1.0),
        lambda: Pinwheel(1, rate=math.inf),
        lambda: GaussianMixture(1, centers=[[0.0]], scale=1.0),
        lambda: GaussianMixture(1, centers=torch.zeros(0, 2), scale=1.0),
        lambda: EightGaussians(1, weights="12345678"),
        lambda: EightGaussians(1, weights="equal"),
        lambda: EightGaussians(1, weights=8),
        lambda: TwoMoons(1).sample(-1),
    ),
)
def test_wrong_parameters_raise(make):
    with pytest.raises(EBMError):
        make()
