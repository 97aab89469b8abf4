import pytest
import torch
from arviz_stats.base import array_stats

from ebm_core import ConfigurationError, Moments, NumericalError, SampleResult, ShapeError
from ebm_utils import bfmi, mode_occupancy, stuck_chains


def result_of(draws, moments=None, **stats):
    trajectory = draws if draws.ndim > 2 else None
    final = draws[:, -1] if draws.ndim > 2 else draws
    return SampleResult(final, trajectory, torch.zeros(len(draws), 1), stats, moments)


def moments_of(draws):
    mean = draws.mean(1)
    return Moments(draws.shape[1], mean, (draws - mean[:, None]).square().sum(1))


def test_bfmi_is_arviz_stats_own():
    energy = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).cumsum(1)
    result = result_of(torch.zeros(5, 40, 2), energy=energy)
    theirs = array_stats.bfmi(energy.double().numpy())
    torch.testing.assert_close(bfmi(result), torch.from_numpy(theirs))
    energy[2] = 1.0
    assert bfmi(result).isnan().tolist() == [False, False, True, False, False]


def test_bfmi_tells_slow_energies():
    """Fresh energies have the expectation 2; a walk of N steps about 6 / N."""
    noise = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
    assert (bfmi(result_of(torch.zeros(8, 1000, 1), energy=noise)) - 2).abs().max() < 0.2
    assert (bfmi(result_of(torch.zeros(8, 1000, 1), energy=noise.cumsum(1))) < 0.1).all()


@pytest.mark.parametrize(
    ("result", "error", "message"),
    (
        (result_of(torch.zeros(2, 9, 1)), ConfigurationError, "NUTS"),
        (result_of(torch.zeros(2, 1), energy=torch.zeros(2, 1)), ConfigurationError, "trajectory"),
        (result_of(torch.zeros(2, 3, 1), energy=torch.zeros(2, 3)), ShapeError, "at least 4"),
        (
            result_of(torch.zeros(2, 9, 1), energy=torch.full((2, 9), torch.inf)),
            NumericalError,
            "of 2 of 2 chains",
        ),
    ),
)
def test_what_has_no_bfmi(result, error, message):
    with pytest.raises(error, match=message):
        bfmi(result)


def test_chains_that_stand_still():
    draws = torch.randn(5, 20, 2, 3, generator=torch.Generator().manual_seed(0))
    draws[1] = draws[1, :1]  # never moves
    draws[2, 5:15] = draws[2, 5]  # half of the run on end
    draws[3, ::2] = draws[3, 0]  # comes back, and moves all the time
    draws[4, 1:, 0] = draws[4, 0, 0]  # some elements move
    assert stuck_chains(draws).tolist() == [False, True, False, False, False]
    assert stuck_chains(result_of(draws)).tolist() == stuck_chains(draws).tolist()
    assert stuck_chains(draws, 0.5).tolist() == [False, True, True, False, False]
    assert stuck_chains(draws, 0.51).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_chains_that_stand_still_by_their_moments(dtype):
    draws = 0.1 + torch.randn(4, 30, 2, generator=torch.Generator().manual_seed(0)).double()
    draws[1:3] = draws[1:3, :1]
    moments = moments_of(draws)
    rounding = (torch.finfo(torch.float64).eps * draws[2, 0]) ** 2
    moments.sum_of_squares[2] = 30 * rounding  # a mean of equal numbers need not be the number
    result = result_of(
        draws[:, -1],
        Moments(30, moments.mean.to(dtype), moments.sum_of_squares.to(dtype)),
    )
    assert stuck_chains(result).tolist() == [False, True, True, False]
    with pytest.raises(ConfigurationError, match="fraction=1"):
        stuck_chains(result, 0.5)


def test_what_does_not_tell_whether_chains_moved():
    with pytest.raises(ConfigurationError, match="final states only"):
        stuck_chains(result_of(torch.zeros(4, 2)))
    with pytest.raises(ShapeError, match="at least 2"):
        stuck_chains(torch.zeros(4, 1, 2))
    with pytest.raises(ConfigurationError, match="fraction"):
        stuck_chains(torch.zeros(4, 9, 2), 0)


def test_modes_are_counted_for_each_chain(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    modes = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    labels = torch.randint(3, (6, 50), generator=generator)
    labels[2] = 1
    draws = modes[labels] + torch.randn(6, 50, 2, generator=generator)
    for at_once in (2**22, 100):
        monkeypatch.setattr("ebm_utils.chains._DISTANCES_AT_ONCE", at_once)
        occupancy = mode_occupancy(draws, modes)
        assert torch.equal(occupancy.labels, labels)
        assert occupancy.counts.tolist() == [row.bincount(minlength=3).tolist() for row in labels]
    assert torch.equal(occupancy.switches, (labels.diff(dim=1) != 0).sum(1))
    assert occupancy.switches[2] == 0
    torch.testing.assert_close(occupancy.weights.sum().item(), 1.0)
    assert "1 of 6 chains never switched" in repr(occupancy)


def test_errors_of_weights_hold_for_independent_chains():
    """Fractions of 400 chains against the true weights 0.3 and 0.7, in standard errors."""
    generator = torch.Generator().manual_seed(1)
    draws = (torch.rand(400, 25, 1, generator=generator) < 0.7).float()
    occupancy = mode_occupancy(draws, [[0.0], [1.0]])
    z = (occupancy.weights - torch.tensor([0.3, 0.7])) / occupancy.standard_errors
    assert z.abs().max() < 3.5
    exact = (0.3 * 0.7 / 10_000) ** 0.5
    torch.testing.assert_close(
        occupancy.standard_errors, torch.full((2,), exact).double(), rtol=0.15, atol=0
    )


def test_modes_of_events_of_any_shape_and_of_final_states():
    final = torch.tensor([0.2, 3.1, 2.9])
    occupancy = mode_occupancy(SampleResult(final, None, final[:, None], {}), [0.0, 3.0])
    assert occupancy.counts.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert occupancy.switches.tolist() == [0, 0, 0]
    draws = torch.zeros(2, 5, 3, 4)
    assert mode_occupancy(draws, torch.ones(2, 3, 4)).counts.shape == (2, 2)


def test_modes_of_another_shape_raise():
    for modes in (torch.zeros(3), torch.zeros(2, 3), torch.zeros(1, 2), torch.zeros(())):
        with pytest.raises(ShapeError, match="one state a mode"):
            mode_occupancy(torch.zeros(4, 5, 2), modes)
    with pytest.raises(NumericalError, match="chain 1"):
        mode_occupancy(torch.tensor([[[0.0]], [[torch.nan]]]), [[0.0], [1.0]])
