import copy
import math
import pickle

import pytest
import torch
from scipy import stats
from torch import distributions as D
from torch import nn

from ebm_core import ConfigurationError, SupportError
from ebm_energies import DistributionEnergy, UniformBox


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).squeeze()


UNIVARIATE = (
    (D.Normal(tensor(1.0), tensor(2.0)), stats.norm(1, 2)),
    (D.Gamma(tensor(2.5), tensor(1.5)), stats.gamma(2.5, scale=1 / 1.5)),
    (D.Beta(tensor(2.0), tensor(3.0)), stats.beta(2, 3)),
    (D.LogNormal(tensor(0.3), tensor(0.6)), stats.lognorm(0.6, scale=math.exp(0.3))),
    (D.Uniform(tensor(-1.0), tensor(3.0)), stats.uniform(-1, 4)),
    (D.Exponential(tensor(2.0)), stats.expon(scale=0.5)),
    (D.Weibull(tensor(1.5), tensor(2.0)), stats.weibull_min(2, scale=1.5)),
    (D.Gumbel(tensor(0.5), tensor(2.0)), stats.gumbel_r(0.5, 2)),
    (D.HalfNormal(tensor(1.5)), stats.halfnorm(scale=1.5)),
    (D.StudentT(tensor(4.0), tensor(1.0), tensor(2.0)), stats.t(4, 1, 2)),
)


@pytest.mark.parametrize(("distribution", "reference"), UNIVARIATE, ids=lambda d: type(d).__name__)
def test_density_moments_and_draws_are_scipys(
    distribution: D.Distribution, reference: object
) -> None:
    energy = DistributionEnergy(distribution)
    x = torch.linspace(-2.003, 4.001, 41, dtype=torch.float64)
    expected = -torch.as_tensor(reference.logpdf(x))
    torch.testing.assert_close(energy(x), expected)
    assert energy.log_normalizer() == 0
    assert energy.mean().item() == pytest.approx(reference.mean())
    assert energy.covariance().tolist() == [[pytest.approx(reference.var())]]
    draws = energy.exact_sample(20_000, seed=0)
    assert stats.kstest(draws.numpy(), reference.cdf).pvalue > 1e-6
    inside = energy(x).isfinite()
    assert energy.gradient(x)[inside].isfinite().all()


def transformed() -> D.Distribution:
    base = D.Independent(D.Normal(torch.zeros(2), torch.ones(2)), 1)
    chain = [
        D.AffineTransform(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 2.0]), event_dim=1),
        D.ComposeTransform([D.ExpTransform(), D.AffineTransform(torch.ones(2), 3.0)]).inv.inv,
    ]
    return D.TransformedDistribution(base, chain)


def inverse_transformed() -> D.Distribution:
    base = D.Independent(D.LogNormal(torch.zeros(2), torch.ones(2)), 1)
    return D.TransformedDistribution(base, [D.ExpTransform().inv])


VECTORS = (
    D.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    D.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3)),
    D.Independent(D.Laplace(torch.zeros(2, 3), torch.ones(2, 3)), 2),
    D.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    D.MixtureSameFamily(
        D.Categorical(torch.tensor([0.25, 0.75])),
        D.Independent(D.Normal(torch.tensor([[0.0, 1.0], [3.0, 4.0]]), 1.0), 1),
    ),
    transformed(),
    inverse_transformed(),
)


@pytest.mark.parametrize("distribution", VECTORS, ids=lambda d: type(d).__name__)
def test_the_mirror_is_the_distribution(distribution: D.Distribution) -> None:
    energy = DistributionEnergy(distribution)
    x = distribution.sample((20,))
    expected = -distribution.log_prob(x)
    torch.testing.assert_close(energy(x), expected)
    double = copy.deepcopy(energy).double()
    torch.testing.assert_close(double(x.double()).float(), expected, rtol=1e-4, atol=1e-4)
    assert double.exact_sample(3, seed=0).dtype == torch.float64
    again = pickle.loads(pickle.dumps(energy))
    torch.testing.assert_close(again(x), expected)


@pytest.mark.parametrize("distribution", VECTORS, ids=lambda d: type(d).__name__)
def test_the_tensors_are_those_of_the_state_dict(distribution: D.Distribution) -> None:
    energy = DistributionEnergy(distribution)
    x = distribution.sample((5,))
    before = energy(x)
    state = {key: value.clone() for key, value in energy.state_dict().items()}
    assert state
    for buffer in energy.buffers():
        buffer.mul_(1.125)
    assert not torch.allclose(energy(x), before)
    energy.load_state_dict(state)
    assert torch.equal(energy(x), before)


