import math

import matplotlib as mpl
import numpy as np
import pytest
import scipy.stats
import torch

mpl.use("Agg")

import matplotlib.pyplot as plt

from ebm_core import ConfigurationError, NumericalError, SampleResult, ShapeError, make_generator
from ebm_core.testing import QuadraticEnergy
from ebm_utils import (
    TwoMoons,
    auroc,
    exact_kl,
    exact_nll,
    expected_calibration_error,
    ood_auroc,
    plot_images,
)

BOX = [(-9, 9)] * 2


def normals(n, *shape, seed=0):
    return torch.randn(n, *shape, generator=make_generator(seed))


@pytest.fixture(autouse=True)
def figures_close():
    yield
    plt.close("all")


# Likelihood


@pytest.mark.parametrize("d", (1, 2, 3))
def test_nll_of_gaussians(d):
    energy = QuadraticEnergy(torch.full((d,), 0.5), torch.full((d,), 2.0)).double()
    x = normals(50, d)
    exact = (energy(x.double()) + energy.log_normalizer()).mean().item()
    assert exact_nll(energy, x, [(-9, 9)] * d, 60) == pytest.approx(exact, abs=1e-9)
    assert exact_nll(energy, x, [(-9, 9)] * d, 60, chunk_size=7) == pytest.approx(exact, abs=1e-9)


def test_nll_of_data_is_entropy_and_divergence():
    moons, energy = TwoMoons(40_000, seed=0), QuadraticEnergy(torch.zeros(2))
    nll = exact_nll(energy, moons.data, BOX)
    expected = moons.entropy() + exact_kl(energy, moons.log_density, BOX)
    error = energy(moons.data).std().item() / len(moons) ** 0.5
    assert abs(nll - expected) < 4 * error


def test_nll_is_refused_where_the_model_has_its_states_by_heart():
    x = normals(5, 2).double()
    height = 1e8 / (2 * math.pi * 5)  # half the mass is in the spikes

    def energy(y):
        broad = -y.square().sum(1) / 2 - math.log(2 * math.pi)
        spikes = math.log(height) - ((y[:, None] - x) / 1e-4).square().sum(2) / 2
        return -torch.logsumexp(torch.cat([broad[:, None], spikes], 1), 1)

    with pytest.raises(NumericalError, match="wells at states"):
        exact_nll(energy, x, BOX, dtype=torch.float64)
    wrong = exact_nll(energy, x, BOX, dtype=torch.float64, max_grid_error=None)
    assert wrong == pytest.approx(-math.log(height), abs=1e-3)  # as if the spikes had no mass
    narrow = QuadraticEnergy(torch.full((2,), 0.0225), torch.full((2,), 1 / 0.045**2)).double()
    assert exact_nll(narrow, torch.full((1, 2), 0.0225), BOX) == pytest.approx(
        narrow.log_normalizer().item(), abs=1e-3
    )


def test_nll_is_infinite_where_there_is_no_density():
    def energy(x):
        return torch.where(x.abs() < 1, 0.0, math.inf).sum(1)

    assert exact_nll(energy, [[0.5]], [(-2, 2)]) == pytest.approx(math.log(2))
    assert exact_nll(energy, [[0.5], [3.0]], [(-2, 2)]) == math.inf


@pytest.mark.parametrize(
    ("x", "error"),
    (
        (torch.zeros(2), ShapeError),
        (torch.zeros(0, 2), ShapeError),
        (torch.zeros(3, 3), ShapeError),
        (torch.full((3, 2), math.nan), NumericalError),
        ("x", ConfigurationError),
    ),
)
def test_nll_refuses_what_are_no_states(x, error):
    with pytest.raises(error):
        exact_nll(QuadraticEnergy(torch.zeros(2)), x, BOX, 50)


def test_nll_has_the_checks_of_the_normaliser():
    with pytest.raises(NumericalError, match="decayed"):
        exact_nll(QuadraticEnergy(torch.zeros(2)), torch.zeros(1, 2), [(-1, 1)] * 2, 50)


