"""What samplers refuse, and in what words."""

import math

import pytest
import torch
from makers import MAKERS, RandomWalk, quadratic

from ebm_core import (
    ConfigurationError,
    NumericalError,
    ShapeError,
    SupportError,
    as_energy,
    spin,
)
from ebm_samplers import (
    LangevinDynamics,
)

X = torch.zeros(4, 3, dtype=torch.float64)


@pytest.mark.parametrize("offset", (1e6, 1e12))
def test_energies_too_large_for_float32_are_refused(offset):
    energy = as_energy(lambda x: x.square().sum(1) + offset)
    x = torch.zeros(4, 2)
    for make in (MAKERS["mala"], MAKERS["hmc"], MAKERS["walk"]):
        with pytest.raises(NumericalError, match="4 of 4 chains.*float64.*offset"):
            make(energy).sample_chain(x, 3)
        make(energy).sample_chain(x.double(), 3)
        make(energy).sample_chain(x, 1, beta=1e5 / offset)
    LangevinDynamics(energy, 0.1).sample_chain(x, 3)


def test_energies_that_become_too_large_are_refused():
    sampler = RandomWalk(lambda x: -1e3 * x.sum(1), 5.0)
    with pytest.raises(NumericalError, match="float64") as caught:
        sampler.sample(torch.ones(3, 2), n_steps=1000, seed=0)
    assert caught.value.result.final.shape == (3, 2)


@pytest.mark.parametrize(
    ("x", "message"),
    (
        (torch.tensor([[0.0], [math.nan], [1.0]]), "1 of 3 start states"),
        (torch.tensor([[-1.0], [-2.0]]), "2 of 2 start states"),
        (torch.tensor([[math.inf]]), "1 of 1 start states"),
    ),
)
def test_starts_that_are_not_finite_are_refused(make, x, message):
    sampler = make(as_energy(lambda x: torch.where(x >= 0, x, math.inf).sum(1)))
    with pytest.raises(NumericalError, match=message):
        sampler.sample(x, n_steps=1, seed=0)
    with pytest.raises(NumericalError, match=message):
        sampler.sample_chain(x, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"x_init": X[0], "n_steps": 1}, ShapeError, r"x\[None\]"),
        ({"x_init": X[:, :2], "n_steps": 1}, ShapeError, "shape"),
        ({"x_init": X[None], "n_steps": 1}, ShapeError, "one batch axis"),
        ({"x_init": X[:0], "n_steps": 1}, ShapeError, "one chain or more"),
        ({"x_init": X.long(), "n_steps": 1}, ConfigurationError, "floating"),
        ({"x_init": X.tolist(), "n_steps": 1}, ConfigurationError, "list"),
        ({"x_init": X, "n_steps": 1, "n_samples": 4}, ConfigurationError, "n_samples"),
        ({"x_init": X, "n_steps": 1, "dim": 3}, ConfigurationError, "dim"),
        ({"n_steps": 1}, ConfigurationError, "n_samples"),
        ({"n_samples": 0, "n_steps": 1}, ConfigurationError, "n_samples"),
        ({"n_samples": 4, "dim": 2, "n_steps": 1}, ShapeError, "event shape"),
        ({"x_init": X, "n_steps": 0}, ConfigurationError, "n_steps"),
        ({"x_init": X, "n_steps": 1.0}, ConfigurationError, "n_steps"),
        ({"x_init": X, "n_steps": 2, "thin": 3}, ConfigurationError, "thin"),
        ({"x_init": X, "n_steps": 2, "thin": 0}, ConfigurationError, "thin"),
        ({"x_init": X, "n_steps": 2, "burn_in": -1}, ConfigurationError, "burn_in"),
        ({"x_init": X, "n_steps": 2, "keep": "all"}, ConfigurationError, "keep"),
        ({"x_init": X, "n_steps": 2, "seed": -1}, ConfigurationError, "seed"),
        (
            {"x_init": X, "n_steps": 2, "seed": 0, "first_chain": 2**32},
            ConfigurationError,
            "first_chain",
        ),
        ({"x_init": X, "n_steps": 2, "beta": 0}, ConfigurationError, "beta"),
        ({"x_init": X, "n_steps": 2, "beta": -torch.ones(4)}, ConfigurationError, "beta"),
        ({"x_init": X, "n_steps": 2, "beta": torch.ones(3)}, ShapeError, "beta"),
        ({"x_init": X, "n_steps": 2, "beta": [1.0, 2.0]}, ShapeError, "beta"),
        ({"x_init": X, "n_steps": 2, "beta": [1.0, 2.0, -1.0, 1.0]}, ConfigurationError, "beta"),
        ({"x_init": X, "n_steps": 2, "beta": [1.0, "a", 1.0, 1.0]}, ConfigurationError, "beta"),
        ({"x_init": X, "n_steps": 2, "beta": "abcd"}, ConfigurationError, "beta"),
        ({"resume": {"x": X}, "n_steps": 2}, ConfigurationError, "resume"),
    ),
)
def test_wrong_arguments_are_refused(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(quadratic()).sample(**arguments)


@pytest.mark.parametrize("n_steps", (0, -5, 1.5, True))
def test_sample_chain_refuses_wrong_numbers_of_steps(make, n_steps):
    with pytest.raises(ConfigurationError, match="n_steps"):
        make(quadratic()).sample_chain(X, n_steps)


def test_energies_that_do_not_fit_are_refused(make):
    with pytest.raises(SupportError):
        make(as_energy(lambda x: x.sum(1), support=spin))
    free = make(lambda x: x.square().sum(1))
    with pytest.raises(ConfigurationError, match="dim"):
        free.sample(n_samples=4, n_steps=1)
    with pytest.raises(ShapeError, match=r"x\[None\]"):
        free.sample_chain(torch.zeros(3), 1)
    with pytest.raises(ShapeError, match="one number a state"):
        make(lambda x: x.square()).sample_chain(torch.zeros(3, 2), 1)


def test_a_missing_chain_axis_is_named(make):
    weight = torch.ones(2, 1)
    for energy, x in (
        (lambda x: x.square().sum(-1), torch.ones(2)),
        (lambda x: x.square().sum(1), torch.ones(2)),
        (lambda x: (x.square() @ weight)[:, 0], torch.ones(2)),
        (lambda x: x.square().reshape(len(x), 6).sum(1), torch.ones(2, 3)),
    ):
        with pytest.raises(ShapeError, match=r"x\[None\]"):
            make(energy).sample(x, n_steps=2)
        make(energy).sample(x[None], n_steps=2)


def test_another_dtype_than_the_energy_takes_is_named(make):
    network = torch.nn.Linear(2, 1)
    energy = as_energy(lambda x: network(x)[:, 0] + x.square().sum(1), network)
    with pytest.raises(ConfigurationError, match=r"torch.float64.*torch.float32"):
        make(energy).sample(torch.zeros(3, 2, dtype=torch.float64), n_steps=2)


def test_other_errors_of_the_energy_are_left_as_they_are(make_in_torch):
    calls = [0]

    def fails_once(x):
        calls[0] += 1
        if calls[0] == 1:
            raise RuntimeError("out of memory")
        return x.square().flatten(1).sum(1)

    with pytest.raises(RuntimeError, match="out of memory"):
        make_in_torch(fails_once).sample(torch.ones(4, 2), n_steps=2)
    with pytest.raises(RuntimeError, match="mat1"):
        make_in_torch(lambda x: (x @ torch.ones(5, 1))[:, 0]).sample(torch.ones(4, 2), n_steps=2)
