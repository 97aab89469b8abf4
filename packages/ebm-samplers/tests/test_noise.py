"""Numbers do not depend on how they are asked for, and have the distribution they claim."""

import math

import pytest
import torch
from scipy import stats

from ebm_core import ConfigurationError, ShapeError
from ebm_samplers import Stream, fill_normals, fill_uniforms
from ebm_samplers.noise import Noise


@pytest.mark.parametrize("fill", (fill_normals, fill_uniforms))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_numbers_do_not_depend_on_the_pieces(fill, dtype):
    whole = fill(torch.empty(200, 301, dtype=dtype), 3, Stream.NOISE, 10, 1001)
    for rows, columns in ((7, 1), (1, 301), (200, 2), (130, 5), (1, 1), (13, 290)):
        for i, j in ((0, 0), (64, 3), (200 - rows, 301 - columns)):
            i, j = min(i, 200 - rows), min(j, 301 - columns)
            piece = fill(torch.empty(rows, columns, dtype=dtype), 3, Stream.NOISE, 10 + i, 1001 + j)
            assert torch.equal(piece, whole[i : i + rows, j : j + columns])


def test_streams_keys_and_chains_differ():
    first = fill_normals(torch.empty(2, 8), 0, Stream.NOISE)
    assert not torch.isclose(first[0], first[1]).any()
    for key, stream in ((1, Stream.NOISE), (2**32, Stream.NOISE), (0, Stream.ACCEPT)):
        assert not torch.isclose(first, fill_normals(torch.empty(2, 8), key, stream)).any()
    # public, as seeds are
    names = "START NOISE MOMENTUM ACCEPT LENGTH DIRECTION SWAP PROPOSAL LEAF UNITS"
    assert {stream.name: int(stream) for stream in Stream} == {
        name: number for number, name in enumerate(names.split())
    }


def test_any_memory_layout_and_dtype():
    expected = fill_normals(torch.empty(4, 6), 1, 2)
    assert torch.equal(fill_normals(torch.empty(6, 4).T, 1, 2), expected)
    half = fill_normals(torch.empty(4, 6, dtype=torch.bfloat16), 1, 2)
    assert torch.equal(half, expected.bfloat16())
    assert fill_normals(torch.empty(0, 6), 1, 2).shape == (0, 6)


@pytest.mark.parametrize("shape", ((1000, 1000), (1_000_000, 1), (1, 1_000_000)))
def test_distribution(shape):
    z = fill_normals(torch.empty(shape), 2026, Stream.NOISE).double().flatten()
    n = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(z.pow(power).mean() - moment) < 5 * math.sqrt(variance / n)
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-6
    pairs = z[: n // 4 * 4].view(-1, 4)
    correlation = pairs.T @ pairs / len(pairs) - torch.eye(4, dtype=z.dtype)
    assert correlation.abs().max() < 5 * math.sqrt(2 / len(pairs))
    u = fill_uniforms(torch.empty(shape), 2026, Stream.ACCEPT).double().flatten()
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-6
    assert 0 < u.min() < u.max() < 1


@pytest.mark.parametrize(
    ("shape", "numbers", "error"),
    (
        ((4,), (0, 1, 0, 0), ShapeError),
        ((4, 4), (2**64, 1, 0, 0), ConfigurationError),
        ((4, 4), (0, 2**32, 0, 0), ConfigurationError),
        ((4, 4), (0, 1, 2**32 - 3, 0), ConfigurationError),
        ((4, 4), (0, 1, -1, 0), ConfigurationError),
        ((4, 4), (0, 1, 0, 2**64 - 3), ConfigurationError),
    ),
)
def test_what_does_not_fit_is_refused(shape, numbers, error):
    with pytest.raises(error):
        fill_normals(torch.empty(shape), *numbers)


@pytest.mark.parametrize("event", ((), (1,), (3,), (3, 4), (70_000,)))
def test_noise_of_a_step_does_not_depend_on_blocks(event):
    like = torch.empty(2, *event)
    noise = Noise(9, 4, like)
    size = math.prod(event)
    assert noise.block * size % 4 == 0
    for first, n in ((0, 1), (5, 3), (6, 1)):
        noise.open(first, n)
        for step in range(first, first + n):
            flat = fill_normals(torch.empty(2, size), 9, Stream.NOISE, 4, step * size)
            assert torch.equal(noise.normals(Stream.NOISE, step), flat.view_as(like))
            uniforms = fill_uniforms(torch.empty(2, 1), 9, Stream.ACCEPT, 4, step)[:, 0]
            assert torch.equal(noise.uniforms(Stream.ACCEPT, step), uniforms)
            shared = fill_uniforms(torch.empty(1, 1), 9, Stream.LENGTH, 0, step).item()
            assert noise.shared_uniform(Stream.LENGTH, step) == shared
