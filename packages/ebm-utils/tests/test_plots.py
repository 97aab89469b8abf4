import math

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn

from ebm_core import ConfigurationError, EBMError, NumericalError, SampleResult, ShapeError
from ebm_core.testing import QuadraticEnergy
from ebm_utils import (
    EightGaussians,
    plot_landscape,
    plot_samples,
    plot_traces,
    plot_training,
    plot_trajectories,
)

BOX = ((-3.0, 3.0), (-2.0, 2.0))


@pytest.fixture(autouse=True)
def settings_stay_and_figures_close():
    before = dict(mpl.rcParams)
    plt.close("all")  # those of other tests
    yield
    assert dict(mpl.rcParams) == before
    plt.close("all")


def energy():
    return QuadraticEnergy(torch.tensor([1.0, 0.0]))


def draws(n_chains=12, n_draws=20, *event):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_chains, n_draws, *(event or (2,)), generator=generator).cumsum(1)


def result(x, *, keep=True):
    return SampleResult(x[:, -1], x if keep else None, torch.zeros(x.shape[:2]), {})


def drawn(ax):
    ax.figure.canvas.draw()
    return ax


def collections(ax, kind):
    return [c for c in ax.collections if type(c).__name__ == kind]


CALLS = (
    lambda ax: plot_landscape(energy(), BOX, samples=draws(), n_points=30, ax=ax),
    lambda ax: plot_landscape(energy(), BOX, density=True, n_points=30, ax=ax),
    lambda ax: plot_trajectories(draws(), energy=energy(), ax=ax),
    lambda ax: plot_traces(draws(), ax=ax),
    lambda ax: plot_training({"loss": [3.0, 2.0, 1.0]}, ax=ax),
    lambda ax: plot_samples(draws(), EightGaussians(50).data, ax=ax),
)


@pytest.mark.parametrize("call", CALLS)
def test_draws_into_the_axes_it_is_given_or_new_ones(call):
    figure, ax = plt.subplots()
    assert call(ax) is ax
    assert figure.axes == [ax]
    assert plt.get_fignums() == [figure.number]
    other = drawn(call(None))
    assert other.figure is not figure
    assert other.get_title() or other.get_title(loc="left")


def test_landscape_contours_the_energy():
    ax = drawn(plot_landscape(energy(), BOX, depth=4.0, n_points=80))
    (filled,) = collections(ax, "QuadContourSet")
    assert filled.levels[0] == 0
    assert filled.levels[-1] == 4
    assert ax.get_xlim() == BOX[0]
    assert ax.get_ylim() == BOX[1]
    assert ax.get_aspect() == 1
    assert len(ax.figure.axes) == 2  # the colour bar
    # The lowest band is the disc of E < 0.2 around the mean (1, 0).
    lowest = filled.get_paths()[0].vertices
    np.testing.assert_allclose((lowest - [1, 0]).max(0), math.sqrt(0.4), atol=0.05)
    np.testing.assert_allclose((lowest - [1, 0]).min(0), -math.sqrt(0.4), atol=0.05)


def test_landscape_of_the_density_is_normalised():
    ax = plot_landscape(energy(), ((-5, 7), (-6, 6)), density=True, n_points=121)
    (filled,) = collections(ax, "QuadContourSet")
    assert filled.levels[-1] == pytest.approx(1 / (2 * math.pi), rel=1e-3)


def test_landscape_thins_samples_and_takes_results():
    x = draws(100, 120)
    offsets = collections(plot_landscape(energy(), BOX, samples=x), "PathCollection")[0]
    assert len(offsets.get_offsets()) == 4000  # every third
    for given, n in ((result(x), 4000), (result(x, keep=False), 100)):
        dots = collections(plot_landscape(energy(), BOX, samples=given), "PathCollection")[0]
        assert len(dots.get_offsets()) == n


def test_landscape_leaves_out_what_has_no_density():
    def box(x):
        return torch.where((x.abs() < 1).all(1), 0.0, math.inf)

    drawn(plot_landscape(box, BOX, n_points=40))
    with pytest.raises(NumericalError, match="move bounds"):
        plot_landscape(lambda x: torch.full((len(x),), math.inf), BOX)


def test_landscape_evaluates_in_eval_mode_and_double():
    net = nn.Sequential(nn.Linear(2, 1), nn.Dropout(), nn.Flatten(0)).double()
    plot_landscape(net, BOX, n_points=20)
    assert net.training


