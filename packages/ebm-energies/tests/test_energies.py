"""What holds for every energy: its contract, what it knows, tracing, far-out states."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Gamma,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
)
from torch.fx.experimental.proxy_tensor import make_fx

from ebm_core import EnergyFunction
from ebm_core.testing import EnergyConformance
from ebm_energies import (
    Ackley,
    Banana,
    BayesianLogisticRegression,
    DistributionEnergy,
    DoubleWell,
    Gaussian,
    GaussianMixture,
    Harmonic,
    Himmelblau,
    IllConditionedGaussian,
    LennardJonesCluster,
    LowRankGaussian,
    MullerBrown,
    NealFunnel,
    Phi4Lattice,
    Rastrigin,
    Ring,
    Rosenbrock,
    StudentT,
    StyblinskiTang,
    UniformBox,
)

COVARIANCE = [[2.0, 0.9], [0.9, 1.0]]
FEATURES = torch.randn(30, 3, generator=torch.Generator().manual_seed(3))
LABELS = (FEATURES.sum(1) > 0).float()

INSTANCES = (
    Gaussian([0.5, -1.0], COVARIANCE),
    Gaussian(torch.tensor([0.5, -1.0, 2.0]), precision=torch.tensor([1.0, 2.0, 3.0])),
    LowRankGaussian(torch.ones(4), torch.tensor([[1.0], [2.0], [0.0], [-1.0]]), torch.ones(4)),
    IllConditionedGaussian(5, 100.0, rotation_seed=1),
    DoubleWell(barrier_height=2.0, b=1.0),
    DoubleWell(dim=3),
    Harmonic(2.0),
    Rastrigin(dim=2),
    Ackley(dim=3),
    Rosenbrock(),
    Rosenbrock(dim=4),
    Himmelblau(0.5),
    StyblinskiTang(0.25, dim=2),
    MullerBrown(0.125),
    GaussianMixture([[-2.0, 0.0], [2.0, 1.0], [0.0, 3.0]], [COVARIANCE] * 3, [0.25, 0.25, 0.5]),
    NealFunnel(5),
    Banana(dim=3),
    Ring(),
    StudentT(3.0, [0.5, -1.0], COVARIANCE),
    UniformBox(-8.0, [8.0, 9.0, 10.0]),
    UniformBox(-8.0, 8.0),
    LennardJonesCluster(4),
    Phi4Lattice((4, 3)),
    BayesianLogisticRegression(FEATURES, LABELS, prior_scale=2.0),
    DistributionEnergy(MultivariateNormal(torch.zeros(2), torch.tensor(COVARIANCE))),
    DistributionEnergy(Independent(Normal(torch.zeros(2, 3), torch.ones(2, 3)), 2)),
    DistributionEnergy(Uniform(torch.tensor(-8.0), torch.tensor(8.0))),
)


def name(energy: EnergyFunction) -> str:
    return type(energy).__name__


@pytest.mark.parametrize("energy", INSTANCES, ids=name)
class TestConformance(EnergyConformance):
    def states(self, energy: EnergyFunction) -> Tensor:
        x = super().states(energy)
        if isinstance(energy, LennardJonesCluster):  # near a lattice, so that energies are moderate
            corners = torch.tensor([[0.0, 0, 0], [1.2, 0, 0], [0, 1.2, 0], [0, 0, 1.2]])
            return corners + 0.05 * x
        return x

    def test_exact_samples_are_seeded(self, energy: EnergyFunction) -> None:
        if energy.event_shape is None:
            pytest.skip("made without a dimension")
        super().test_exact_samples_are_seeded(energy)


@dataclass
class Case:
    """A float64 energy of two elements, and a box outside which its density is nothing."""

    energy: EnergyFunction
    low: tuple[float, float]
    high: tuple[float, float]
    nodes: tuple[int, int] = (801, 801)
    tolerance: float = 1e-9

    def grid(self) -> tuple[Tensor, Tensor]:
        """States ``(n, m, 2)`` and log weights ``(n, m)`` of the trapezoidal rule."""
        axes = [
            torch.linspace(low, high, n, dtype=torch.float64)
            for low, high, n in zip(self.low, self.high, self.nodes, strict=True)
        ]
        x = torch.cartesian_prod(*axes)
        x = x + 1e-12  # off the diagonal, where particles meet
        energies = self.energy(x.reshape(-1, *self.energy.event_shape)).reshape(self.nodes)
        return x.reshape(*self.nodes, 2), -energies + sum((a[1] - a[0]).log() for a in axes)


DOUBLE = {"dtype": torch.float64}
CASES = (
    Case(Gaussian([0.5, -1.0], COVARIANCE).double(), (-14, -10), (14, 10), tolerance=1e-6),
    Case(
        LowRankGaussian(torch.zeros(2, **DOUBLE), [[1.0], [-2.0]], [0.5, 1.0]), (-12, -20), (12, 20)
    ),
    Case(
        IllConditionedGaussian(2, 16.0, rotation_seed=3).double(), (-9, -9), (9, 9), tolerance=1e-6
    ),
    Case(DoubleWell(2.0, 1.0, dim=2).double(), (-3, -3), (3, 3)),
    Case(DoubleWell(0.125, 2.5, dim=2).double(), (-6, -6), (6, 6)),
    Case(Harmonic(4.0, dim=2).double(), (-5, -5), (5, 5)),
    Case(Rastrigin(2.0, dim=2).double(), (-7, -7), (7, 7)),
    Case(StyblinskiTang(0.125, dim=2).double(), (-5.5, -5.5), (5.5, 5.5)),
    Case(Rosenbrock(1.0, 5.0, dim=2).double(), (-5, -5), (7, 53), (801, 2001)),
    Case(
        GaussianMixture(
            torch.tensor([[-2.0, 0.0], [2.0, 1.0]], **DOUBLE),
            torch.tensor([COVARIANCE, [[0.5, -0.25], [-0.25, 0.25]]], **DOUBLE),
            [0.25, 0.75],
        ),
        (-14, -9),
        (14, 9),
    ),
    Case(NealFunnel(2, 0.5).double(), (-4, -45), (4, 45), (401, 2401)),
    Case(Banana(0.5, 2.0).double(), (-15, -115), (15, 12), (801, 1601)),
    Case(Ring(1.0, 0.5).double(), (-6, -6), (6, 6), tolerance=1e-5),
    Case(Ring(2.0, 0.25).double(), (-5, -5), (5, 5), tolerance=1e-9),
    Case(
        LennardJonesCluster(2, 1, epsilon=2.0, sigma=0.75, trap_stiffness=0.5).double(),
        (-12, -12),
        (12, 12),
        (1201, 1201),
    ),
    Case(Phi4Lattice(2, mass_squared=0.5, coupling=0.0).double(), (-13, -13), (13, 13)),
    Case(
        DistributionEnergy(Independent(Normal(torch.tensor([0.5, 1.0], **DOUBLE), 1.5), 1)),
        (-13, -13),
        (13, 13),
    ),
)


@pytest.fixture(params=CASES, ids=lambda case: name(case.energy), scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def moments(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Log normaliser, mean and covariance by quadrature."""
    x, log_weights = case.grid()
    weights = log_weights.flatten().softmax(0)
    x = x.reshape(-1, 2)
    mean = weights @ x
    covariance = (x - mean).mT @ (weights[:, None] * (x - mean))
    return log_weights.flatten().logsumexp(0), mean, covariance


