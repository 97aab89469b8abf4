"""`sample` without knobs: starts, checks, and what it says of itself."""

import math

import pytest
import torch

import ebm_samplers
from ebm_core import (
    ConfigurationError,
    EnergyFunction,
    NumericalError,
    SampleResult,
    SupportError,
    as_energy,
    spin,
)
from ebm_samplers import HamiltonianMonteCarlo, WarmUp, sample
from ebm_samplers.checks import check
from ebm_samplers.starts import find_starts


def quadratic(x):
    return x.square().sum(1) / 2


def gamma(x):
    """x ~ Gamma(3), of elements that are positive."""
    return torch.where(x > 0, x - 2 * x.clamp(min=1e-30).log(), torch.inf).sum(1)


class Network(EnergyFunction):
    """A convolution, of small images."""

    event_shape = torch.Size([1, 4, 4])

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(16, 1)
        )

    def forward(self, x):
        return self.layers(x)[:, 0] + x.flatten(1).square().sum(1) / 2


def test_the_call_form_and_what_comes_with_the_draws(tmp_path):
    result = sample(quadratic, n_chains=32, n_samples=600, dim=2, seed=0)
    assert result.trajectory.shape == (32, 600, 2)
    assert result.stats["acceptance_rate"].shape == (32, 600)
    assert result.warnings == ()
    assert "warning" not in repr(result)
    report = result.report
    assert report["method"] == "HamiltonianMonteCarlo"
    assert report["checks"]["rhat"] < 1.01
    assert report["checks"]["ess_bulk"] > 4000
    assert report["n_gradients"] > 32 * 1000
    torch.save(report, tmp_path / "report.pt")
    report = torch.load(tmp_path / "report.pt", weights_only=True)
    again = WarmUp.from_state_dict(report["warm_up"], HamiltonianMonteCarlo(quadratic))
    assert math.isclose(again.step_size, result.stats["step_size"][0].item(), rel_tol=1e-6)
    z = result.trajectory.double().mean(1).mean(0) * (4000**0.5)
    assert (z.abs() < 4.5).all()


def test_a_seed_fixes_everything():
    first, second, other = (
        sample(quadratic, n_chains=16, n_samples=10, dim=2, seed=s) for s in (3, 3, 4)
    )
    assert torch.equal(first.trajectory, second.trajectory)
    assert first.report["rounds"] == second.report["rounds"]
    assert not torch.equal(first.trajectory, other.trajectory)
    assert first.seed == 3


def test_few_chains_take_nuts_and_one_is_enough():
    result = sample(quadratic, n_chains=1, n_samples=1500, dim=2)
    assert result.report["method"] == "NUTS"
    assert result.trajectory.shape == (1, 1500, 2)
    (warning,) = result.warnings
    assert "cannot tell that there are modes elsewhere" in warning
    assert sample(quadratic, 2, 4, 2, method="hmc").report["method"] == "HamiltonianMonteCarlo"


@pytest.mark.parametrize("scale", (1e-3, 1e4))
def test_scales_far_from_one_are_found(scale):
    result = sample(lambda x: quadratic((x - 7 * scale) / scale), n_samples=300, dim=2)
    assert result.warnings == ()
    draws = result.trajectory.double() / scale
    n = result.report["checks"]["ess_bulk"]
    assert ((draws.mean((0, 1)) - 7).abs() < 4.5 / n**0.5).all()
    assert ((draws.var((0, 1)) - 1).abs() < 4.5 * (2 / n) ** 0.5 * 1.5).all()


def test_starts_outside_the_support_are_drawn_again():
    result = sample(gamma, n_samples=400, dim=2)
    assert 30 < result.report["starts"]["n_redrawn"] < 64
    assert all("divergence" in warning for warning in result.warnings)  # proposals outside it
    n = result.report["checks"]["ess_bulk"]
    assert ((result.trajectory.double().mean((0, 1)) - 3).abs() < 4.5 * (3 / n) ** 0.5).all()


def test_starts_descend_to_where_energies_are_moderate_and_stay_apart():
    energy = as_energy(lambda x: quadratic((x - 500) / 0.1))
    found = find_starts(energy, torch.empty(50, 4), key=1)
    assert energy(found.x).max() < 5
    wide = find_starts(as_energy(quadratic), torch.empty(200, 100), key=1)
    assert (wide.x.std(0) > 0.8).all()


def test_energies_without_finite_starts_are_refused():
    with pytest.raises(NumericalError, match="pass x_init"):
        sample(lambda x: x.sum(1) + math.inf, n_chains=4, dim=2)
    with pytest.raises(NumericalError, match="can be normalised"):
        sample(lambda x: 0.0 * x.sum(1), n_chains=4, dim=2)


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigurationError, match="dim"):
        sample(quadratic)
    with pytest.raises(ConfigurationError, match="method"):
        sample(quadratic, dim=2, method="gibbs")
    with pytest.raises(ConfigurationError, match="x_init"):
        sample(quadratic, dim=2, x_init=torch.zeros(3, 2))

    class Spins(EnergyFunction):
        support = spin

        def forward(self, x):
            return x.float().sum(1)

    with pytest.raises(SupportError):
        sample(Spins(), dim=2)


