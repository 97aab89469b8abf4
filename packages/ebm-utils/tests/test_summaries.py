import pytest
import torch
from arviz_stats.base import array_stats

from ebm_core import ConfigurationError, Moments, NumericalError, SampleResult, ShapeError
from ebm_utils import autocorrelation_time, bfmi, ess, mcse, nested_rhat, rhat, summary


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def result_of(draws, **stats):
    shape = draws.shape[:2]
    stats = {"acceptance_rate": torch.full(shape, 0.8), **stats}
    return SampleResult(draws[:, -1], draws, torch.zeros(shape), stats)


def moments_of(draws):
    mean = draws.mean(1)
    moments = Moments(draws.shape[1], mean, (draws - mean[:, None]).square().sum(1))
    return SampleResult(draws[:, -1], None, torch.zeros(len(draws), 1), {}, moments)


def final_of(states, **stats):
    return SampleResult(states, None, torch.zeros(len(states), 1), stats)


def only_warning(found):
    assert len(found.warnings) == 1, found.warnings
    return found.warnings[0]


@pytest.mark.parametrize("event", ((), (3,), (2, 3)), ids=str)
def test_the_table_has_the_numbers_of_the_functions(event):
    draws = noise(4, 300, *event)
    found = summary(result_of(draws))
    names = {(): ["x"], (3,): ["x[0]", "x[1]", "x[2]"]}.get(event, ["x[0,0]", "x[0,1]"])
    assert list(found.table.index[: len(names)]) == names
    squares = draws.double().square()
    expected = {
        "mean": draws.double().mean((0, 1)),
        "sd": draws.double().flatten(0, 1).std(0),
        "mcse_mean": mcse(draws),
        "mcse_sd": mcse(draws, "sd"),
        "ess_bulk": ess(draws),
        "ess_tail": ess(draws, "tail"),
        "ess_bulk_sq": ess(squares),
        "ess_tail_sq": ess(squares, "tail"),
        "tau": autocorrelation_time(draws),
        "rhat": rhat(draws),
    }
    assert list(found.table.columns) == list(expected)
    for column, values in expected.items():
        torch.testing.assert_close(found.table[column], values.flatten(), msg=column)
    row = found.table.row(names[-1])
    assert row["rhat"] == found.table["rhat"][len(names) - 1].item()
    with pytest.raises(KeyError):
        found.table.row("y")


def test_a_good_run_has_no_warnings():
    energy = noise(4, 500, seed=1)
    found = summary(
        result_of(
            noise(4, 500, 2),
            diverging=torch.zeros(4, 500, dtype=torch.bool),
            n_steps=torch.full((4, 500), 7),
            tree_depth=torch.full((4, 500), 3),
            energy=energy,
            step_size=torch.full((4,), 0.25),
        )
    )
    assert found.warnings == ()
    assert found.totals["n_steps"] == 14_000
    assert found.totals["n_diverging"] == found.totals["n_stuck"] == 0
    assert found.totals["step_size"] == 0.25
    torch.testing.assert_close(
        found.chains["bfmi"], bfmi(result_of(noise(4, 500, 2), energy=energy))
    )
    assert str(found).startswith(
        "4 chains of 500 draws, states (2,); acceptance 0.80; 0 divergent; 1.4e+04 gradients; "
        "step_size 0.25; BFMI at least"
    )
    assert str(found).endswith("No warnings.")


def test_stuck_chains_are_counted():
    draws = noise(1000, 20, 2)
    draws[::84] = draws[::84, :1]
    found = summary(result_of(draws))
    assert found.warnings[0] == "12 of 1000 chains never moved: lower step_size"
    assert found.totals["n_stuck"] == 12
    draws = noise(4, 500, 1)
    draws[1, 100:400] = 0.5
    warning = next(w for w in summary(draws).warnings if "stood still" in w)
    assert warning.startswith("1 of 4 chains stood still for half of the run or longer: lower")


def test_divergences():
    diverging = torch.zeros(4, 500, dtype=torch.bool)
    diverging[1, 3:40] = True
    warning = only_warning(summary(result_of(noise(4, 500, 2), diverging=diverging)))
    assert warning.startswith(
        "37 of 2000 draws end a divergence, in 1 of 4 chains: lower step_size"
    )
    final = final_of(noise(8, 2), diverging=torch.ones(8, 1, dtype=torch.bool))
    assert summary(final).warnings[0].startswith("8 of 8 chains diverged: lower step_size")


@pytest.mark.parametrize(
    ("rate", "stats", "message"),
    (
        (0.05, {}, "the acceptance rate is 0.05: lower step_size"),
        (0.3, {"energy": noise(4, 500, seed=1)}, "the acceptance rate is 0.3: lower step_size"),
        (0.3, {}, None),
        (0.999, {}, None),
    ),
)
def test_acceptance_rates(rate, stats, message):
    rates = torch.full((4, 500), rate)
    found = summary(result_of(noise(4, 500, 2), acceptance_rate=rates, **stats))
    if message is None:
        assert found.warnings == ()
    else:
        assert only_warning(found).startswith(message)


