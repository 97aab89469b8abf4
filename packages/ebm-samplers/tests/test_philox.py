"""Philox against Random123's vectors; its normals and uniforms against NumPy in float64."""

import numpy as np
import pytest
import torch

from ebm_core import ConfigurationError, ShapeError
from ebm_samplers import fill_normals, fill_uniforms, philox4x32
from ebm_samplers.philox import (
    cos_sin_turn,
    cos_sin_turn_float64,
    minus_log_unit,
    minus_log_unit_float64,
    philox_block,
)

# kat_vectors of Random123, philox4x32 with 10 rounds: counter, key, result
KNOWN_ANSWERS = (
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    assert philox4x32(words(counter), words(key)).tolist() == words(result)
    compiled = philox_block(*(np.uint64(w) for w in words(counter) + words(key)))
    assert list(compiled) == words(result)


def test_leading_axes_and_tensors():
    counters = np.array([words(counter) for counter, _, _ in KNOWN_ANSWERS])
    keys = torch.tensor([words(key) for _, key, _ in KNOWN_ANSWERS])
    got = philox4x32(counters, keys)
    assert got.dtype == np.uint32
    assert got.tolist() == [words(result) for _, _, result in KNOWN_ANSWERS]
    assert philox4x32(counters[:, None], keys[0]).shape == (3, 1, 4)


@pytest.mark.parametrize(
    ("counter", "key", "error"),
    (
        ([0, 0, 0], [0, 0], ShapeError),
        ([0, 0, 0, 0], [0], ShapeError),
        ([0, 0, 0, 2**32], [0, 0], ConfigurationError),
        ([0, 0, 0, 0], [-1, 0], ConfigurationError),
        ([0.0, 0, 0, 0], [0, 0], ConfigurationError),
    ),
)
def test_wrong_words_are_refused(counter, key, error):
    with pytest.raises(error):
        philox4x32(counter, key)


def test_polynomials():
    rng = np.random.default_rng(0)
    edges = [0, 1, 2**24, 2**31, 0xB504F333, 0xB504F334, 2**32 - 2**24, 2**32 - 2, 2**32 - 1]
    sample = np.concatenate([edges, rng.integers(0, 2**32, 20_000)]).astype(np.uint32)
    near_zero = -np.log1p(-((~sample).astype(float) + 0.5) * 2.0**-32)
    far = -np.log((sample + 0.5) * 2.0**-32)
    log = np.where(sample > 2**31, near_zero, far)
    got = np.array([minus_log_unit(w) for w in sample])
    assert np.abs(got / log - 1).max() < 2e-7
    got = np.array([minus_log_unit_float64(w) for w in sample])
    assert np.abs(got / log - 1).max() < 1e-15
    angle = 2 * np.pi * sample.astype(float) * 2.0**-32
    for function, error in ((cos_sin_turn, 1.2e-7), (cos_sin_turn_float64, 1e-15)):
        cosine, sine = np.array([function(w) for w in sample]).T
        assert np.abs(cosine - np.cos(angle)).max() < error
        assert np.abs(sine - np.sin(angle)).max() < error


def test_layout_of_normals_and_uniforms():
    key, stream, chain, index = 0xDEADBEEF_01234567, 3, 2**32 - 1, (5 << 32) * 4 + 2
    block = philox4x32([chain, 0, 5, stream], [key & 0xFFFFFFFF, key >> 32]).astype(float)
    normals = fill_normals(torch.empty(1, 2, dtype=torch.float64), key, stream, chain, index)
    radius, angle = np.sqrt(-2 * np.log((block[2] + 0.5) / 2**32)), 2 * np.pi * block[3] / 2**32
    expected = [[radius * np.cos(angle), radius * np.sin(angle)]]
    np.testing.assert_allclose(normals, expected, rtol=1e-12)
    uniforms = fill_uniforms(torch.empty(1, 2), key, stream, chain, index)
    assert uniforms.tolist() == [[((int(w) >> 9) + 0.5) * 2.0**-23 for w in block[2:]]]


def test_both_dtypes_give_the_same_numbers():
    single = fill_normals(torch.empty(300, 700), 11, 1, 5, 123)
    double = fill_normals(torch.empty(300, 700, dtype=torch.float64), 11, 1, 5, 123)
    assert (single - double).abs().max() < 2e-6
    single = fill_uniforms(torch.empty(300, 70), 11, 1, 5, 123)
    assert torch.equal(single.double(), fill_uniforms(single.double(), 11, 1, 5, 123))