def test_trajectories_are_a_line_and_two_marks_each():
    x = draws(12, 20)
    ax = plot_trajectories(x, max_chains=5)
    assert len(ax.lines) == 15
    for i in range(5):
        line, start, end = ax.lines[3 * i : 3 * i + 3]
        np.testing.assert_allclose(line.get_xydata(), x[i])
        np.testing.assert_allclose(start.get_xydata()[0], x[i, 0])
        np.testing.assert_allclose(end.get_xydata()[0], x[i, -1])
    low, high = ax.get_xlim()
    assert low < x[:5, :, 0].min()
    assert high > x[:5, :, 0].max()


def test_trajectories_over_a_landscape():
    ax = plot_trajectories(result(draws()), energy=energy(), bounds=BOX)
    assert len(collections(ax, "QuadContourSet")) == 1
    assert len(ax.lines) == 24
    assert ax.get_xlim() == BOX[0]
    assert ax.get_title() == "Trajectories"


@pytest.mark.parametrize(
    ("event", "element", "flat"),
    (
        ((3,), 2, 2),
        ((3,), np.int64(1), 1),
        ((2, 3), (1, 0), 3),
        ((2, 3), (np.int64(1), 0), 3),
        ((2, 3), 4, 4),
        ((), 0, 0),
    ),
)
def test_traces_show_one_element_of_each_chain(event, element, flat):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 30, *event, generator=generator)
    ax = plot_traces(x, element=element, max_chains=6)
    assert len(ax.lines) == 6
    for i, line in enumerate(ax.lines):
        np.testing.assert_allclose(line.get_ydata(), x[i].reshape(30, -1)[:, flat])
    assert ax.get_xlim() == (0, 29)
    assert "int64" not in ax.get_title(loc="left")


def test_training_curves_share_the_last_step():
    curves = {"loss": list(range(100)), "KL": [torch.tensor(2.0), 1.0]}
    ax = plot_training(curves)
    loss, kl = ax.lines
    assert loss.get_xdata()[[0, -1]].tolist() == [1, 100]
    assert kl.get_xdata().tolist() == [50, 100]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["loss", "KL"]


def test_training_curves_are_smoothed_and_logarithmic():
    values = [1.0, 3.0, 2.0, 6.0]
    ax = drawn(plot_training({"loss": values}, window=2, log=True))
    raw, mean = ax.lines
    assert raw.get_alpha() < 0.5
    np.testing.assert_allclose(mean.get_ydata(), [2, 2.5, 4])
    np.testing.assert_allclose(mean.get_xdata(), [2, 3, 4])
    assert ax.get_yscale() == "log"
    assert len(ax.get_legend().get_texts()) == 1


def test_training_curves_take_their_own_abscissa():
    curves = {"short": [3.0, 2.0], "long": [4.0, 3.0, 1.0]}
    x = {"short": [500, 1000], "long": torch.tensor([500, 1000, 3000])}
    ax = drawn(plot_training(curves, x=x, x_label="gradient step"))
    assert [line.get_xdata().tolist() for line in ax.lines] == [[500, 1000], [500, 1000, 3000]]
    assert ax.get_xlim() == (500, 3000)
    assert ax.get_xlabel() == "gradient step"
    (line,) = plot_training({"KL": [1.0, 0.5]}, x=[1, 4]).lines
    assert line.get_xdata().tolist() == [1, 4]
    drawn(plot_training({"KL": [1.0]}, x=[1e12]))


def test_training_takes_tensors_with_gradients_and_any_name():
    weight = torch.ones(3, requires_grad=True)
    ax = drawn(plot_training({"_loss": weight * 2, 7: [weight.sum()], "nan": [1.0, math.nan]}))
    assert ax.lines[0].get_ydata().tolist() == [2, 2, 2]
    names = [text.get_text().strip() for text in ax.get_legend().get_texts()]
    assert names == ["_loss", "7", "nan"]


def test_titles_may_be_empty():
    for ax in (
        plot_landscape(energy(), BOX, n_points=5, title=""),
        plot_traces(draws(), title=""),
        plot_training({"loss": [1.0]}, title=""),
    ):
        assert not ax.get_title()
        assert not ax.get_title(loc="left")