def test_networks_with_events_of_any_shape():
    result = sample(Network(), n_chains=16, n_samples=4, seed=1)
    assert result.trajectory.shape == (16, 4, 1, 4, 4)
    assert result.trajectory.isfinite().all()
    assert result.report["warm_up"]["x"].shape == (16, 1, 4, 4)
    start = torch.zeros(3, 1, 4, 4)
    few = sample(Network(), n_samples=3, x_init=start, method="hmc")
    assert few.trajectory.shape == (3, 3, 1, 4, 4)
    assert "too few" in few.warnings[0]


def test_separate_modes_are_told():
    result = sample(lambda x: (x.square() - 9).square().sum(1), n_samples=200, dim=1)
    assert any("separate modes" in warning for warning in result.warnings)
    assert any("R-hat" in warning for warning in result.warnings)
    assert repr(result).count("\n  warning: ") == len(result.warnings)
    assert len(result.report["rounds"]) == 1


def independent(n_chains=20, n_draws=400, d=3, **stats):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_chains, n_draws, d, generator=generator)
    ones = torch.ones(n_chains, n_draws)
    return SampleResult(
        final=x[:, -1],
        trajectory=x,
        potential=x.square().sum(2) / 2,
        stats={"acceptance_rate": 0.8 * ones, "diverging": 0 * ones > 0, **stats},
    )


def broken(how):
    result = independent()
    x, stats = result.trajectory, dict(result.stats)
    n_chains, n_draws = x.shape[:2]
    match how:
        case "never moved":
            x[3] = x[3, :1]
        case "stood still":
            x[3, 100:150] = x[3, 100]
        case "divergence":
            stats["diverging"][0, :9] = True
        case "were accepted":
            stats["acceptance_rate"] *= 0.1
        case "far apart":
            x[::4, :, 1] += 10
        case "R-hat":
            x[:, : n_draws // 2] += 0.5
        case "bulk ESS":
            x[:] = x.cumsum(1) / 20
        case "E-BFMI":
            walk = torch.randn(n_chains, n_draws, generator=torch.Generator().manual_seed(1))
            stats["energy"] = walk.cumsum(1)
        case "reached depth 10":
            stats["tree_depth"] = torch.full((n_chains, n_draws), 10)
    return SampleResult(x[:, -1], x, result.potential, stats)


def test_independent_draws_pass_all_checks():
    depth = torch.full((20, 400), 3)
    energy = torch.randn(20, 400, generator=torch.Generator().manual_seed(2))
    checks = check(independent(tree_depth=depth, energy=energy), max_tree_depth=10)
    assert checks.warnings == ()
    assert checks.figures["rhat"] < 1.01
    assert checks.figures["bfmi"] > 1


@pytest.mark.parametrize(
    "how",
    (
        "never moved",
        "stood still",
        "divergence",
        "were accepted",
        "far apart",
        "R-hat",
        "bulk ESS",
        "E-BFMI",
        "reached depth 10",
    ),
)
def test_each_check_fails_where_it_should(how):
    assert any(how in warning for warning in check(broken(how), max_tree_depth=10).warnings)


def test_of_many_elements_the_worst_is_found():
    result = independent(n_draws=100, d=300)
    result.trajectory[:5, :, 277] += 2
    assert any("element 277" in warning for warning in check(result).warnings)


def test_sample_is_a_function_and_sampler_a_module():
    assert callable(ebm_samplers.sample)
    assert ebm_samplers.sampler.MarkovSampler is ebm_samplers.MarkovSampler


def test_a_box_is_no_reason_to_worry():
    """Constant energies have no R-hat; all that is wrong is that proposals leave the box."""
    box = as_energy(lambda x: torch.where((x.abs() < 1).all(1), 0.0 * x.sum(1), math.inf))
    result = sample(box, n_samples=400, dim=2)
    assert all("divergence" in warning for warning in result.warnings)
    targets = [done["target_acceptance"] for done in result.report["rounds"]]
    assert targets[0] < targets[-1] < 0.99  # smaller steps are tried once: they gain nothing
    n = result.report["checks"]["ess_bulk"]
    assert ((result.trajectory.double().mean((0, 1))).abs() < 4.5 * (1 / 3 / n) ** 0.5).all()


def test_draws_outside_the_declared_support_are_told():
    energy = as_energy(
        lambda x: x.square().sum(1), event_shape=3, support=torch.distributions.constraints.positive
    )
    result = sample(energy, n_samples=50)
    assert "outside the support" in result.warnings[0]
    assert (find_starts(energy, torch.empty(20, 3), key=1).x > 0).all()


def test_random_energies_are_refused():
    dropout = torch.nn.Dropout(0.5)
    with pytest.raises(ConfigurationError, match="two different values"):
        sample(lambda x: dropout(x.square()).sum(1), dim=2)
    assert sample(as_energy(lambda x: dropout(x.square()).sum(1), dropout), 16, 20, 2).final.shape


def test_arguments_are_named_as_they_are():
    with pytest.raises(ConfigurationError, match="n_chains"):
        sample(quadratic, n_chains=0, dim=2)
    with pytest.raises(ConfigurationError, match="n_chains"):
        sample(quadratic, n_chains=7, x_init=torch.zeros(3, 2))
