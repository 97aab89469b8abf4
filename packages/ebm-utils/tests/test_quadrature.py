import math

import pytest
import torch
from torch import nn

from ebm_core import ConfigurationError, EnergyFunction, NumericalError, ShapeError, as_energy
from ebm_utils import Checkerboard, EightGaussians, TwoMoons, exact_kl, log_partition
from ebm_utils.quadrature import MidpointGrid

PRECISIONS = (
    torch.tensor([[2.0]]),
    torch.tensor([[2.0, 0.7], [0.7, 1.0]]),
    torch.tensor([[2.0, 0.7, 0.1], [0.7, 1.0, -0.2], [0.1, -0.2, 1.5]]),
)


class Gaussian(EnergyFunction):
    """½ (x - m)ᵀ Λ (x - m), in double."""

    def __init__(self, precision, shift=0.0):
        super().__init__()
        self.register_buffer("precision", precision.double())
        self.shift = shift
        self.event_shape = torch.Size(precision.shape[:1])

    def forward(self, x):
        z = x - self.shift
        return 0.5 * ((z @ self.precision) * z).sum(-1)

    def log_normalizer(self):
        return -0.5 * torch.logdet(self.precision / (2 * math.pi))


def log_density_of(energy):
    return lambda x: -energy(x) - energy.log_normalizer()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_log_partition_of_gaussians(precision):
    energy = Gaussian(precision, 0.3)
    d = len(precision)
    exact = 0.5 * (d * math.log(2 * math.pi) - torch.logdet(precision.double()).item())
    assert log_partition(energy, [(-9, 9)] * d, 60) == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_kl_between_gaussians(precision):
    data, model = Gaussian(precision), Gaussian(torch.eye(len(precision)), 0.5)
    p = precision.double()
    shift = 0.5 * torch.ones(len(p), dtype=torch.float64)
    exact = 0.5 * (torch.trace(p.inverse()) + shift @ shift - len(p) + torch.logdet(p))
    kl = exact_kl(model, log_density_of(data), [(-9, 9)] * len(p), 60)
    assert kl == pytest.approx(exact.item(), abs=1e-8)


def test_kl_does_not_feel_the_energys_offset():
    data, model = Gaussian(PRECISIONS[1]), Gaussian(torch.eye(2))
    bounds = [(-9, 9)] * 2
    plain = exact_kl(model, log_density_of(data), bounds, 60)
    for offset in (1e4, -1e4):
        shifted = exact_kl(
            lambda x, c=offset: model(x) + c, log_density_of(data), bounds, 60, dtype=torch.float64
        )
        assert shifted == pytest.approx(plain, abs=1e-8)


@pytest.mark.parametrize("data", (EightGaussians(1), TwoMoons(1)), ids=repr)
def test_kl_is_zero_for_the_true_energy(data):
    bounds = [(low - 1, high + 1) for low, high in data.bounds]
    kl = exact_kl(lambda x: -data.log_density(x), data.log_density, bounds, 200)
    assert 0 <= kl < 1e-6


def test_kl_to_a_gaussian_is_the_cross_entropy_less_the_entropy():
    data = EightGaussians(1)
    second_moment = 2.0**2 + 2 * 0.2**2
    cross = math.log(2 * math.pi * 4) + second_moment / (2 * 4)
    kl = exact_kl(lambda x: x.square().sum(1) / 8, data.log_density, [(-12, 12)] * 2, 400)
    assert kl == pytest.approx(cross - data.entropy(), abs=1e-5)


def test_compact_supports():
    board = Checkerboard(1)
    bounds, n = board.bounds, 64
    uniform = exact_kl(lambda x: 0 * x.sum(1), board.log_density, bounds, n, max_outside_mass=None)
    assert uniform == pytest.approx(math.log(2), abs=1e-9)

    def energy(x):
        return -board.log_density(x)

    assert log_partition(energy, bounds, n, max_outside_mass=None) == pytest.approx(0, abs=1e-6)
    wider = [(-6, 6)] * 2
    assert exact_kl(energy, board.log_density, wider, 96) == pytest.approx(0, abs=1e-6)


