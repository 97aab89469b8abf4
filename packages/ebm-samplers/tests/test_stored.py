"""Draws in files: those that memory would have, whatever ends the run, and no more memory."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from ebm_core import ConfigurationError, NumericalError, as_energy
from ebm_samplers import MALA, NUTS, HamiltonianMonteCarlo, UnderdampedLangevin
from ebm_samplers.fused import chains as fused_chains
from ebm_samplers.stored import Store

ENGINES = ("torch", "fused")
MAKERS = {
    "mala": lambda e, engine: MALA(e, 0.2, engine=engine),
    "hmc": lambda e, engine: HamiltonianMonteCarlo(e, 0.3, 3, engine=engine),
    "underdamped": lambda e, engine: UnderdampedLangevin(e, 0.2, engine=engine),
}


def wells(x):
    return (x.square() - 1).square().flatten(1).sum(1)


def start(n=5):
    return torch.linspace(-1, 1, 2 * n).view(n, 2)


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture
def small_legs(monkeypatch):
    """Some draws a leg on the fused engine, and a look at the clock after every one."""
    monkeypatch.setattr(fused_chains, "SCRATCH", 40)
    monkeypatch.setattr("ebm_samplers.stored.SECONDS", 0.0)


def assert_equal(have, want, rates=torch.equal):
    assert torch.equal(have.trajectory, want.trajectory)
    assert torch.equal(have.potential, want.potential)
    assert have.stats.keys() == want.stats.keys()
    for name in want.stats:
        assert have.stats[name].dtype == want.stats[name].dtype
        same = rates if name == "acceptance_rate" else torch.equal
        assert same(have.stats[name], want.stats[name]), name
    assert torch.equal(have.final, want.final)


@pytest.mark.parametrize("thin", (1, 3))
@pytest.mark.parametrize("name", MAKERS)
def test_files_have_what_memory_would_have(name, thin, engine, tmp_path, small_legs):
    sampler = MAKERS[name](wells, engine)
    options = {"n_steps": 100, "thin": thin, "burn_in": 4, "keep": "trajectory", "seed": 1}
    want = sampler.sample(start(), **options)
    have = sampler.sample(start(), **options, out=tmp_path / "a.b.npy")
    assert_equal(have, want)
    for file, values in (
        ("a.b.npy", want.trajectory),
        ("a.b.potential.npy", want.potential),
        ("a.b.diverging.npy", want.stats["diverging"]),
    ):
        found = np.load(tmp_path / file)
        assert found.dtype == values.numpy().dtype
        assert np.array_equal(found.swapaxes(0, 1), values.numpy())
    assert torch.equal(
        sampler.sample(n_steps=3, resume=have.resume).final,
        sampler.sample(n_steps=3, resume=want.resume).final,
    )


def test_legs_shorter_than_thin(tmp_path, monkeypatch):
    sampler = MALA(wells, 0.2, engine="fused")
    options = {"n_steps": 40, "thin": 7, "keep": "trajectory", "seed": 1}
    want = sampler.sample(start(), **options)
    ends = iter([3, 7, 21, 22, 28, 30, 35, 40])
    monkeypatch.setattr(fused_chains.FusedChains, "_end", lambda *_: next(ends))
    have = sampler.sample(start(), **options, out=tmp_path / "x.npy")
    assert_equal(have, want, rates=torch.allclose)  # sums of other parts


def test_a_result_is_the_callers_own(tmp_path):
    path = tmp_path / "x.npy"
    result = MALA(wells, 0.2).sample(start(), n_steps=9, keep="trajectory", seed=1, out=str(path))
    before = np.load(path)
    result.trajectory.zero_()
    assert np.array_equal(np.load(path), before)
    assert np.abs(before).min() > 0


@pytest.mark.parametrize("event", ((), (2, 3)))
def test_every_event_shape(event, tmp_path):
    x = torch.full((4, *event), 0.5, dtype=torch.float64)
    energy = as_energy(lambda x: wells(x) if x.ndim > 1 else (x.square() - 1).square())
    result = NUTS(energy, 0.3).sample(
        x, n_steps=3, keep="trajectory", seed=1, out=tmp_path / "x.npy"
    )
    assert result.trajectory.shape == (4, 3, *event)
    assert np.load(tmp_path / "x.npy").shape == (3, 4, *event)
    assert np.load(tmp_path / "x.tree_depth.npy").dtype == np.int64


def test_a_relative_path_is_that_of_the_start(tmp_path, monkeypatch):
    """Whatever a callback does to the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    result = MALA(wells, 0.2).sample(
        *(start(),), n_steps=200, keep="trajectory", seed=1, out="x.npy",
        callback=lambda result: os.chdir("/"),
    )  # fmt: skip
    assert np.load(tmp_path / "x.npy").shape == (200, 5, 2) == result.trajectory.movedim(0, 1).shape


