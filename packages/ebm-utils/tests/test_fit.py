"""`fit`: the plain loop's numbers, and clean ends."""

import math
import random
import signal

import numpy as np
import pytest
import torch
from likelihoods import Likelihood, assert_same, assert_same_results, likelihood
from persistent_run import make_loss, run, run_data
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from ebm_core import (
    BaseLoss,
    ConfigurationError,
    NumericalError,
    ShapeError,
    as_energy,
    make_generator,
)
from ebm_core.testing import QuadraticEnergy
from ebm_utils import ParameterAverage, cosine_schedule, fit, plot_training
from ebm_utils.training import read_checkpoint


def test_equals_the_plain_loop():
    """Permutation by epoch, loss, clipping, Adam, cosine, average: written out."""
    loss, plain = make_loss(), make_loss()
    torch.manual_seed(5)
    result = run(loss, n_steps=20)

    torch.manual_seed(5)
    x = run_data()
    parameters = list(plain.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    average = [p.detach().clone() for p in parameters]
    for step in range(20):
        epoch, position = divmod(step, 6)  # 100 items make 6 batches of 16
        generator = make_generator((3 + epoch * 0x9E3779B97F4A7C15) % 2**64)
        order = torch.randperm(100, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (0.01 + 0.99 * (1 + math.cos(math.pi * step / 20)) / 2)
        optimizer.zero_grad()
        plain(x[order[16 * position : 16 * position + 16]]).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for a, p in zip(average, parameters, strict=True):
            a.lerp_(p.detach(), 1 - min(0.99, (1 + step) / (10 + step)))
    assert_same(loss, plain)
    assert all(torch.equal(a, b) for a, b in zip(average, result.average.values, strict=True))


def test_evaluations_and_checkpoints_change_nothing(tmp_path):
    def evaluate(step):
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
        return {"mean": make.energy.location.sum().item()}

    make, plain = make_loss(), make_loss()
    torch.manual_seed(1)
    whole = run(plain, n_steps=30)
    torch.manual_seed(1)
    checked = run(
        make, n_steps=30, evaluate=evaluate, evaluate_every=4, checkpoint=tmp_path / "run.pt"
    )
    assert_same_results(whole, checked)
    assert checked.evaluation_steps == [*range(4, 29, 4), 30]


def test_finds_the_maximum_likelihood():
    loss, x = likelihood(), run_data().double()
    loss.double()
    fit(
        loss,
        x,
        n_steps=1500,
        batch_size=100,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.4),
    )
    torch.testing.assert_close(loss.energy.location.detach(), x.mean(0), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        1 / loss.energy.precision.detach(), x.var(0, unbiased=False), atol=1e-4, rtol=0
    )


def test_history_and_what_the_result_holds():
    loss = likelihood()
    result = fit(loss, run_data(), n_steps=10, batch_size=10, record_every=4, schedule="cosine")
    assert result.steps == [4, 8, 10]
    assert set(result.history) == {"loss", "learning_rate", "gradient_norm", "n"}
    assert result.history["n"] == [10.0, 10.0, 10.0]
    rates = result.history["learning_rate"]
    expected = [
        1e-3 * (0.01 + 0.99 * (1 + math.cos(math.pi * (s - 1) / 10)) / 2) for s in (4, 8, 10)
    ]
    assert rates == pytest.approx(expected)
    assert result.stopped == "finished"
    assert result.energy is loss.energy
    plot_training(result.history, x=result.steps).figure.clear()


def test_the_average_is_in_the_energy_that_comes_back_and_in_evaluations():
    loss, seen = likelihood(), []

    def evaluate(step):
        seen.append((loss.energy.location.detach().clone(), loss.training))

    result = fit(loss, run_data(), n_steps=9, ema_decay=0.9, evaluate=evaluate, evaluate_every=9)
    average = result.average.values[0]
    assert torch.equal(result.energy.location, average)
    assert not torch.equal(loss.energy.location, average)
    assert torch.equal(seen[0][0], average)
    assert seen[0][1] is False
    assert loss.training
    result.average.copy_to_parameters()
    assert torch.equal(loss.energy.location, average)


def test_an_average_of_constant_parameters_is_their_value():
    parameter = nn.Parameter(torch.tensor([1.0, 3.0], dtype=torch.float64))
    average = ParameterAverage([parameter], 0.9)
    with torch.no_grad():
        parameter += 1.0
    weights = 1.0
    for t in range(30):
        average.update()
        weights *= min(0.9, (1 + t) / (10 + t))
    expected = torch.tensor([2.0, 4.0]).double() - weights
    torch.testing.assert_close(average.values[0], expected, atol=1e-12, rtol=0)


def test_an_average_of_other_parameters_is_refused():
    two, three = (ParameterAverage([nn.Parameter(torch.zeros(n))]) for n in (2, 3))
    with pytest.raises(ConfigurationError, match=r"\(3,\)"):
        two.load_state_dict(three.state_dict())


@pytest.mark.parametrize("kind", (bool, np.bool_, torch.tensor))
def test_a_callback_ends_the_run(kind):
    options = {"evaluate": lambda s: kind(s == 6), "evaluate_every": 2}
    result = fit(likelihood(), run_data(), n_steps=50, **options)
    assert (result.step, result.stopped) == (6, "callback")


def test_what_an_evaluation_gives_is_not_dropped_in_silence():
    with pytest.raises(ConfigurationError, match="evaluate gave 0.5"):
        fit(likelihood(), run_data(), n_steps=2, evaluate=lambda step: 0.5)
    for value in (None, torch.ones(2), "low"):
        with pytest.raises(ConfigurationError, match="for 'kl'"):
            fit(likelihood(), run_data(), n_steps=2, evaluate=lambda step, v=value: {"kl": v})


@pytest.mark.parametrize("error", (NumericalError("no mass", "mass", "widen it"), OSError("full")))
def test_an_evaluation_that_fails_loses_nothing(error, tmp_path):
    path = tmp_path / "run.pt"

    def evaluate(step):
        if step == 6:
            raise error

    with pytest.raises(type(error)) as info:
        run(make_loss(), n_steps=9, evaluate=evaluate, evaluate_every=3, checkpoint=path)
    assert (info.value.result.step, info.value.result.stopped) == (6, "interrupted")
    if isinstance(error, NumericalError):
        assert "the evaluation after step 6: no mass" in str(info.value)
    result = run(make_loss(), n_steps=9, checkpoint=path, resume=True)
    assert_same_results(result, run(make_loss(), n_steps=9))


@pytest.mark.parametrize("schedule", (lambda o: OneCycleLR(o, 0.1, 12), "constant", None))
def test_schedules(schedule):
    result = fit(likelihood(), run_data(), n_steps=10, schedule=schedule)
    rates = result.history["learning_rate"]
    assert (len(set(rates)) == 1) == (schedule in ("constant", None))


def test_warm_up_rises_to_the_full_rate():
    optimizer = torch.optim.SGD(likelihood().parameters(), lr=1.0)
    schedule = cosine_schedule(optimizer, 10, n_warm_up=3, final=0.0)
    rates = []
    for _ in range(12):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[10:] == pytest.approx([0.0, 0.0], abs=1e-15)


def test_a_progress_bar(capsys):
    fit(likelihood(), run_data(), n_steps=3, progress=True)
    shown = capsys.readouterr().err
    assert "0/3" in shown
    assert "step/s" in shown
    fit(likelihood(), run_data(), n_steps=3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("data", "options", "error"),
    (
        (torch.zeros(0, 2), {}, ConfigurationError),
        (torch.full((3, 2), math.nan), {}, NumericalError),
        ((torch.zeros(3, 2), torch.zeros(4)), {}, ShapeError),
        (3, {}, ConfigurationError),
        (np.zeros((3, 2)), {}, ConfigurationError),
        (np.zeros((3, 2)), {"batch_size": 2}, ConfigurationError),
        ({"x": torch.zeros(3, 2)}, {}, ConfigurationError),
        (iter([torch.zeros(3, 2)]), {}, ConfigurationError),
        ([(torch.zeros(3, 2),)], {"batch_size": 3}, ConfigurationError),
        (lambda step: torch.zeros(3, 2), {"n_steps": None, "epochs": 2}, ConfigurationError),
        (torch.zeros(3, 2), {"epochs": 2}, ConfigurationError),
        (torch.zeros(3, 2), {"n_steps": 0}, ConfigurationError),
        (torch.zeros(3, 2), {"resume": True}, ConfigurationError),
        (torch.zeros(3, 2), {"checkpoint_every": 5}, ConfigurationError),
        (torch.zeros(3, 2), {"schedule": "linear"}, ConfigurationError),
        (torch.zeros(3, 2), {"schedule": ReduceLROnPlateau}, ConfigurationError),
        (
            torch.zeros(3, 2),
            {"schedule": cosine_schedule(torch.optim.SGD(likelihood().parameters()), 2)},
            ConfigurationError,  # of another optimizer
        ),
        (torch.zeros(3, 2), {"ema_decay": 1.0}, ConfigurationError),
        (torch.zeros(3, 2), {"optimizer": lambda p: None}, ConfigurationError),
        (torch.zeros(3, 2), {"parameters": []}, ConfigurationError),
        (torch.zeros(3, 2), {"max_gradient_norm": -1.0}, ConfigurationError),
        (torch.zeros(3, 2), {"evaluate_every": 0}, ConfigurationError),
    ),
)
def test_wrong_arguments_are_refused(data, options, error):
    with pytest.raises(error):
        fit(likelihood(), data, **{"n_steps": 2, **options})


@pytest.mark.parametrize(
    ("loss", "trained", "error"),
    (
        (Likelihood, False, ConfigurationError),  # the class
        (lambda x: x.mean(), False, ConfigurationError),  # nothing to train
        (lambda x: 3.0, True, ConfigurationError),
        (lambda x: x.mean(0), True, ShapeError),
        (lambda x: x.mean(), True, ConfigurationError),  # no gradient
    ),
)
def test_losses_that_are_none_are_refused(loss, trained, error):
    parameters = list(likelihood().parameters()) if trained else None
    with pytest.raises(error):
        fit(loss, run_data(), n_steps=2, parameters=parameters)


# Ends


def test_a_function_whose_parameters_nobody_knows_is_refused():
    """Beside a parameter of the loss's own, the network would be left as it is in silence."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))

    class Shifted(BaseLoss):
        def __init__(self, energy):
            super().__init__(energy)
            self.shift = torch.nn.Parameter(torch.zeros(()))

        def compute(self, x):
            return (self.energy(x) + self.shift).square().mean(), {}

    def function(x):
        return network(x)

    with pytest.raises(ConfigurationError, match="as_energy"):
        fit(Shifted(function), run_data(), n_steps=2)
    fit(Shifted(as_energy(function, network)), run_data(), n_steps=2)
    fit(Shifted(function), run_data(), n_steps=2, parameters=network)


class Breaking(BaseLoss):
    """Finite until a step, then not, in one way or another."""

    def __init__(self, energy, way, at):
        super().__init__(energy)
        self.way, self.at, self.calls = way, at, 0

    def compute(self, x):
        self.calls += 1
        broken = self.calls >= self.at
        loss = self.energy(x).mean()
        if broken and self.way == "raises":
            raise NumericalError("the chains hold NaN", "finite chains", "lower step_size")
        if broken and self.way == "loss":
            loss = loss * math.nan
        if broken and self.way == "gradient":
            loss = loss + (0.0 * self.energy.location.sum()).sqrt()
        return loss, {}


@pytest.mark.parametrize("way", ("raises", "loss", "gradient"))
def test_divergence_stops_the_run_and_leaves_the_last_good_checkpoint(way, tmp_path):
    path = tmp_path / "run.pt"
    loss = Breaking(QuadraticEnergy(torch.zeros(2)), way, at=9)
    with pytest.raises(NumericalError, match=r"step 9: .*run.pt holds the last checkpoint") as info:
        fit(loss, run_data(), n_steps=20, checkpoint=path, checkpoint_every=3)
    assert read_checkpoint(path)["step"] == 6
    result = info.value.result
    assert (result.step, result.stopped, result.steps[-1]) == (8, "diverged", 8)
    assert all(torch.isfinite(p).all() for p in loss.parameters())


@pytest.fixture
def handler():
    """Python's own handler of SIGINT, which a run in the background begins without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_finishes_the_step_and_writes_a_checkpoint(tmp_path, handler):
    path, loss = tmp_path / "run.pt", make_loss()

    def interrupt(step):
        if step == 11:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"after step 11; .*run.pt") as info:
        run(loss, n_steps=30, evaluate=interrupt, evaluate_every=1, checkpoint=path)
    assert info.value.result.stopped == "interrupted"
    assert signal.getsignal(signal.SIGINT) is handler
    result = run(make_loss(), n_steps=30, checkpoint=path, resume=True)
    assert_same_results(result, run(make_loss(), n_steps=30))