def test_arrays_and_data_sets_are_taken():
    x, data = draws(), EightGaussians(20)
    below, above = collections(drawn(plot_samples(x.numpy(), data)), "PathCollection")
    np.testing.assert_allclose(below.get_offsets(), data.data)
    np.testing.assert_allclose(above.get_offsets(), x.reshape(-1, 2))
    (dots,) = collections(plot_samples(data), "PathCollection")
    np.testing.assert_allclose(dots.get_offsets(), data.data)
    plot_landscape(energy(), BOX, samples=data, n_points=5)
    plot_trajectories(x.numpy())
    plot_traces(x.numpy())


@pytest.mark.parametrize("spread", (0.0, 1e-3, 1.0, 1e6))
def test_trajectories_far_from_the_origin(spread):
    x = 1e12 + spread * draws().double()
    ax = drawn(plot_trajectories(x))
    low, high = ax.get_xlim()
    assert low < x[:8, :, 0].min()
    assert high > x[:8, :, 0].max()


def test_samples_lie_over_the_data():
    data, samples = EightGaussians(300).data, draws(5, 20)
    ax = plot_samples(samples, data, bounds=BOX)
    below, above = collections(ax, "PathCollection")
    np.testing.assert_allclose(below.get_offsets(), data)
    np.testing.assert_allclose(above.get_offsets(), samples.reshape(-1, 2))
    assert above.get_zorder() > below.get_zorder()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["data", "samples"]
    assert ax.get_xlim() == BOX[0]
    assert plot_samples(samples).get_legend() is None


@pytest.mark.parametrize(
    ("call", "error"),
    (
        (lambda: plot_landscape(energy(), [(-1, 1)] * 3), ShapeError),
        (lambda: plot_landscape(energy(), [(1, -1)] * 2), ConfigurationError),
        (lambda: plot_landscape(energy(), BOX, depth=-1.0), ConfigurationError),
        (lambda: plot_landscape(energy(), BOX, samples=torch.zeros(5, 3)), ShapeError),
        (lambda: plot_landscape(lambda x: x[:, 0] * math.nan, BOX), NumericalError),
        (lambda: plot_trajectories(torch.zeros(5, 6, 3)), ShapeError),
        (lambda: plot_trajectories(draws(), max_chains=0), ConfigurationError),
        (lambda: plot_trajectories(result(draws(), keep=False)), ConfigurationError),
        (lambda: plot_traces(draws(), element=2), ConfigurationError),
        (lambda: plot_traces(draws(), element=(0, 0)), ConfigurationError),
        (lambda: plot_traces(torch.zeros(5)), ShapeError),
        (lambda: plot_traces(draws(), element=True), ConfigurationError),
        (lambda: plot_traces(draws(), element=(True,)), ConfigurationError),
        (lambda: plot_traces(draws(), element=1.0), ConfigurationError),
        (lambda: plot_traces(torch.zeros(5, 0, 2)), ShapeError),
        (lambda: plot_traces("draws"), ConfigurationError),
        (lambda: plot_trajectories(torch.zeros(5, 0, 2)), ShapeError),
        (lambda: plot_trajectories(draws(), bounds=[(-1, 1)]), ShapeError),
        (lambda: plot_trajectories(draws(), bounds=5), ConfigurationError),
        (lambda: plot_samples(draws(), bounds=[(-1, 1)] * 3), ShapeError),
        (lambda: plot_samples(draws(), bounds=[(-1, 1)]), ShapeError),
        (lambda: plot_samples(draws(), bounds=[(1, -1)] * 2), ConfigurationError),
        (lambda: plot_samples(draws(), "data"), ConfigurationError),
        (lambda: plot_training({}), ConfigurationError),
        (lambda: plot_training([1, 2, 3]), ConfigurationError),
        (lambda: plot_training({"loss": 1.0}), ConfigurationError),
        (lambda: plot_training({"loss": ["low"]}), ConfigurationError),
        (lambda: plot_training({"loss": [-1.0, 0.0]}, log=True), ConfigurationError),
        (lambda: plot_training({"loss": [1.0, 2.0]}, x=[1.0]), ShapeError),
        (lambda: plot_training({"loss": [1.0]}, x={"KL": [1.0]}), ConfigurationError),
        (lambda: plot_training({"loss": [1.0]}, x=[math.nan]), ConfigurationError),
        (lambda: plot_training({"loss": []}), ConfigurationError),
        (lambda: plot_training({"loss": [1.0]}, window=0), ConfigurationError),
        (lambda: plot_samples(torch.full((4, 2), math.nan)), NumericalError),
    ),
)
def test_wrong_input_raises(call, error):
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, EBMError)
    assert plt.get_fignums() == [], "refused before a figure was made"