@pytest.mark.parametrize("at", (0, 3, 64, 130))
@pytest.mark.parametrize("error", (KeyboardInterrupt(), NumericalError("a", "b", "c"), OSError()))
def test_a_run_that_an_error_ends(error, at, tmp_path):
    """The file has the draws before it; to go on gives the uncut run."""
    path, calls = tmp_path / "x.npy", [0]

    def energy(x):
        calls[0] += 1
        if calls[0] == 2 * at + 3:
            raise error
        return wells(x)

    options = {"thin": 2, "keep": "trajectory"}
    want = MALA(wells, 0.2, engine="torch").sample(start(), n_steps=280, seed=1, **options)
    sampler = MALA(energy, 0.2, engine="torch")
    with pytest.raises(type(error)) as caught:
        sampler.sample(start(), n_steps=280, seed=1, out=path, **options)
    partial = caught.value.result
    assert partial.trajectory.shape == (5, at, 2)
    assert partial.stats.keys() == want.stats.keys()
    assert np.array_equal(np.load(path).swapaxes(0, 1), want.trajectory[:, :at].numpy())
    rest = sampler.sample(resume=path, n_steps=280 - 2 * at, **options)
    assert_equal(rest, want)


def test_an_interrupt_in_the_middle_of_writing(tmp_path, monkeypatch, small_legs):
    """At every place of it, in turn."""
    options = {"n_steps": 60, "keep": "trajectory"}
    sampler = MALA(wells, 0.2, engine="torch")
    want = sampler.sample(start(), seed=1, **options)
    write, commit, count = Store._write, Store.commit, [0]

    def stopping(original):
        def method(self, *args):
            for after in (False, True):
                if after:
                    original(self, *args)
                count[0] += 1
                if count[0] == stop:
                    raise KeyboardInterrupt

        return method

    monkeypatch.setattr(Store, "_write", stopping(write))
    monkeypatch.setattr(Store, "commit", stopping(commit))
    for stop in (1, 2, 5, 18, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36):
        path, count[0] = tmp_path / f"{stop}.npy", 0
        with pytest.raises(KeyboardInterrupt):
            sampler.sample(start(), seed=1, out=path, **options)
        if stop < 5:
            continue  # nothing had begun
        n = len(np.load(path))
        rest = sampler.sample(resume=path, n_steps=60 - n, keep="trajectory")
        assert_equal(rest, want)