class TestKnowledge:
    """Normaliser, moments and draws against a two-dimensional quadrature of exp(-E)."""

    def test_log_normalizer_mean_and_covariance(
        self, case: Case, moments: tuple[Tensor, ...]
    ) -> None:
        known = (
            case.energy.log_normalizer(),
            case.energy.mean().flatten(),
            case.energy.covariance(),
        )
        for answer, truth in zip(known, moments, strict=True):
            torch.testing.assert_close(answer, truth, rtol=case.tolerance, atol=case.tolerance)

    def test_shapes_and_dtypes(self, case: Case) -> None:
        energy = case.energy
        assert energy.log_normalizer().shape == ()
        assert energy.mean().shape == energy.event_shape
        assert energy.covariance().shape == (2, 2)
        if hasattr(energy, "exact_sample"):
            assert energy.exact_sample(3).shape == (3, *energy.event_shape)
            assert energy.exact_sample(3).dtype == torch.float64

    def test_exact_draws(self, case: Case, moments: tuple[Tensor, ...]) -> None:
        if not hasattr(case.energy, "exact_sample"):
            pytest.skip("no exact draws")
        n = 40_000
        draws = case.energy.exact_sample(n, seed=7).reshape(n, 2)
        _, mean, covariance = moments
        deviations = draws - mean
        products = deviations[:, :, None] * deviations[:, None, :]
        for sample, truth in ((draws, mean), (products, covariance)):
            z = (sample.mean(0) - truth) / (sample.std(0) / math.sqrt(n))
            assert z.abs().max() < 4.5
        x, log_weights = case.grid()
        joint = log_weights.flatten().softmax(0).reshape(log_weights.shape)
        # Kolmogorov's distance of each marginal; a false alarm in a million (Massart's bound).
        bound = math.sqrt(math.log(2e6) / (2 * n))
        for k, (marginal, nodes) in enumerate(
            ((joint.sum(1), x[:, 0, 0]), (joint.sum(0), x[0, :, 1]))
        ):
            step = nodes[1] - nodes[0]
            below = torch.searchsorted(draws[:, k].sort().values, nodes + 0.5 * step) / n
            assert (below - marginal.cumsum(0)).abs().max() < bound + 2e-4