# Detection


def test_auroc_is_that_of_all_pairs_and_of_the_rank_test():
    generator = make_generator(1)
    high = torch.randint(0, 12, (57,), generator=generator).double()  # with many ties
    low = torch.randint(0, 10, (91,), generator=generator).double()
    pairs = high[:, None] - low
    brute = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean().item()
    assert auroc(high, low) == pytest.approx(brute, abs=1e-14)
    ranked = scipy.stats.mannwhitneyu(high.numpy(), low.numpy()).statistic / (57 * 91)
    assert auroc(high, low) == pytest.approx(ranked, abs=1e-14)
    assert auroc(low, high) == pytest.approx(1 - brute, abs=1e-14)


def test_auroc_of_columns():
    scores = normals(9, 2).double()
    assert auroc(scores[:, 0], scores[:, 1]) == auroc(*scores.T.contiguous())


def test_auroc_of_infinite_scores():
    assert auroc([math.inf, 0.0], [math.inf, -math.inf]) == pytest.approx((0.5 + 1 + 0 + 1) / 4)


def test_detection_by_energy_has_the_closed_form_of_two_normals():
    """Linear scores N(0, 1) and N(δ, 1): AUROC = Φ(δ / sqrt 2)."""
    inside, outside = normals(4000, 2), normals(4000, 2, seed=1) + torch.tensor([1.0, 0.0])
    found = ood_auroc(lambda x: x[:, 0], inside, outside, batch_size=999)
    exact = scipy.stats.norm.cdf(1 / math.sqrt(2))
    assert found == pytest.approx(exact, abs=4.5 * math.sqrt(exact * (1 - exact) / 4000))


def test_detection_is_in_eval_mode_without_gradients_on_images_too():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(16, 1))

    class Energy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            assert not torch.is_grad_enabled()
            return self.network(x).squeeze(1)

    energy = Energy()
    inside, outside = normals(20, 4, 4), normals(30, 4, 4, seed=1).double()
    assert ood_auroc(energy, inside, outside) == ood_auroc(energy, inside, outside)
    assert energy.training


@pytest.mark.parametrize(
    ("scores", "error"),
    (([], ShapeError), ([[1.0]], ShapeError), ([math.nan], NumericalError)),
)
def test_auroc_refuses_what_are_no_scores(scores, error):
    with pytest.raises(error):
        auroc(scores, [1.0])
    with pytest.raises(error):
        auroc([1.0], scores)


# Calibration


def by_definition(p, y, n_bins):
    confidence, total = p.max(1), 0.0
    for b in range(n_bins):
        inside = (confidence > b / n_bins) & (confidence <= (b + 1) / n_bins)
        if inside.any():
            accuracy = (p.argmax(1) == y)[inside].mean()
            total += inside.mean() * abs(accuracy - confidence[inside].mean())
    return total


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_calibration_of_rounded_probabilities(dtype):
    p = torch.randn(500, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    y = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(1))[:, 0]
    rounded = expected_calibration_error(p.to(dtype), y)
    assert rounded == pytest.approx(expected_calibration_error(p, y), abs=0.05)
    with pytest.raises(NumericalError):
        expected_calibration_error(1.05 * p.to(dtype), y)


@pytest.mark.parametrize("n_bins", (1, 7, 15))
@pytest.mark.parametrize("n_classes", (2, 10))
def test_calibration_error_by_its_definition(n_bins, n_classes):
    p = (2 * normals(500, n_classes).double()).softmax(1)
    y = torch.randint(0, n_classes, (500,), generator=make_generator(2))
    expected = by_definition(p.numpy(), y.numpy(), n_bins)
    assert expected_calibration_error(p, y, n_bins) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.05