KILLED = """
    import os, signal, torch
    from ebm_samplers import MALA

    torch.set_num_threads(1)
    count = 0

    def callback(result):
        global count
        count += 1
        if count == 12:
            os.kill(os.getpid(), signal.SIGKILL)

    def wells(x):
        return (x.square() - 1).square().flatten(1).sum(1)

    for engine in ("torch", "fused"):
        child = os.fork()
        if child:
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
            continue
        MALA(wells, 0.2, engine=engine).sample(
            torch.linspace(-1, 1, 10).view(5, 2), n_steps=500, burn_in=3, keep="trajectory",
            seed=1, out=f"{engine}.npy", callback=callback,
        )
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with what processes have left."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", textwrap.dedent(KILLED)]
    subprocess.run(command, cwd=folder, check=True)
    return folder


def test_a_run_that_is_killed(engine, killed):
    path = killed / f"{engine}.npy"
    sampler = MALA(wells, 0.2, engine=engine)
    want = sampler.sample(start(), n_steps=500, burn_in=3, keep="trajectory", seed=1)
    found = np.load(path, mmap_mode="r")
    assert len(found) == 60
    assert np.array_equal(found.swapaxes(0, 1), want.trajectory[:, :60].numpy())
    half = sampler.sample(resume=path, n_steps=200, keep="trajectory")
    assert half.trajectory.shape == (5, 260, 2)
    assert_equal(sampler.sample(resume=path, n_steps=240, keep="trajectory"), want)


def test_a_run_that_is_killed_while_it_writes(tmp_path, engine):
    """Lengths may be behind the position; rows beyond it are written again."""
    path = tmp_path / "x.npy"
    options = {"keep": "trajectory"}
    sampler = MALA(wells, 0.2, engine=engine)
    want = sampler.sample(start(), n_steps=90, seed=1, **options)
    sampler.sample(start(), n_steps=60, seed=1, out=path, **options)
    behind = path.with_name("x.resume.pt").read_bytes()
    sampler.sample(resume=path, n_steps=20, **options)
    headers = {file: file.read_bytes()[:64] for file in tmp_path.glob("*.npy")}
    path.with_name("x.resume.pt").write_bytes(behind)  # rows are there, the position is not
    assert_equal(sampler.sample(resume=path, n_steps=30, **options), want)
    for file, header in headers.items():  # the position is there, lengths are not
        with file.open("r+b") as opened:
            opened.write(header)
    sampler.sample(resume=path, n_steps=5, **options)
    assert np.array_equal(np.load(path)[:90].swapaxes(0, 1), want.trajectory.numpy())


def test_an_interrupt_between_legs(engine, tmp_path):
    """On both engines; here it comes from a callback."""
    path, sampler = tmp_path / "x.npy", MALA(wells, 0.2, engine=engine)
    options = {"thin": 2, "keep": "trajectory"}
    want = sampler.sample(start(), n_steps=600, seed=1, **options)

    def callback(result):
        if result.n_draws == 120:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        sampler.sample(start(), n_steps=600, seed=1, out=path, callback=callback, **options)
    assert len(np.load(path)) == caught.value.result.n_draws == 120
    assert_equal(sampler.sample(resume=path, n_steps=360, **options), want)


def test_a_callback_stops_and_another_call_goes_on(engine, tmp_path):
    path, seen = tmp_path / "x.npy", []
    sampler = MALA(wells, 0.2, engine=engine)
    want = sampler.sample(start(), n_steps=300, keep="trajectory", seed=1)

    def callback(result):
        seen.append(result.trajectory.clone())
        return len(seen) == 7

    options = {"keep": "trajectory", "callback": callback}
    sampler.sample(start(), n_steps=300, seed=1, out=path, **options)
    result = sampler.sample(resume=path, n_steps=279, **options)
    assert_equal(result, want)
    assert [draws.shape[1] for draws in seen[:8]] == [3, 6, 9, 12, 15, 18, 21, 23]
    assert all(torch.equal(draws, want.trajectory[:, : draws.shape[1]]) for draws in seen)


def test_memory_does_not_grow_with_the_number_of_draws(engine, tmp_path):
    """Some 100 MB of draws; resident memory is looked at in callbacks."""
    sizes = []

    def callback(result):
        with open("/proc/self/statm") as file:
            sizes.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    energy = as_energy(lambda x: x.square().sum(1) / 2)
    UnderdampedLangevin(energy, 0.2, engine=engine).sample(
        *(torch.zeros(200, 256),), n_steps=500, keep="trajectory", seed=1,
        out=tmp_path / "x.npy", callback=callback,
    )  # fmt: skip
    assert os.path.getsize(tmp_path / "x.npy") > 100e6
    assert max(sizes[20:]) - max(sizes[:20]) < 30e6


def test_paths_that_make_no_sense(tmp_path):
    sampler = MALA(wells, 0.2)
    there, folder = tmp_path / "there.npy", tmp_path / "folder.npy"
    np.save(there, np.zeros(3))
    folder.mkdir()

    def refused(message, **options):
        with pytest.raises(ConfigurationError, match=message):
            sampler.sample(**{"n_steps": 5, "keep": "trajectory"} | options)

    x = {"x_init": start(), "seed": 0}
    refused("there.npy exists", **x, out=there)
    refused("folder.npy exists", **x, out=folder)
    refused("cannot be written", **x, out=tmp_path / "no" / "x.npy")
    refused("ends in .npy", **x, out=tmp_path / "x.npz")
    refused("ends in .npy", **x, out=3)
    for keep in ("final", "moments"):
        refused("keep", **x, out=tmp_path / "x.npy", keep=keep)
    refused("bfloat16", x_init=start().bfloat16(), out=tmp_path / "x.npy")
    refused("no run can go on", resume=there)
    refused("no run can go on", resume=tmp_path / "nothing.npy")
    refused("out", resume=there, out=tmp_path / "x.npy")
    with pytest.raises(NumericalError):
        sampler.sample(torch.full((5, 2), torch.nan), n_steps=5, keep="trajectory",
                       out=tmp_path / "x.npy")  # fmt: skip
    assert sorted(tmp_path.iterdir()) == [folder, there]
    run = tmp_path / "x.npy"
    sampler.sample(**x, n_steps=5, keep="trajectory", out=run)
    refused("keep", resume=run, keep="final")
    refused("seed", resume=run, seed=1)
    with pytest.raises(ConfigurationError, match="MALA"):
        NUTS(wells, 0.2).sample(resume=run, n_steps=5, keep="trajectory")
    run.write_bytes(run.read_bytes()[:-1])
    refused("shorter", resume=run)
    np.save(run, np.zeros((5, 5, 2), order="F"))
    refused("no run can go on", resume=run)


@pytest.mark.parametrize("name", ("draws.npy", "draws.potential.npy", "draws.resume.pt"))
def test_no_file_is_overwritten(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    sampler = MALA(lambda x: x.square().sum(1), 0.1)
    with pytest.raises(ConfigurationError, match=name):
        sampler.sample(
            torch.zeros(3, 2), n_steps=4, keep="trajectory", out=tmp_path / "draws.npy", seed=0
        )
    assert (tmp_path / name).read_bytes() == b"mine"


def test_draws_of_another_dtype_are_refused(tmp_path):
    class Quadratic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(2))

        def forward(self, x):
            return (self.scale * x).square().sum(1)

    energy = Quadratic()
    options = {"n_steps": 3, "keep": "trajectory"}
    path = tmp_path / "draws.npy"
    MALA(energy, 0.1, engine="torch").sample(torch.zeros(3, 2), out=path, seed=0, **options)
    energy.double()
    with pytest.raises(ConfigurationError, match="float64 of shape"):
        MALA(energy, 0.1, engine="torch").sample(resume=path, **options)
