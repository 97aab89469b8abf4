"""`fit`: the plain loop's numbers, bit for bit across cuts of any kind, and clean ends."""

import errno
import math
import os
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from ebm_core import BaseLoss, ConfigurationError, NumericalError, ShapeError, make_generator
from ebm_core.testing import QuadraticEnergy
from ebm_utils import EightGaussians, ParameterAverage, cosine_schedule, fit, plot_training
from ebm_utils.training import read_checkpoint, write_checkpoint

SCRIPT = Path(__file__).with_name("persistent_run.py")
RUN = runpy.run_path(str(SCRIPT))
run, make_loss, run_data = RUN["run"], RUN["make_loss"], RUN["data"]


class Likelihood(BaseLoss):
    """The exact negative log-likelihood of a quadratic energy."""

    def compute(self, x, weight=None):
        nll = self.energy(x) + self.energy.log_normalizer()
        return nll.mean() if weight is None else (weight * nll).mean(), {"n": torch.tensor(len(x))}


def likelihood():
    return Likelihood(QuadraticEnergy(torch.zeros(2)))


def states(loss):
    return [p.detach().clone() for p in loss.parameters()]


def assert_same(first, second):
    """Two losses are in the same state, bit for bit."""
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        same = torch.equal(a[name], b[name]) if torch.is_tensor(a[name]) else a[name] == b[name]
        assert same, name


def assert_same_results(first, second):
    assert first.history == second.history
    for a, b in zip(first.average.values, second.average.values, strict=True):
        assert torch.equal(a, b)
    assert_same(first.loss, second.loss)


# The loop


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


@pytest.mark.parametrize("kind", (bool, np.bool_, torch.tensor))
def test_a_callback_ends_the_run(kind):
    options = {"evaluate": lambda s: kind(s == 6), "evaluate_every": 2}
    result = fit(likelihood(), run_data(), n_steps=50, **options)
    assert (result.step, result.stopped) == (6, "callback")


def test_what_an_evaluation_gives_is_not_dropped_in_silence():
    with pytest.raises(ConfigurationError, match="evaluate gave 0.5"):
        fit(likelihood(), run_data(), n_steps=2, evaluate=lambda step: 0.5)


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


# Data


def test_each_epoch_visits_every_item_once_in_an_order_of_its_own():
    seen = []
    loss = likelihood()
    x = torch.arange(24.0).reshape(12, 2)

    def record(batch):
        seen.append(batch[:, 0].clone())
        return loss(batch)

    fit(record, x, epochs=2, batch_size=4, parameters=loss)
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first.sort().values, x[:, 0])
    assert torch.equal(second.sort().values, x[:, 0])
    assert not torch.equal(first, second)


def test_all_kinds_of_data_give_the_same_batches():
    x, w = run_data(), torch.rand(100)

    class Numbered:
        def __len__(self):
            return 100

        def __getitem__(self, index):
            return x[index], w[index]

    losses = []
    for data in ((x, w), TensorDataset(x, w), Numbered()):
        loss = likelihood()
        fit(loss, data, epochs=2, batch_size=8)
        losses.append(loss)
    for loss in losses[1:]:
        assert_same(losses[0], loss)


def test_a_loader_that_shuffles_gives_the_batches_of_a_plain_loop():
    loader = DataLoader(TensorDataset(torch.arange(20.0)), batch_size=5, shuffle=True)
    torch.manual_seed(0)
    plain = [x for _ in range(3) for (x,) in loader]
    seen, weight = [], nn.Parameter(torch.zeros(()))

    def loss(x):
        seen.append(x)
        return (weight * x).sum()

    torch.manual_seed(0)
    fit(loss, loader, epochs=3, parameters=[weight])
    assert torch.equal(torch.stack(seen), torch.stack(plain))


def test_a_loader_of_unknown_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(run_data())

    loss = likelihood()
    assert fit(loss, DataLoader(Stream(), batch_size=60), n_steps=5).step == 5
    with pytest.raises(ConfigurationError, match="no known length"):
        fit(loss, DataLoader(Stream(), batch_size=60), epochs=2)