@pytest.mark.parametrize(
    "energy", [e for e in INSTANCES if hasattr(e, "minima") and name(e) != "Ackley"], ids=name
)
def test_minima_have_no_gradient_and_a_positive_hessian(energy: EnergyFunction) -> None:
    if energy.event_shape is None:
        energy = type(energy)(dim=2)
    energy = copy.deepcopy(energy).double()
    minima = energy.minima()
    assert minima.shape[1:] == energy.event_shape
    polished = minima.clone()
    for _ in range(3):  # parameters given in float32 move a minimum by a rounding
        hessians = torch.stack([_hessian(energy, x) for x in polished])
        gradient = energy.gradient(polished).flatten(1)
        polished = polished - torch.linalg.solve(hessians, gradient).reshape(polished.shape)
    torch.testing.assert_close(polished, minima, rtol=1e-6, atol=1e-6)
    assert torch.linalg.eigvalsh(hessians).min() > 0
    energies = energy(minima)
    assert (energies.diff() > -1e-9).all(), "the deepest comes first"


def _hessian(energy: EnergyFunction, x: Tensor) -> Tensor:
    hessian = torch.autograd.functional.hessian(lambda v: energy(v[None]).sum(), x)
    return hessian.reshape(x.numel(), x.numel())


@pytest.mark.parametrize("energy", INSTANCES, ids=name)
@pytest.mark.parametrize("scale", (30.0, 1e3, 1e6, 1e10, 3e19))
def test_far_out_states_give_no_nan(energy: EnergyFunction, scale: float) -> None:
    event_shape = (3,) if energy.event_shape is None else energy.event_shape
    noise = torch.randn(200, *event_shape, generator=torch.Generator().manual_seed(0))
    value, gradient = energy.energy_and_gradient(scale * noise)
    assert not value.isnan().any()
    finite = value.isfinite()
    if name(energy) == "LennardJonesCluster":  # a gradient of 1e40 does not fit float32
        finite &= value < 1e25
    assert gradient[finite].isfinite().all()


