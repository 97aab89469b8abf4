import arviz_stats
import matplotlib.pyplot
import numpy as np
import pytest
import torch

from ebm_core import ConfigurationError, SampleResult, ShapeError
from ebm_core.testing import QuadraticEnergy, ReferenceLangevin
from ebm_utils import ess, mcse, rhat, to_arviz


def result(n_chains=4, n_draws=100, event=(2, 3), seed=2**63 + 1):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(n_chains, n_draws, *event, generator=generator)
    per_draw = torch.rand(n_chains, n_draws, generator=generator)
    return SampleResult(
        draws[:, -1],
        draws,
        potential=3 * per_draw,
        stats={
            "acceptance_rate": per_draw,
            "diverging": per_draw > 0.9,
            "n_steps": torch.full((n_chains, n_draws), 10),
            "energy": 4 * per_draw,
            "step_size": torch.arange(1.0, n_chains + 1),
        },
        seed=seed,
    )


def test_groups_hold_draws_and_statistics():
    r = result()
    tree = to_arviz(r)
    assert tree.posterior.x.dims == ("chain", "draw", "x_dim_0", "x_dim_1")
    np.testing.assert_array_equal(tree.posterior.x, r.trajectory)
    stats = tree.sample_stats
    assert set(stats.data_vars) == {"lp", *r.stats}
    assert all(stats[name].dims == ("chain", "draw") for name in stats.data_vars)
    np.testing.assert_array_equal(stats.lp, -r.potential)
    np.testing.assert_array_equal(stats.diverging, r.stats["diverging"])
    assert stats.diverging.dtype == bool
    np.testing.assert_array_equal(stats.step_size[:, 17], r.stats["step_size"])
    assert tree.attrs["seed"] == str(2**63 + 1)


def test_names_and_labels():
    tree = to_arviz(result(), "theta", dims=["row", "column"], coords={"column": ["a", "b", "c"]})
    assert tree.posterior.theta.sel(column="b").dims == ("chain", "draw", "row")


def test_arviz_stats_takes_it_and_agrees():
    r = result()
    tree = to_arviz(r)
    for ours, theirs in (
        (rhat, arviz_stats.rhat),
        (ess, arviz_stats.ess),
        (mcse, arviz_stats.mcse),
    ):
        np.testing.assert_allclose(ours(r), theirs(tree).x)
    assert arviz_stats.bfmi(tree).energy.shape == (4,)
    table = arviz_stats.summary(tree)
    assert len(table) == 6


@pytest.mark.parametrize("event", ((), (5,)), ids=str)
def test_many_chains_of_few_draws(event):
    tree = to_arviz(result(50, 4, event, seed=None))
    assert tree.posterior.x.shape == (50, 4, *event)
    assert "seed" not in tree.attrs


@pytest.mark.parametrize("event", ((), (2, 3)), ids=str)
def test_arviz_plots_takes_it(event):
    """ArviZ's own figures of draws, of ranks and of what samplers report."""
    import arviz_plots

    tree = to_arviz(result(event=event))
    plots = [arviz_plots.plot_trace(tree, backend="matplotlib")]
    if not event:
        for name in ("rank", "energy", "forest", "dist", "ess", "autocorr"):
            plot = getattr(arviz_plots, f"plot_{name}")
            plots.append(plot(tree, backend="matplotlib"))
        plots.append(arviz_plots.plot_trace(tree, group="sample_stats", backend="matplotlib"))
    for plot in plots:
        figure = plot.viz["figure"].item()
        figure.canvas.draw()
        assert any(ax.has_data() for ax in figure.axes)
        matplotlib.pyplot.close(figure)


def test_takes_what_a_sampler_gives():
    sampler = ReferenceLangevin(QuadraticEnergy(torch.zeros(2)))
    r = sampler.sample(n_samples=3, n_steps=12, thin=2, keep="trajectory", seed=1)
    tree = to_arviz(r)
    assert tree.posterior.x.shape == (3, 6, 2)
    assert tree.sample_stats.lp.shape == (3, 6)


def test_bfloat16_becomes_float32():
    r = result()
    draws = r.trajectory.bfloat16()
    tree = to_arviz(SampleResult(draws[:, -1], draws, draws.sum((-1, -2)), {}))
    assert tree.posterior.x.dtype == np.float32
    assert np.array_equal(tree.posterior.x.to_numpy(), draws.float().numpy())


def test_draws_are_not_copied():
    r = result()
    tree = to_arviz(r)
    assert np.shares_memory(tree.posterior.x.to_numpy(), r.trajectory.numpy())


def test_what_cannot_be_converted_raises():
    with pytest.raises(ConfigurationError, match='keep="trajectory"'):
        to_arviz(SampleResult(torch.zeros(4, 2), None, torch.zeros(4, 1), {}))
    with pytest.raises(ShapeError, match="2 names"):
        to_arviz(result(), dims=["only"])


@pytest.mark.parametrize("dims", (["chain", "b"], ["a", "draw"], ["a", "a"], ["x", "b"]))
def test_names_of_axes_that_are_taken_raise(dims):
    with pytest.raises(ConfigurationError, match="rename dims"):
        to_arviz(result(), dims=dims)