def test_data_that_can_be_read_only_once_end_with_an_error():
    class Once:
        batches = iter([run_data()])

        def __iter__(self):
            return self.batches

    with pytest.raises(ConfigurationError, match="ended after 1 batches, at step 2"):
        fit(likelihood(), Once(), n_steps=3)


def test_the_order_is_made_on_the_cpu():
    seen, x = [], run_data()
    parameter = nn.Parameter(torch.zeros(2))

    def loss(batch):
        seen.append(batch)
        return (parameter * batch).sum()

    with torch.device("meta"):  # stands for a default device that is not the data's
        sgd = torch.optim.SGD([parameter], lr=0.1)
        fit(loss, x, n_steps=2, batch_size=50, optimizer=sgd)
    assert torch.equal(torch.cat(seen).sort(0).values, x.sort(0).values)


def test_fresh_data_and_iterables():
    data = EightGaussians(64)
    by_step, by_list = likelihood(), likelihood()
    batches = [data.sample(16, seed=step) for step in range(4)]
    fit(by_step, lambda step: data.sample(16, seed=step % 4), n_steps=8)
    fit(by_list, [(batch,) for batch in batches], epochs=2)
    assert_same(by_step, by_list)
    finite, whole = likelihood(), likelihood()
    fit(finite, data, n_steps=2, batch_size=64, seed=None)
    fit(whole, [(data.data,)], n_steps=2)
    for a, b in zip(states(finite), states(whole), strict=True):
        torch.testing.assert_close(a, b)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(batches)

    streamed = likelihood()
    fit(streamed, Stream(), n_steps=8)
    assert_same(by_step, streamed)


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


def test_ctrl_c_finishes_the_step_and_writes_a_checkpoint(tmp_path):
    path, before = tmp_path / "run.pt", signal.getsignal(signal.SIGINT)
    loss = make_loss()

    def interrupt(step):
        if step == 11:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"after step 11; .*run.pt") as info:
        run(loss, n_steps=30, evaluate=interrupt, evaluate_every=1, checkpoint=path)
    assert info.value.result.stopped == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before
    result = run(make_loss(), n_steps=30, checkpoint=path, resume=True)
    assert_same_results(result, run(make_loss(), n_steps=30))


# Checkpoints


