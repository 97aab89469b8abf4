"""Chains against plain torch loops that are fed the same Philox numbers."""

import numpy as np
import pytest
import torch
from targets import TARGETS, DoubleWell

from ebm_core import as_energy
from ebm_samplers.fused import fused_energy
from ebm_samplers.noise import fill_normals, fill_uniforms
from ebm_samplers.streams import Stream

KEY, FIRST = 2**40 + 12345, 7
FRICTION = {"underdamped": 0.7}


def numbers(fill, stream, n_chains, k, dtype, first=0):
    return fill(torch.empty(n_chains, k, dtype=dtype), KEY, stream, FIRST, first)


def torch_chain(energy, sampler, x, steps, lengths, mass, beta, first_step=0):
    n, shape, d = len(x), x.shape, x[0].numel()
    stream = Stream.MOMENTUM if sampler == "hmc" else Stream.NOISE
    z = numbers(fill_normals, stream, n, len(steps) * d, x.dtype, first_step * d).view(
        n, len(steps), *shape[1:]
    )
    u = numbers(fill_uniforms, Stream.ACCEPT, n, len(steps), x.dtype, first_step)
    b = beta.view(-1, *(1,) * (x.ndim - 1))
    e, g = energy.energy_and_gradient(x)
    out, accepted, margin = [], [], torch.full((n,), np.inf)
    for t, h in enumerate(steps):
        if sampler == "langevin":
            x = x - h * (b * g) + (2 * h) ** 0.5 * z[:, t]
            e, g = energy.energy_and_gradient(x)
        else:
            if sampler == "mala":
                y = x - h * (b * g) + (2 * h) ** 0.5 * z[:, t]
                ey, gy = energy.energy_and_gradient(y)
                w = (h / 2) ** 0.5 * (b * (g + gy))
                delta = beta * (ey - e) + (w * (w / 2 - z[:, t])).flatten(1).sum(1)
            else:
                p = z[:, t] * mass.sqrt()
                before = p * p / mass
                y, gy, p = x, g, p - h / 2 * b * g
                for k in range(lengths[t]):
                    y = y + h * p / mass
                    ey, gy = energy.energy_and_gradient(y)
                    p = p - (h / 2 if k == lengths[t] - 1 else h) * b * gy
                delta = beta * (ey - e) + (p * p / mass - before).flatten(1).sum(1) / 2
            chance = torch.exp(-delta).clamp(max=1)
            ok = u[:, t] < chance
            margin = torch.minimum(margin, (u[:, t] - chance).abs())
            accepted.append(chance)
            rows = ok.view(-1, *(1,) * (x.ndim - 1))
            x, g, e = torch.where(rows, y, x), torch.where(rows, gy, g), torch.where(ok, ey, e)
        out.append(x)
    return torch.stack(out, 1), e, (torch.stack(accepted, 1) if accepted else None), margin


def fused_chain(energy, sampler, x, steps, lengths, mass, beta, **more):
    flat = np.ascontiguousarray(x.reshape(len(x), -1).numpy())
    m = mass.reshape(1, -1).numpy()
    return fused_energy(energy, x, sampler).run(
        sampler, flat, n_steps=len(steps), step_size=np.array(steps), key=KEY, first_chain=FIRST,
        lengths=np.array(lengths), inverse_mass=1 / m, mass_root=m**0.5,
        beta=beta.reshape(-1, 1).numpy(), friction=FRICTION.get(sampler),
        **{"thin": 1, "keep_draws": True, **more},
    )  # fmt: skip


STEP = {
    "double well": 0.02,
    "mixture": 0.01,
    "dense gaussian": 0.01,
    "images": 0.05,
}


@pytest.mark.parametrize(
    ("name", "sampler", "n_chains"),
    (
        *(("double well", sampler, 70) for sampler in ("langevin", "mala", "hmc")),
        ("double well", "langevin", 1),
        ("double well", "mala", 5),
        ("double well", "hmc", 1),
        ("mixture", "mala", 70),
        ("images", "langevin", 70),
        ("dense gaussian", "langevin", 70),
    ),
)
def test_same_numbers_same_trajectory(name, sampler, n_chains):
    dtype = torch.float64 if name == "mixture" else torch.float32
    make, event = TARGETS[name]
    energy = as_energy(make(dtype))
    g = torch.Generator().manual_seed(4)
    x = torch.randn(n_chains, *event, generator=g, dtype=dtype)
    beta = torch.rand(n_chains, generator=g, dtype=dtype) + 0.5
    mass = torch.rand(event, generator=g, dtype=dtype) + 0.5
    h = STEP[name] ** 0.5 / 2 if sampler == "hmc" else STEP[name]
    steps = [h * (1 - 0.05 * t) for t in range(10)]
    lengths = [1, 3, 2, 5, 1, 4, 2, 2, 3, 1]
    want, e, chance, margin = torch_chain(energy, sampler, x, steps, lengths, mass, beta)
    have = fused_chain(energy, sampler, x, steps, lengths, mass, beta)
    # no decision within rounding of its uniform
    certain = margin > (1e-3 if dtype == torch.float32 else 1e-9)
    assert certain.double().mean() >= 0.5
    draws = torch.from_numpy(have.draws).view(n_chains, 10, *event)
    tolerance = 2e-4 if dtype == torch.float32 else 1e-10
    assert (draws - want)[certain].abs().max() < tolerance
    assert (torch.from_numpy(have.potential[:, -1]) - e)[certain].abs().max() < 20 * tolerance
    if chance is not None:
        assert (torch.from_numpy(have.acceptance) - chance)[certain].abs().max() < 20 * tolerance


