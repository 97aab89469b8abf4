"""Checkpoints of `fit`: bit for bit across cuts of any kind."""

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import persistent_run
import pytest
import torch
from likelihoods import Likelihood, assert_same, assert_same_results, likelihood
from persistent_run import N_STEPS, make_loss, run, run_data
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from ebm_core import ConfigurationError
from ebm_core.testing import QuadraticEnergy
from ebm_utils import fit
from ebm_utils.training import read_checkpoint, write_checkpoint


class Noisy(TensorDataset):
    """Items that draw in the worker."""

    def __getitem__(self, index):
        return (super().__getitem__(index)[0] + torch.rand(2),)


def test_killed_at_a_random_step_and_resumed_equals_the_uncut_run(tmp_path):
    path, kill_at = tmp_path / "run.pt", random.SystemRandom().randrange(20, N_STEPS - 20)
    command = (sys.executable, persistent_run.__file__, str(path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == kill_at:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert 14 <= read_checkpoint(path)["step"] < N_STEPS
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
        lambda: DataLoader(
            Noisy(run_data()), 16, shuffle=True, num_workers=1, persistent_workers=True
        ),
    ),
    ids=(
        "DataLoader",
        "DataLoader with a generator",
        "sampler with a generator",
        "callable",
        "tensor",
        "workers that persist",
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


@pytest.mark.parametrize("optimizer", (torch.optim.NAdam, torch.optim.Adam, torch.optim.ASGD))
def test_the_state_of_an_optimizer_keeps_its_dtypes(optimizer, tmp_path):
    path = tmp_path / "run.pt"

    def run(loss, n_steps, **options):
        return fit(loss, run_data().double(), n_steps=n_steps, optimizer=optimizer, **options)

    whole, resumed = likelihood().double(), likelihood().double()
    run(whole, 40)
    run(likelihood().double(), 7, checkpoint=path)
    run(resumed, 40, checkpoint=path, resume=True)
    assert_same(whole, resumed)


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path):
    rate = np.logspace(-3, -1, 3)[0]

    def run(loss, n_steps, **options):
        return fit(
            loss,
            run_data(),
            n_steps=n_steps,
            optimizer=lambda p: torch.optim.Adam(p, lr=rate),
            seed=np.int64(3),
            checkpoint=tmp_path / "run.pt",
            **options,
        )

    resumed = likelihood()
    run(likelihood(), 5)
    run(resumed, 9, resume=True)
    whole = likelihood()
    fit(whole, run_data(), n_steps=9, seed=3, learning_rate=float(rate))
    assert_same(whole, resumed)


def test_versions_of_modules_are_kept(tmp_path):
    """By which modules know what an older state, or one without an entry, means."""
    state = nn.Sequential(nn.BatchNorm1d(2)).state_dict()
    write_checkpoint(tmp_path / "state.pt", {"module": state})
    read = read_checkpoint(tmp_path / "state.pt")["module"]
    assert read._metadata == state._metadata
    assert read._metadata["0"]["version"] == 2


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


def test_buffers_of_a_module_beside_a_plain_loss_are_saved(tmp_path):
    path = tmp_path / "run.pt"
    norm, twin = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    fit(lambda x: norm(x).sum(), run_data(), n_steps=3, parameters=norm, checkpoint=path)
    options = {"checkpoint": path, "resume": True}
    fit(lambda x: twin(x).sum(), run_data(), n_steps=3, parameters=twin, **options)
    assert_same(norm, twin)


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
        fit(
            lambda x: pytest.fail("a step was made"),
            run_data(),
            n_steps=2,
            checkpoint=tmp_path / "run.pt",
            parameters=loss,
        )
    assert list(tmp_path.iterdir()) == []