def test_slow_chains_that_accept_everything_may_take_larger_steps():
    walk = noise(4, 500, 1).cumsum(1)
    found = summary(result_of(walk, acceptance_rate=torch.full((4, 500), 0.999)))
    assert found.warnings[0].startswith(
        "the acceptance rate is 0.999 and chains move slowly: raise"
    )
    assert not any("acceptance" in warning for warning in summary(result_of(walk)).warnings)


def test_rhat_and_ess():
    draws = noise(4, 500, 2, 2)
    draws[0, :, 1, 0] += 5
    found = summary(draws)
    (about_rhat,) = (w for w in found.warnings if w.startswith("R-hat"))
    assert "at x[1,0] (1 of 4 elements at 1.01 or above): chains do not agree; raise" in about_rhat
    assert f"R-hat is {found.table['rhat'].max():.3f} " in about_rhat
    assert "superchains" not in about_rhat
    (about_ess,) = (w for w in found.warnings if w.startswith("the effective sample size"))
    assert "at x[1,0] (" in about_ess
    assert "1 of 4 elements below 400" in about_ess
    many = noise(64, 10, 1) + noise(64, 1, 1, seed=1)
    assert any("pass superchains=" in w for w in summary(many).warnings)


def test_ess_of_squares_alone():
    """Signs are fresh, sizes last: x mixes, x² does not."""
    sizes = noise(4, 1000, 1).cumsum(1).abs() + 0.1
    signs = noise(4, 1000, 1, seed=1).sign()
    found = summary(sizes * signs)
    assert found.table["ess_bulk_sq"].item() < 100
    assert any(w.startswith("the effective sample size") and "_sq" in w for w in found.warnings)


def test_bfmi_and_tree_depth():
    found = summary(
        result_of(
            noise(4, 500, 2),
            energy=noise(4, 500, seed=1).cumsum(1),
            tree_depth=torch.where(torch.arange(500) % 4 == 0, 10, 5).expand(4, 500),
        )
    )
    assert found.warnings[0].startswith("BFMI is below 0.3 in 4 of 4 chains (least 0.0")
    assert found.warnings[1].startswith("25% of trees reached depth 10: trajectories were cut")
    assert found.totals["tree_depth"] == 10
    deeper = result_of(noise(4, 500, 2), tree_depth=torch.full((4, 500), 10))
    assert summary(deeper, max_tree_depth=12).warnings == ()


def test_modes():
    generator = torch.Generator().manual_seed(0)
    modes = torch.tensor([[-5.0], [5.0], [50.0]])
    starts = modes[torch.randint(2, (40, 1), generator=generator)]
    found = summary(starts + noise(40, 100, 1), modes=modes)
    assert any(w.startswith("no draw is near mode 2: start chains there") for w in found.warnings)
    assert any(w.startswith("40 of 40 chains never changed their mode") for w in found.warnings)
    assert "40 of 40 chains never switched" in str(found)
    shares = torch.linspace(0.1, 0.9, 40)[:, None]
    labels = (torch.rand(40, 100, generator=generator) < shares).long()
    found = summary(modes[labels] + noise(40, 100, 1), modes=modes[:2])
    assert any(w.startswith("chains disagree on the weight of mode") for w in found.warnings)
    even = torch.randint(2, (4, 2000), generator=generator)
    assert summary(modes[even] + noise(4, 2000, 1), modes=modes[:2]).warnings == ()


def test_constant_elements():
    draws = noise(4, 500, 3)
    draws[..., 1] = 0.25
    found = summary(draws)
    assert only_warning(found).startswith("1 of 3 elements (x[1]) never changed")
    row = found.table.row("x[1]")
    assert row["mean"] == 0.25
    assert row["sd"] == 0
    assert row["rhat"] != row["rhat"]


def test_chains_that_are_not_finite_are_left_out_and_named():
    draws = noise(6, 500, 2)
    draws[2, 100:] = torch.nan
    found = summary(draws)
    assert only_warning(found).startswith("1 of 6 chains are NaN or infinite, and left out")
    torch.testing.assert_close(found.table["rhat"], rhat(draws[[0, 1, 3, 4, 5]]))
    with pytest.raises(NumericalError, match="all 6 chains"):
        summary(torch.full((6, 10, 2), torch.nan))