MAKERS = (
    lambda: Gaussian(torch.zeros(2), torch.tensor(COVARIANCE)),
    lambda: LowRankGaussian(torch.zeros(2), torch.ones(2, 1), torch.ones(2)),
    lambda: IllConditionedGaussian(2, rotation_seed=1),
    lambda: GaussianMixture(torch.eye(2), torch.ones(2, 2)),
    lambda: StudentT(torch.tensor(3.0), torch.zeros(2)),
    lambda: UniformBox(torch.full((2,), -8.0), 8.0),
    lambda: DoubleWell(torch.tensor(2.0), dim=2),
    lambda: Harmonic(),
    lambda: Rastrigin(),
    lambda: Ackley(),
    lambda: Rosenbrock(),
    lambda: Himmelblau(),
    lambda: StyblinskiTang(),
    lambda: MullerBrown(),
    lambda: NealFunnel(2),
    lambda: Banana(),
    lambda: Ring(),
    lambda: LennardJonesCluster(2, 1),
    lambda: Phi4Lattice(2),
    lambda: BayesianLogisticRegression(torch.eye(2), torch.tensor([0.0, 1.0])),
    lambda: DistributionEnergy(MultivariateNormal(torch.zeros(2), torch.tensor(COVARIANCE))),
    lambda: DistributionEnergy(Independent(Normal(torch.zeros(2), 1.0), 1)),
)


@pytest.mark.parametrize("make", MAKERS)
def test_made_in_inference_mode_it_is_an_energy_like_others(make: object) -> None:
    with torch.inference_mode():
        energy = make()
    assert not any(buffer.is_inference() for buffer in energy.buffers())
    event_shape = energy.event_shape or (2,)
    x = torch.tensor([[0.5, -0.25]]).reshape(1, *event_shape)
    ordinary = make()
    torch.testing.assert_close(energy.gradient(x), ordinary.gradient(x))
    for buffer in energy.buffers():
        buffer.requires_grad_()
    energy(x).sum().backward()


@pytest.mark.parametrize("energy", INSTANCES, ids=name)
def test_any_number_of_batch_axes(energy: EnergyFunction) -> None:
    event_shape = (3,) if energy.event_shape is None else energy.event_shape
    x = 1.0 + torch.rand(2, 5, *event_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(energy(x), energy(x.flatten(0, 1)).reshape(2, 5))
    assert energy.gradient(x).shape == x.shape


@pytest.mark.parametrize("energy", INSTANCES, ids=name)
def test_the_traced_gradient_is_that_of_other_states_too(energy: EnergyFunction) -> None:
    event_shape = (3,) if energy.event_shape is None else energy.event_shape
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, *event_shape, generator=generator).unbind(0)
    gradient = torch.func.grad(lambda x: energy(x).sum())
    traced = make_fx(torch.func.functionalize(gradient))(first)
    torch.testing.assert_close(traced(second), energy.gradient(second), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("energy", "unknown"),
    (
        (Ackley(), "log_normalizer exact_sample mean covariance"),
        (Himmelblau(), "log_normalizer exact_sample mean covariance"),
        (MullerBrown(), "log_normalizer exact_sample mean covariance"),
        (Rosenbrock(dim=3), "exact_sample"),
        (Rosenbrock(a=2.0, dim=3), "minima"),
        (Ring(), "minima"),
        (GaussianMixture([[0.0], [1.0]]), "minima"),
        (LennardJonesCluster(3), "log_normalizer covariance exact_sample minima"),
        (Phi4Lattice(4), "log_normalizer covariance exact_sample"),
        (BayesianLogisticRegression([[1.0]], [1]), "log_normalizer exact_sample mean covariance"),
        (DistributionEnergy(Beta(2.0, 3.0)), "minima"),
    ),
    ids=lambda value: name(value) if isinstance(value, EnergyFunction) else "",
)
def test_what_is_unknown_is_not_offered(energy: EnergyFunction, unknown: str) -> None:
    assert not [method for method in unknown.split() if hasattr(energy, method)]


def test_scalar_states() -> None:
    for distribution in (Gamma(2.0, 1.0), LogNormal(0.0, 1.0)):
        energy = DistributionEnergy(distribution)
        assert energy(torch.tensor([1.0, 2.0])).shape == (2,)
        assert energy(torch.tensor([-1.0, 2.0])).isinf().tolist() == [True, False]