@pytest.mark.parametrize("sampler", ("langevin", "underdamped", "mala", "hmc", "nuts"))
def test_chunks_and_numbers_of_chains_change_nothing(sampler):
    energy = as_energy(TARGETS["double well"][0](torch.float32))
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(4))
    ones = torch.ones(300)
    deep = sampler == "nuts"  # some beyond the uniforms made ahead
    steps, lengths, mass = [0.1 if deep else 0.02] * 143, [5 if deep else 2] * 143, torch.ones(2)
    whole = fused_chain(energy, sampler, x, steps, lengths, mass, ones)
    fused, cut = fused_energy(energy, x, sampler), None
    for a, b in ((0, 1), (1, 6), (6, 7), (7, 143)):
        cut = fused.run(
            sampler,
            x.numpy() if cut is None else None,
            n_steps=b - a,
            key=KEY,
            step_size=np.array(steps[a:b]),
            lengths=np.array(lengths[a:b]),
            first_chain=FIRST,
            first_step=a,
            friction=FRICTION.get(sampler),
            state=None if cut is None else cut.state,
        )
    assert np.array_equal(cut.x, whole.x)
    some = fused_chain(energy, sampler, x[:65], steps, lengths, mass, ones[:65])
    assert np.array_equal(some.x, whole.x[:65])


def test_thinned_draws_and_statistics():
    energy = DoubleWell()
    x = torch.randn(70, 2, generator=torch.Generator().manual_seed(4))
    args = ("mala", x, [0.1] * 12, [1] * 12, torch.ones(2), torch.ones(70))
    fine, coarse = fused_chain(energy, *args), fused_chain(energy, *args, thin=3)
    assert np.array_equal(coarse.draws, fine.draws[:, 2::3])
    assert np.allclose(coarse.acceptance, fine.acceptance.reshape(70, 4, 3).sum(2), atol=1e-6)
    assert np.array_equal(coarse.potential, fine.potential[:, 2::3])


def test_states_of_no_energy_are_never_accepted():
    """exp(-x^1.5) on x > 0: NaN beyond; at a size at which fast arithmetic would show."""
    energy = as_energy(lambda x: (x**1.5).sum(1))
    x = torch.rand(10_000, 1, generator=torch.Generator().manual_seed(0)) + 0.05
    run = fused_chain(energy, "hmc", x, [0.3] * 30, [4] * 30, torch.ones(1), torch.ones(10_000))
    assert (run.draws > 0).all()
    assert np.isfinite(run.potential).all()
    assert (run.wild > 0).any()
    assert (run.acceptance[(run.wild > 0)] == 0).all()


def test_every_step_of_an_unadjusted_chain_is_watched():
    """States of infinite energy and no gradient between draws: chains leave, and come back."""
    energy = as_energy(lambda x: torch.where(x.abs() < 2, 0.5 * x**2, torch.inf).sum(1))
    x = torch.full((10_000, 1), 1.5)
    args = ("langevin", x, [0.1] * 8, [1] * 8, torch.ones(1), torch.ones(10_000))
    coarse = fused_chain(energy, *args, thin=4)
    want, *_ = torch_chain(energy, *args)
    outside = (want.abs() >= 2).view(10_000, 2, 4)
    came_back = outside.any(2) & ~outside[:, :, -1]
    assert came_back.any()
    near = ((want.abs() - 2).abs() < 1e-5).view(10_000, 2, 4).any(2)
    assert (torch.from_numpy(coarse.wild > 0) == outside.any(2))[~near].all()


@pytest.mark.parametrize("offset", (1e6, 1e12))
def test_additive_constants_do_not_enter_accept_tests(offset):
    x = torch.randn(70, 2, generator=torch.Generator().manual_seed(4))
    args = (x, [0.05] * 20, [1] * 20, torch.ones(2), torch.ones(70))
    a, b = (fused_chain(DoubleWell(shift=shift), "mala", *args) for shift in (0.0, offset))
    assert np.array_equal(a.x, b.x)
    assert np.allclose(b.potential, a.potential + offset, rtol=2e-7)
    assert (b.largest * np.finfo(np.float32).eps > 0.02).all()  # what the sampler refuses
    assert (a.largest * np.finfo(np.float32).eps < 0.02).all()


def test_dense_mass():
    energy = DoubleWell()
    g = torch.Generator().manual_seed(4)
    x, a = torch.randn(70, 2, generator=g), torch.randn(2, 2, generator=g)
    mass = a @ a.T + torch.eye(2)
    root, inverse = torch.linalg.cholesky(mass), torch.linalg.inv(mass)
    p = numbers(fill_normals, Stream.MOMENTUM, 70, 2, torch.float32) @ root.T
    y = x + 0.1 * (p - 0.05 * energy.gradient(x)) @ inverse
    run = fused_energy(energy, x, "hmc").run(
        "hmc",
        x.numpy(),
        n_steps=1,
        step_size=0.1,
        key=KEY,
        first_chain=FIRST,
        inverse_mass=inverse.numpy(),
        mass_root=root.numpy().copy(),
    )
    moved = (run.x != x.numpy()).any(1)
    assert moved.mean() > 0.8
    assert np.abs(run.x - y.numpy())[moved].max() < 1e-5