def test_killed_at_a_random_step_and_resumed_equals_the_uncut_run(tmp_path):
    path, kill_at = tmp_path / "run.pt", random.SystemRandom().randrange(20, RUN["N_STEPS"] - 20)
    command = (sys.executable, str(SCRIPT), str(path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == kill_at:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert 14 <= read_checkpoint(path)["step"] < RUN["N_STEPS"]
    result = run(make_loss(), checkpoint=path, resume="auto")
    assert_same_results(result, run(make_loss()))


@pytest.mark.parametrize("cut", (1, 7, 24, 29, 30))
@pytest.mark.parametrize(
    "data",
    (
        lambda: DataLoader(TensorDataset(run_data()), batch_size=16, shuffle=True),
        lambda: DataLoader(
            TensorDataset(run_data()), 16, shuffle=True, generator=torch.Generator().manual_seed(1)
        ),
        lambda: DataLoader(
            TensorDataset(run_data()),
            16,
            sampler=RandomSampler(run_data(), generator=torch.Generator().manual_seed(1)),
        ),
        lambda: lambda step: torch.randn(8, 2),
        lambda: run_data(),
    ),
    ids=(
        "DataLoader",
        "DataLoader with a generator",
        "sampler with a generator",
        "callable",
        "tensor",
    ),
)
def test_a_resumed_run_has_the_data_of_the_uncut_one(data, cut, tmp_path):
    path = tmp_path / "run.pt"
    options = {"checkpoint": path, "checkpoint_every": cut}
    torch.manual_seed(4)
    whole = make_loss()
    fit(whole, data(), n_steps=30)
    torch.manual_seed(4)
    fit(make_loss(), data(), n_steps=cut, **options)
    torch.manual_seed(99)
    resumed = make_loss()
    result = fit(resumed, data(), n_steps=30, resume=True, **options)
    assert_same(whole, resumed)
    assert result.steps == list(range(1, 31))


def test_numpy_and_python_random_numbers_go_on_too(tmp_path):
    def noisy(step):
        numbers = [np.random.rand(), random.random()]  # noqa: NPY002
        return torch.tensor([numbers])

    whole, resumed = likelihood(), likelihood()
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    fit(likelihood(), noisy, n_steps=4, checkpoint=tmp_path / "run.pt")
    fit(resumed, noisy, n_steps=9, checkpoint=tmp_path / "run.pt", resume=True)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    fit(whole, noisy, n_steps=9)
    assert_same(whole, resumed)


def test_parameters_outside_modules_are_saved(tmp_path):
    weight = nn.Parameter(torch.zeros(2))

    def loss(x):
        return (x - weight).square().mean()

    fit(loss, run_data(), n_steps=5, parameters=[weight], checkpoint=tmp_path / "run.pt")
    trained = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
    options = {"checkpoint": tmp_path / "run.pt", "resume": True}
    fit(loss, run_data(), n_steps=5, parameters=[weight], **options)
    assert torch.equal(weight, trained)


def test_a_cut_while_a_checkpoint_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    write_checkpoint(path, {"step": 1})

    class Cut(BaseException):
        pass

    def cut(descriptor):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", cut)
        with pytest.raises(Cut):
            write_checkpoint(path, {"step": 2})
    (partial,) = (p for p in tmp_path.iterdir() if p != path)
    assert read_checkpoint(path)["step"] == 1
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_checkpoint(partial)
    write_checkpoint(path, {"step": 3})
    assert read_checkpoint(path)["step"] == 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_checkpoint_and_the_result(tmp_path, monkeypatch):
    path, loss = tmp_path / "run.pt", likelihood()
    fit(loss, run_data(), n_steps=2, checkpoint=path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left") as info:
        fit(loss, run_data(), n_steps=5, checkpoint=path, checkpoint_every=3, resume=True)
    assert (info.value.result.step, info.value.result.steps) == (3, [1, 2, 3])
    assert list(tmp_path.iterdir()) == [path]
    assert read_checkpoint(path)["step"] == 2


def test_no_checkpoint_is_overwritten_or_begun_by_mistake(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(ConfigurationError, match="there is no checkpoint"):
        run(make_loss(), n_steps=2, checkpoint=path, resume=True)
    with pytest.raises(ConfigurationError, match="no folder"):
        run(make_loss(), n_steps=2, checkpoint=tmp_path / "nowhere" / "run.pt")
    run(make_loss(), n_steps=2, checkpoint=path, resume="auto")
    with pytest.raises(ConfigurationError, match="exists"):
        run(make_loss(), n_steps=2, checkpoint=path)
    path.write_bytes(b"something else")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        run(make_loss(), n_steps=2, checkpoint=path, resume=True)


@pytest.mark.parametrize(
    "change",
    (
        {"batch_size": 8},
        {"seed": 4},
        {"schedule": None},
        {"ema_decay": None},
        {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)},
    ),
)
def test_other_arguments_do_not_resume(change, tmp_path):
    path = tmp_path / "run.pt"
    run(make_loss(), n_steps=3, checkpoint=path)
    with pytest.raises(ConfigurationError, match="as in the run that is resumed"):
        run(make_loss(), n_steps=6, checkpoint=path, resume=True, **change)
    other = likelihood()
    with pytest.raises(ConfigurationError):
        run(other, n_steps=6, checkpoint=path, resume=True)


def test_a_state_that_could_not_be_read_is_not_written(tmp_path):
    class Odd(Likelihood):
        def get_extra_state(self):
            return Path("somewhere")

        def set_extra_state(self, state):
            pass

    with pytest.raises(ConfigurationError, match="the state of modules"):
        loss = Odd(QuadraticEnergy(torch.zeros(2)))
        fit(loss, run_data(), n_steps=2, checkpoint=tmp_path / "run.pt")
    assert list(tmp_path.iterdir()) == []