def test_calibrated_labels_have_an_error_within_its_bias():
    p = (2 * normals(50_000, 4).double()).softmax(1)
    y = torch.multinomial(p, 1, generator=make_generator(3))[:, 0]
    assert expected_calibration_error(p, y) < 0.008
    assert expected_calibration_error((3 * p.log()).softmax(1), y) > 0.1


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    p = torch.tensor([[0.5, 0.5], [0.75, 0.25]])  # right and wrong: one bin would cancel them
    assert expected_calibration_error(p, torch.tensor([0, 1]), n_bins=2) == 0.625


def test_calibration_of_certainty():
    p = torch.eye(3)
    assert expected_calibration_error(p, torch.arange(3)) == 0.0
    assert expected_calibration_error(p, torch.tensor([1, 2, 0])) == 1.0


@pytest.mark.parametrize(
    ("p", "y", "error"),
    (
        (torch.ones(3), torch.zeros(3).long(), ShapeError),
        (torch.eye(3), torch.zeros(2).long(), ShapeError),
        (torch.eye(3), torch.zeros(3), ConfigurationError),
        (torch.eye(3), torch.tensor([0, 1, 3]), ConfigurationError),
        (2 * torch.eye(3), torch.arange(3), NumericalError),
        (torch.full((3, 3), math.nan), torch.arange(3), NumericalError),
    ),
)
def test_calibration_refuses_what_are_no_predictions(p, y, error):
    with pytest.raises(error):
        expected_calibration_error(p, y)


# Images


@pytest.mark.parametrize("shape", ((7, 8, 6), (7, 1, 8, 6), (7, 3, 8, 6)))
def test_images_are_where_they_belong(shape):
    images = torch.arange(math.prod(shape)).reshape(shape)
    shown = plot_images(images, n_columns=4).images[0].get_array()
    scaled = images.reshape(7, -1, 8, 6).permute(0, 2, 3, 1).squeeze(-1) / (math.prod(shape) - 1)
    assert shown.shape[:2] == (2 * 8 + 1, 4 * 6 + 3)
    np.testing.assert_allclose(shown[:8, 7:13], scaled[1], atol=1e-6)
    np.testing.assert_allclose(shown[9:, :6], scaled[4], atol=1e-6)
    gap = shown[8] if shown.ndim == 3 else shown.mask[8]
    assert (gap == 1).all()  # white in colour, left out in grey


def test_images_share_limits_and_take_results_and_axes():
    x = torch.tensor([[[0.0, 2.0]], [[-1.0, 0.5]]])
    axes = plt.figure().subplots()
    result = SampleResult(x, None, torch.zeros(2, 1), {})
    assert plot_images(result, limits=(0, 1), n_columns=1, title=None, ax=axes) is axes
    shown = axes.images[0].get_array()
    assert shown[0].tolist() == [0.0, 1.0]
    assert shown[2].tolist() == [0.0, 0.5]
    assert axes.get_title() == ""
    assert plot_images(torch.ones(3, 2, 2)).images[0].get_array().shape == (5, 5)


@pytest.mark.parametrize(
    ("images", "options", "error"),
    (
        (torch.zeros(8, 8), {}, ShapeError),
        (torch.zeros(2, 2, 8, 8), {}, ShapeError),
        (torch.zeros(0, 8, 8), {}, ShapeError),
        (torch.full((2, 8, 8), math.inf), {}, NumericalError),
        (torch.zeros(2, 8, 8), {"limits": (1, 1)}, ConfigurationError),
        (torch.zeros(2, 8, 8), {"limits": (1, 0)}, ConfigurationError),
        (torch.zeros(2, 8, 8), {"limits": (1,)}, ConfigurationError),
        (torch.zeros(2, 8, 8), {"limits": "ab"}, ConfigurationError),
        (torch.zeros(2, 8, 8), {"n_columns": 0}, ConfigurationError),
    ),
)
def test_what_are_no_images_is_refused(images, options, error):
    with pytest.raises(error):
        plot_images(images, **options)