def test_kl_is_infinite_where_the_model_has_no_mass():
    disc = as_energy(lambda x: torch.where(x.norm(dim=1) < 1, 0.0, math.inf))
    data = Gaussian(torch.eye(2))
    assert exact_kl(disc, log_density_of(data), [(-6, 6)] * 2, 60) == math.inf


@pytest.mark.parametrize("chunk_size", (1, 7, 10_000))
def test_chunks_do_not_matter(chunk_size):
    energy = Gaussian(PRECISIONS[1])
    bounds = [(-9, 9), (-7, 8)]
    whole = log_partition(energy, bounds, (30, 40))
    assert log_partition(energy, bounds, (30, 40), chunk_size=chunk_size) == pytest.approx(whole)
    chunks = MidpointGrid(bounds, (30, 40)).chunks(7)
    points = torch.cat([points for points, _ in chunks])
    assert points.shape == (1200, 2)
    assert len(points.unique(dim=0)) == 1200


def test_memory_is_bounded_by_the_chunk():
    sizes = []

    def energy(x):
        sizes.append(len(x))
        return x.square().sum(1) / 2

    log_partition(energy, [(-8, 8)] * 3, 40, chunk_size=1000)
    assert max(sizes) == 1000
    assert sum(sizes) == 2 * 40**3  # the grid and the shifted grid
    sizes.clear()
    log_partition(energy, [(-8, 8)] * 3, 40, chunk_size=1000, max_grid_error=None)
    assert sum(sizes) == 40**3


class Noisy(EnergyFunction):
    """Dropout at training time only; fails if gradients are recorded."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout()

    def forward(self, x):
        assert not self.training
        energies = self.dropout(self.weight * x.square().sum(1) / 2)
        assert not energies.requires_grad
        return energies


def test_evaluates_without_gradients_in_eval_mode_and_restores_the_mode():
    energy = Noisy()
    energy.dropout.eval()
    assert log_partition(energy, [(-8, 8)] * 2, 40) == pytest.approx(math.log(2 * math.pi), 1e-5)
    with pytest.raises(ShapeError):
        exact_kl(energy, lambda x: x, [(-8, 8)] * 2, 40)
    assert energy.training
    assert not energy.dropout.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_energies_see_their_own_dtype(dtype):
    net = nn.Linear(2, 1, dtype=dtype)

    def energy(x):
        assert x.dtype == dtype
        return x.square().sum(1) / 2 + 0 * net(x).squeeze(1)

    value = log_partition(as_energy(energy, net), [(-8, 8)] * 2, 60)
    assert value == pytest.approx(math.log(2 * math.pi), abs=1e-5)


def test_the_tail_estimate_exceeds_the_tail():
    """On a Gaussian: refused when 1e-4 of the mass is outside, taken when 1e-9 is."""
    energy = Gaussian(torch.eye(1))
    with pytest.raises(NumericalError, match="widen bounds"):
        log_partition(energy, [(-3.9, 3.9)], 100)
    assert log_partition(energy, [(-3.9, 3.9)], 100, max_outside_mass=0.01) < 0.5 * math.log(
        2 * math.pi
    )
    log_partition(energy, [(-6.2, 6.2)], 100)


@pytest.mark.parametrize(
    ("energy", "error"),
    (
        (lambda x: torch.full((len(x),), math.nan), NumericalError),
        (lambda x: torch.full((len(x),), -math.inf), NumericalError),
        (lambda x: torch.full((len(x),), math.inf), NumericalError),
        (lambda x: x, ShapeError),
        (lambda x: 0 * x.sum(1), NumericalError),
        (as_energy(lambda x: x.sum(1), event_shape=3), ShapeError),
    ),
)
def test_wrong_energies_raise(energy, error):
    with pytest.raises(error):
        log_partition(energy, [(-5, 5)] * 2, 20)


@pytest.mark.parametrize(
    "arguments",
    (
        {"bounds": []},
        {"bounds": [(-1, 1)] * 4},
        {"bounds": [(1, -1)]},
        {"bounds": [(0, math.inf)]},
        {"bounds": (-5, 5)},
        {"n_points": 1},
        {"n_points": 20.0},
        {"n_points": (20, 20)},
        {"chunk_size": 0},
        {"max_outside_mass": 0.0},
        {"max_grid_error": 0.0},
        {"max_grid_error": "strict"},
    ),
)
def test_wrong_arguments_raise(arguments):
    with pytest.raises(ConfigurationError):
        log_partition(
            lambda x: x.square().sum(1), **({"bounds": [(-5, 5)], "n_points": 20} | arguments)
        )


@pytest.mark.parametrize(
    "log_density",
    (
        lambda x: -x.square().sum(1) / 2,  # not normalised
        lambda x: torch.full((len(x),), math.nan),
        lambda x: torch.full((len(x),), math.inf),
    ),
)
def test_wrong_data_densities_raise(log_density):
    with pytest.raises(NumericalError):
        exact_kl(Gaussian(torch.eye(2)), log_density, [(-8, 8)] * 2, 40)


def test_a_grid_too_coarse_for_the_data_raises():
    data = EightGaussians(1, scale=0.02)
    with pytest.raises(NumericalError, match="n_points"):
        exact_kl(Gaussian(torch.eye(2)), data.log_density, [(-8, 8)] * 2, 40)


def spiked(x):
    """A standard normal's energy with a narrow spike of probability at (0.013, 0.013)."""
    spike = torch.exp(-(x - 0.013).square().sum(1) / 2e-4)
    return x.square().sum(1) / 2 - 30 * spike