def test_the_distribution_given_is_neither_shared_nor_changed() -> None:
    location = nn.Parameter(torch.tensor([1.0, 2.0]))
    distribution = D.Independent(D.Normal(location, 1.0, validate_args=True), 1)
    energy = DistributionEnergy(distribution)
    energy.double()
    assert not list(energy.parameters())
    assert distribution.base_dist.loc.dtype == torch.float32
    with pytest.raises(ValueError, match="within the support"):
        distribution.log_prob(torch.full((1, 2), math.nan))


def test_outside_the_support_the_energy_is_infinite() -> None:
    dirichlet = DistributionEnergy(D.Dirichlet(torch.ones(3)))
    assert dirichlet(torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.5, 0.5]])).isinf().tolist() == [
        False,
        True,
    ]
    mixture = D.MixtureSameFamily(
        D.Categorical(torch.ones(2)), D.Gamma(torch.ones(2), torch.ones(2))
    )
    assert DistributionEnergy(mixture)(torch.tensor([-1.0, 1.0])).isinf().tolist() == [True, False]


@pytest.mark.parametrize(
    "distribution",
    (
        D.Normal(0.0, 1.0),
        D.Independent(D.Normal(torch.zeros(2), 1.0), 1),
        D.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        transformed(),
    ),
    ids=lambda d: type(d).__name__,
)
def test_where_all_is_allowed_the_support_is_real(distribution: D.Distribution) -> None:
    assert DistributionEnergy(distribution).support is D.constraints.real


def test_a_box_truncates_it() -> None:
    normal = DistributionEnergy(D.Independent(D.Normal(torch.zeros(2), 1.0), 1))
    box = UniformBox(-1.0, 1.0, dim=2)
    x = torch.tensor([[0.5, 0.5], [0.0, 2.0]])
    for truncated in (box + normal, normal + box):
        assert truncated(x).tolist() == [normal(x)[0].item(), math.inf]
        assert truncated.support.upper_bound == 1.0


def test_a_flat_density_has_a_zero_gradient() -> None:
    energy = DistributionEnergy(D.Independent(D.Uniform(torch.zeros(2), torch.ones(2)), 1))
    assert torch.equal(energy.gradient(torch.full((3, 2), 0.5)), torch.zeros(3, 2))


def test_moments_are_offered_where_known() -> None:
    assert not hasattr(DistributionEnergy(transformed()), "mean")
    assert not hasattr(DistributionEnergy(transformed()), "covariance")
    assert not hasattr(DistributionEnergy(D.Dirichlet(torch.ones(3))), "covariance")
    cauchy = DistributionEnergy(D.Cauchy(0.0, 1.0))
    with pytest.raises(ConfigurationError, match="mean of Cauchy"):
        cauchy.mean()
    with pytest.raises(ConfigurationError, match="covariance of Cauchy"):
        cauchy.covariance()


def test_a_seed_counts_in_full_and_touches_no_other_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    energy = DistributionEnergy(D.Normal(0.0, 1.0))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("all are seeded"))
    state = torch.get_rng_state()
    draws = energy.exact_sample(4, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(energy.exact_sample(4, seed=5), draws)
    assert not torch.equal(energy.exact_sample(4, seed=5 + 2**32), draws)


def test_laws_of_which_torch_says_what_is_not_so() -> None:
    """Circular moments on the real numbers, and a parameter by the name of a moment."""
    circle = D.VonMises(torch.zeros(2), torch.ones(2))
    for law in (D.VonMises(0.0, 1.0), D.Independent(circle, 1)):
        with pytest.raises(SupportError, match="circle"):
            DistributionEnergy(law)
    assert not hasattr(DistributionEnergy(D.Wishart(torch.tensor(5.0), torch.eye(2))), "covariance")


def test_what_is_refused() -> None:
    with pytest.raises(SupportError, match="Poisson"):
        DistributionEnergy(D.Poisson(1.0))
    with pytest.raises(SupportError, match="Independent"):
        DistributionEnergy(D.Independent(D.Bernoulli(torch.ones(2) / 2), 1))
    with pytest.raises(ConfigurationError, match=r"Independent\(\.\.\., 1\)"):
        DistributionEnergy(D.Normal(torch.zeros(2), 1.0))
    with pytest.raises(ConfigurationError, match="Normal"):
        DistributionEnergy(D.Normal)