def test_ctrl_c_that_ends_the_workers_of_a_loader_is_no_other_error(tmp_path, handler):
    """Workers that do not ignore the signal die of it, and torch raises in the next batch."""
    path = tmp_path / "run.pt"

    class Interrupted:
        def __init__(self, at):
            self.at = at

        def __iter__(self):
            for i, x in enumerate(run_data().split(10)):
                if i == self.at:
                    signal.raise_signal(signal.SIGINT)
                    raise RuntimeError("DataLoader worker exited unexpectedly")
                yield x

    with pytest.raises(KeyboardInterrupt, match=r"after step 3; .*run.pt") as info:
        fit(make_loss(), Interrupted(3), n_steps=8, checkpoint=path)
    assert info.value.result.step == 3
    assert signal.getsignal(signal.SIGINT) is handler
    whole, resumed = make_loss(), make_loss()
    fit(whole, Interrupted(None), n_steps=8)
    fit(resumed, Interrupted(None), n_steps=8, checkpoint=path, resume=True)
    assert_same(whole, resumed)
    with pytest.raises(RuntimeError, match="its own"):
        fit(make_loss(), lambda step: failing(), n_steps=8)


def failing():
    raise RuntimeError("its own")


def test_a_signal_that_is_ignored_stays_so(handler):
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def interrupt(step):
        signal.raise_signal(signal.SIGINT)

    result = fit(likelihood(), run_data(), n_steps=3, evaluate=interrupt, evaluate_every=1)
    assert (result.step, result.stopped) == (3, "finished")
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("handler")
def test_a_second_ctrl_c_does_not_wait():
    steps = []

    def interrupt(step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        steps.append(step)

    with pytest.raises(KeyboardInterrupt):
        fit(likelihood(), run_data(), n_steps=3, evaluate=interrupt, evaluate_every=1)
    assert steps == []