def test_a_single_chain_and_few_draws():
    assert only_warning(summary(noise(1, 900, 1))).startswith("a single chain has nothing")
    assert "rhat" not in summary(noise(1, 900, 1)).table.columns
    found = summary(noise(1000, 3, 2))
    assert only_warning(found).startswith("3 draws a chain are too few for R-hat")
    assert list(found.table.columns) == ["mean", "sd"]


def test_final_states():
    final = noise(400, 2)
    found = summary(final_of(final))
    assert found.kept == "final"
    torch.testing.assert_close(found.table["mcse_mean"], final.double().std(0) / 20)
    assert only_warning(found).startswith("final states alone cannot say")
    nested = summary(final_of(final), superchains=20)
    assert nested.warnings == ()
    torch.testing.assert_close(nested.table["nested_rhat"], nested_rhat(final_of(final), 20))
    starts = noise(20, 2, seed=1).repeat_interleave(20, dim=0)
    remembered = summary(final_of(final + starts), superchains=20)
    assert only_warning(remembered).startswith("nested R-hat is ")
    assert "raise burn_in" in only_warning(remembered)
    barely = summary(final_of(final, acceptance_rate=(torch.arange(400)[:, None] + 0.5) / 400))
    assert barely.warnings[0].startswith("4 of 400 chains accepted less than 1% of their")


def test_superchains_of_a_trajectory():
    draws = noise(64, 20, 2) + noise(16, 1, 2, seed=1).repeat_interleave(4, dim=0)
    found = summary(draws, superchains=16)
    torch.testing.assert_close(found.table["nested_rhat"], nested_rhat(draws, 16))
    assert any(w.startswith("nested R-hat is ") for w in found.warnings)
    draws[5, 3] = torch.inf
    found = summary(draws, superchains=16)
    assert found.warnings[0].startswith("1 of 64 chains are NaN or infinite")
    assert "nested_rhat" not in found.table.columns


def test_moments():
    draws = noise(64, 100, 2).double()
    found = summary(moments_of(draws))
    table = found.table
    torch.testing.assert_close(table["mean"], draws.mean((0, 1)))
    torch.testing.assert_close(table["sd"], draws.flatten(0, 1).std(0))
    torch.testing.assert_close(table["mcse_mean"], draws.mean(1).std(0) / 8)
    assert (table["ess_mean"] / 6400 - 1).abs().max() < 0.6  # of 64 means: errors of 18 %
    assert (table["rhat"] - 1).abs().max() < 0.01
    assert found.warnings == ()
    scattered = draws + noise(64, 1, 2, seed=1)
    apart = summary(moments_of(scattered))
    assert any(w.startswith("R-hat is 1.") for w in apart.warnings)
    for i in range(2):
        theirs = array_stats.rhat(scattered[..., i].numpy(), method="identity")
        assert apart.table["rhat"][i].item() == pytest.approx(theirs)
    still = draws.clone()
    still[3] = still[3, :1]
    assert summary(moments_of(still)).warnings[0].startswith("1 of 64 chains never moved")
    torch.testing.assert_close(
        summary(moments_of(draws), superchains=8).table["nested_rhat"],
        nested_rhat(moments_of(draws), 8),
    )


def test_large_states_print_their_worst_rows():
    draws = noise(4, 250, 30)
    draws[0, :, 17] += 9
    found = summary(draws, max_rows=5)
    lines = str(found).splitlines()
    assert len(found.table) == 30
    assert lines[3].startswith("x[17] ")
    assert "… 25 more rows; these are the worst" in lines
    assert sum(line.startswith("x[") for line in lines) == 5
    assert len({len(line) for line in lines[2:8]}) == 1


def test_notebooks_get_html():
    draws = noise(4, 500, 2)
    draws[0] += 3
    html = summary(draws, name="<x>")._repr_html_()
    assert html.count("<tr>") == 3
    assert "&lt;x&gt;[1]" in html
    assert "<li>R-hat is" in html


def test_digits_follow_the_errors():
    found = summary(noise(4, 500, 1) * 1e-3 + 5)
    line = str(found).splitlines()[3].split()
    error = float(line[3])
    assert 2e-5 < error < 3e-5
    assert len(line[1].split(".")[1]) == 6  # two digits of the error


def test_bad_arguments():
    with pytest.raises(ShapeError, match=r"draws\[None\]"):
        summary(noise(10))
    with pytest.raises(ShapeError, match="sample something"):
        summary(torch.empty(4, 0, 2))
    with pytest.raises(ConfigurationError, match="max_rows"):
        summary(noise(4, 10), max_rows=0)
    with pytest.raises(ConfigurationError, match="as many chains"):
        summary(noise(5, 10), superchains=2)


def test_arrays_and_integers():
    spins = torch.where(noise(4, 500, 2) > 0, 1, -1).to(torch.int8)
    found = summary(spins.numpy())
    assert found.table["ess_bulk_sq"].isnan().all()
    assert found.warnings == ()
