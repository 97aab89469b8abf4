"""Both engines make the same chains of the same seed: all energies, samplers and their options.

Each energy is compiled for one sampler, at 1, 5 or 70 chains (which get tiles of different sizes),
and runs with all options of it, which are arguments of one kernel; and for NUTS, with trees of depth
4 at most. Trajectories agree to rounding up to the first decision that lies within rounding of its
uniform (or of a U-turn): there the engines may decide differently, which few chains may.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.distributions import Gamma, Independent

import ebm_energies
from ebm_core import EnergyFunction, MixtureEnergy
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
from ebm_models import MLPEnergy
from ebm_samplers import (
    MALA,
    NUTS,
    HamiltonianMonteCarlo,
    LangevinDynamics,
    UnderdampedLangevin,
)

N_STEPS = 8
COVARIANCE = [[2.0, 0.9], [0.9, 1.0]]


def normals(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def logistic_regression() -> EnergyFunction:
    features = normals(1000, 25)
    return BayesianLogisticRegression(features, (features.sum(1) > 0).float())


def perceptron() -> EnergyFunction:
    torch.manual_seed(5)
    return MLPEnergy(2, hidden=(64, 64), base_scale=1.5, input_gain=4.0)


def cluster(n: int) -> torch.Tensor:
    corners = torch.tensor([[0.0, 0, 0], [1.1, 0, 0], [0, 1.1, 0], [0, 0, 1.1]])
    return corners + 0.03 * normals(n, 4, 3)


@dataclass(frozen=True, eq=False)
class Case:
    """An energy, and what it is run with.

    Attributes:
        make: Makes the energy.
        step: ε of HMC; Langevin steps are ε²/2.
        sampler: "langevin", "mala" or "hmc".
        n_chains: How many.
        dtype: Of states and energy.
        start: Start states of so many chains; exact draws by default, or else standard normals.
    """

    make: Callable[[], EnergyFunction]
    step: float
    sampler: str
    n_chains: int
    dtype: torch.dtype = torch.float32
    start: Callable[[int], torch.Tensor] | None = None

    def states(self, energy: EnergyFunction) -> torch.Tensor:
        if self.start is not None:
            x = self.start(self.n_chains)
        elif hasattr(energy, "exact_sample"):
            x = energy.exact_sample(self.n_chains, seed=1)
        else:
            x = normals(self.n_chains, *energy.event_shape, seed=1)
        return x.to(self.dtype)


CASES = {
    "Ackley": Case(lambda: Ackley(dim=3), 0.4, "mala", 70),
    "Banana": Case(lambda: Banana(dim=3), 0.3, "hmc", 5),
    "BayesianLogisticRegression": Case(logistic_regression, 0.1, "hmc", 70),
    "DistributionEnergy": Case(
        lambda: DistributionEnergy(Independent(Gamma(torch.tensor([2.0, 3.0]), torch.ones(2)), 1)),
        *(0.9, "mala", 70, torch.float64),
    ),
    "DoubleWell": Case(lambda: DoubleWell(dim=2), 0.1, "hmc", 70),
    "Gaussian": Case(lambda: Gaussian([0.5, -1.0], COVARIANCE), 0.8, "mala", 5),
    "GaussianMixture": Case(
        lambda: GaussianMixture([[-2.0, 0.0], [2.0, 1.0], [0.0, 3.0]], [COVARIANCE] * 3),
        *(0.5, "langevin", 70),
    ),
    "Harmonic": Case(lambda: Harmonic(2.0, dim=3), 0.9, "hmc", 1),
    "Himmelblau": Case(lambda: Himmelblau(0.5), 0.1, "mala", 70),
    "IllConditionedGaussian": Case(
        lambda: IllConditionedGaussian(5, 100.0, rotation_seed=1), 0.1, "langevin", 5
    ),
    "LennardJonesCluster": Case(
        lambda: LennardJonesCluster(4), 0.06, "mala", 5, torch.float64, cluster
    ),
    "LowRankGaussian": Case(
        lambda: LowRankGaussian(torch.ones(4), normals(4, 2), torch.ones(4)), 0.7, "mala", 1
    ),
    "MullerBrown": Case(lambda: MullerBrown(0.125), 0.05, "hmc", 70, torch.float64),
    "NealFunnel": Case(lambda: NealFunnel(5), 0.2, "langevin", 70, torch.float64),
    "Phi4Lattice": Case(lambda: Phi4Lattice((4, 3)), 0.4, "langevin", 70),
    "Rastrigin": Case(lambda: Rastrigin(dim=2), 0.06, "hmc", 5),
    "Ring": Case(lambda: Ring(), 0.3, "langevin", 1),
    "Rosenbrock": Case(lambda: Rosenbrock(dim=4), 0.04, "hmc", 5, torch.float64),
    "StudentT": Case(lambda: StudentT(3.0, [0.5, -1.0], COVARIANCE), 0.9, "mala", 70),
    "StyblinskiTang": Case(lambda: StyblinskiTang(0.25, dim=2), 0.3, "langevin", 5),
    "UniformBox": Case(lambda: UniformBox(-1.0, [1.0, 1.5, 2.0]), 0.5, "mala", 70),
    "sum": Case(
        lambda: DoubleWell(dim=3) + UniformBox(-1.5, 1.5, dim=3),
        *(0.15, "hmc", 70, torch.float64, lambda n: normals(n, 3).clamp(-1.4, 1.4)),
    ),
    "scaled": Case(lambda: 0.5 * Ring(), 0.3, "mala", 5, torch.float64),
    "tempered": Case(lambda: Ackley(dim=2).tempered(2.0), 0.15, "hmc", 5, torch.float64),
    "mixture": Case(
        lambda: MixtureEnergy([Gaussian([2.0, 0.0], COVARIANCE), Harmonic(4.0)], [0.0, -1.0]),
        *(0.6, "mala", 70),
    ),
    "MLPEnergy": Case(perceptron, 0.5, "langevin", 5, torch.float64),
}


def samplers(case: Case, energy: EnergyFunction, x: torch.Tensor, engine: str) -> list:
    """The sampler with different options."""
    step, h = case.step, case.step**2 / 2
    if case.sampler == "langevin":
        return [
            LangevinDynamics(energy, h, engine=engine),
            LangevinDynamics(
                energy, lambda t: h / (1 + 0.1 * t), lambda t: 1 - 0.05 * t, engine=engine
            ),
            UnderdampedLangevin(energy, step / 2, 1.0, engine=engine),
            UnderdampedLangevin(
                energy, lambda t: step / (2 + 0.1 * t), lambda t: 0.1 * t, engine=engine
            ),
        ]
    if case.sampler == "mala":
        return [
            MALA(energy, h, engine=engine),
            MALA(energy, lambda t: h / (1 + 0.1 * t), engine=engine),
        ]
    diagonal = torch.linspace(0.8, 1.6, x[0].numel())
    options = (
        {"mass": None},
        {"step_size": lambda t: step / (1 + 0.1 * t), "jitter": 0.0},
        {"mass": diagonal.view(x.shape[1:])},
        {"mass": torch.diag(diagonal) + 0.3 / len(diagonal)},
    )
    standard = {"step_size": step, "n_leapfrog_steps": 4, "engine": engine}
    return [HamiltonianMonteCarlo(energy, **{**standard, **option}) for option in options]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path_factory.mktemp("cache") / "kernels"))
        yield


def test_no_energy_is_forgotten():
    kinds = {name: getattr(ebm_energies, name) for name in ebm_energies.__all__}
    assert {name for name, kind in kinds.items() if not inspect.isabstract(kind)} <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_engines_make_the_same_chains(name):
    case = CASES[name]
    energy = case.make().to(case.dtype)
    x = case.states(energy)
    per_chain = torch.linspace(0.5, 1.5, len(x), dtype=case.dtype)
    pairs = zip(*(samplers(case, energy, x, e) for e in ("torch", "fused")), strict=True)
    for beta, pair in zip((None, per_chain, None, per_chain), pairs, strict=False):
        a, b = (
            sampler.sample(
                x, n_steps=N_STEPS, keep="trajectory", seed=2**40 + 5, first_chain=7, beta=beta
            )
            for sampler in pair
        )
        assert_same(a, b, agreed(x, a, b))


@pytest.mark.parametrize("name", CASES)
def test_engines_grow_the_same_trees(name):
    case = CASES[name]
    energy = case.make().to(case.dtype)
    x = case.states(energy)[:20]
    mass = torch.linspace(0.8, 1.6, x[0].numel()).view(x.shape[1:])
    runs = (
        ({"step_size": case.step}, {"thin": 1}),
        (
            {"step_size": lambda t: case.step / (1 + 0.1 * t), "mass": mass},
            {"thin": 2, "burn_in": 1, "beta": torch.linspace(0.5, 1.5, len(x), dtype=case.dtype)},
        ),
    )
    for settings, arguments in runs:
        a, b = (
            NUTS(energy, **settings, max_tree_depth=4, engine=engine).sample(
                x, n_steps=4, keep="trajectory", seed=2**40 + 5, first_chain=7, **arguments
            )
            for engine in ("torch", "fused")
        )
        far = ((a.trajectory - b.trajectory).abs() > 0.01 * (1 + a.trajectory.abs())).flatten(2)
        decided = far.any(2) | (a.stats["n_steps"] != b.stats["n_steps"])
        together = (~decided).cumprod(1).bool()
        assert (~together[:, -1]).sum() <= (0.1 * len(x) if x.dtype == torch.float32 else 0)
        assert_same(a, b, together, slack=20)  # after up to 60 leapfrogs
        assert a.stats["tree_depth"].double().mean() > 0.5


def agreed(x, a, b):
    """Draws ``(chain, draw)`` before the first decision in which the engines differ."""
    moved_a, moved_b = (
        (torch.cat([x[:, None], result.trajectory], 1).diff(dim=1) != 0).flatten(2).any(2)
        for result in (a, b)
    )
    assert moved_a.double().mean() > 0.2
    together = (moved_a == moved_b).cumprod(1).bool()
    assert (~together[:, -1]).sum() <= (0.03 * len(x) if x.dtype == torch.float32 else 0)
    return together


def assert_same(a, b, together, slack=1):
    """Draws and statistics, relative to 1 + their size; acceptance feels the rounding of E."""
    tolerance = slack * (2e-5 if a.final.dtype == torch.float32 else 1e-12)
    largest = a.potential.nan_to_num(posinf=0.0).abs().amax(1, keepdim=True)
    feels = (1 + largest).expand_as(a.potential)[together]
    columns = {"trajectory": (a.trajectory, b.trajectory), "potential": (a.potential, b.potential)}
    columns |= {key: (value, b.stats[key]) for key, value in a.stats.items()}
    assert a.stats.keys() == b.stats.keys()
    for key, (u, v) in columns.items():
        assert (u.shape, u.dtype) == (v.shape, v.dtype), key
        if key == "step_size":
            assert torch.equal(u, v)
            continue
        u, v = u[together], v[together]
        if key in ("diverging", "n_steps", "tree_depth"):
            assert torch.equal(u, v), key
        else:
            scale = feels if key == "acceptance_rate" else 1 + u.abs()
            close = ((u - v).abs() <= tolerance * scale) | (u == v)
            assert close.all(), (key, u[~close], v[~close])