def test_a_grid_too_coarse_for_the_model_raises():
    box, normal = [(-8, 8)] * 2, log_density_of(Gaussian(torch.eye(2)))
    for call in (
        lambda **options: exact_kl(spiked, normal, box, 100, **options),
        lambda **options: log_partition(spiked, box, 100, **options),
    ):
        with pytest.raises(NumericalError, match="raise n_points"):
            call()
        call(max_grid_error=None)  # the number of the one grid, which misses the spike
    assert exact_kl(spiked, normal, box, 100, max_grid_error=None) < 1e-12


@pytest.mark.parametrize("ratio", (0.4, 0.5, 0.6, 0.7))
@pytest.mark.parametrize("centre", (0.0, 0.1, 0.4))
def test_the_difference_of_the_grids_is_twice_the_error(ratio, centre):
    """Of a Gaussian of standard deviation `ratio` in spacings, anywhere in its cell."""
    energy = Gaussian(torch.tensor([[ratio**-2]]), centre)
    exact, arguments = energy.log_normalizer().item(), ([(-10, 10)], 20)
    error = abs(log_partition(energy, *arguments, max_grid_error=None) - exact)
    log_partition(energy, *arguments, max_grid_error=2.2 * error + 1e-9)
    if error > 1e-4:
        with pytest.raises(NumericalError, match="shifted"):
            log_partition(energy, *arguments, max_grid_error=1.8 * error)


def test_densities_constant_on_cells_pass_whatever_the_face():
    """A staircase, a checkerboard, on grids as coarse as their steps."""
    heights = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0])
    steps = log_partition(
        lambda x: -heights[x[:, 0].long()].log(), [(0, 5)], 5, max_outside_mass=None
    )
    assert steps == pytest.approx(math.log(14))
    board = Checkerboard(1)
    for dtype in (torch.float32, torch.float64):
        value = log_partition(
            lambda x: -board.log_density(x), board.bounds, 4, max_outside_mass=None, dtype=dtype
        )
        assert value == pytest.approx(0, abs=1e-6)


def test_smooth_densities_cut_off_by_the_box_pass():
    value = log_partition(lambda x: x.sum(1), [(0, 1)], 50, max_outside_mass=None)
    assert value == pytest.approx(math.log(1 - math.exp(-1)), abs=1e-4)


@pytest.mark.parametrize(("width", "error"), ((0.25, 0.3), (0.4, 0.01)))
def test_what_both_grids_miss_is_not_seen(width, error):
    """The documented limit: a mode midway between two neighbours, so between points of both."""
    mode = Gaussian(torch.eye(2) / width**2, torch.tensor([0.5, 0.0]))
    value = log_partition(mode, [(-10.5, 9.5)] * 2, 20, max_grid_error=0.02)
    assert 0.2 * error < abs(value - mode.log_normalizer().item()) < 2 * error
