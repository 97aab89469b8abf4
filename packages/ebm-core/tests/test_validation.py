import math
import pickle

import numpy as np
import pytest
import torch
from torch.distributions import constraints

from ebm_core import (
    ConfigurationError,
    EBMError,
    NumericalError,
    ShapeError,
    SupportError,
    draw_key,
    is_discrete,
    make_generator,
    require_continuous,
    require_discrete,
    spin,
    validation,
)


@pytest.mark.parametrize("value", (1, 1.0, np.float32(1), torch.tensor(1.0), torch.tensor([1])))
def test_numbers_of_any_kind_are_taken(value):
    assert validation.check_positive("h", value) == 1.0


@pytest.mark.parametrize(
    "value", (0, -1.0, math.nan, math.inf, "1", None, True, torch.ones(2), torch.tensor(math.nan))
)
def test_what_is_not_positive_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"h is .* greater than 0"):
        validation.check_positive("h", value)


@pytest.mark.parametrize("value", (1.0, True, -1, "2", None))
def test_what_is_no_count_is_refused(value):
    with pytest.raises(ConfigurationError, match="n is"):
        validation.check_integer("n", value)
    assert validation.check_integer("n", np.int64(3)) == 3


def test_bounds_are_named():
    with pytest.raises(ConfigurationError, match="at least 0, less than 1"):
        validation.check_number("rho", 1.0, at_least=0, below=1)


def test_tensors_are_checked():
    assert validation.check_tensor("m", [[1, 2]], (None, 2)).dtype == torch.float32
    assert validation.check_tensor("m", torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(ShapeError, match=r"m has shape \(2,\); wanted \(any, 2\)"):
        validation.check_tensor("m", [1.0, 2.0], (None, 2))
    for wrong in ([1.0, math.nan], "text", object()):
        with pytest.raises(ConfigurationError, match="m "):
            validation.check_tensor("m", wrong)


def test_event_shapes():
    assert validation.check_event_shape("dim", (2, 3)) == (2, 3)
    for wrong in (0, (2, -1), 2.5, "2"):
        with pytest.raises(ConfigurationError):
            validation.check_event_shape("dim", wrong)
    with pytest.raises(ConfigurationError, match="'a', 'b'"):
        validation.check_choice("keep", "c", ("a", "b"))


def test_losses_are_checked():
    loss = torch.tensor(1.0)
    assert validation.check_finite_loss(loss, remedy="wait") is loss
    with pytest.raises(NumericalError, match="wait"):
        validation.check_finite_loss(torch.tensor(math.nan), remedy="wait")
    with pytest.raises(ShapeError):
        validation.check_finite_loss(torch.ones(2), remedy="wait")


def test_errors_say_three_things_and_can_be_pickled():
    error = ShapeError("x is 3", "4", "add 1")
    assert str(error) == "x is 3; wanted 4. To go on: add 1."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert isinstance(error, EBMError)
    assert isinstance(error, ValueError)


def test_keys_and_generators():
    torch.manual_seed(3)
    first = draw_key(None)
    torch.manual_seed(3)
    assert draw_key(None) == first != draw_key(None)
    assert draw_key(np.int64(4)) == 4
    state = torch.get_rng_state()
    big = torch.rand(4, generator=make_generator(2**64 - 1))
    assert not torch.equal(big, torch.rand(4, generator=make_generator(2**32 - 1)))
    assert torch.equal(state, torch.get_rng_state())
    for wrong in (-1, 2**64, 1.0, True, "1"):
        with pytest.raises(ConfigurationError, match="seed"):
            draw_key(wrong)


def test_supports():
    assert spin.check(torch.tensor([-1, 0, 1])).tolist() == [True, False, True]
    assert is_discrete(constraints.boolean)
    require_continuous(constraints.positive, "s")
    require_discrete(spin, "s")
    with pytest.raises(SupportError, match="HMC"):
        require_continuous(spin, "HMC")
    with pytest.raises(SupportError, match="Gibbs"):
        require_discrete(constraints.real, "Gibbs")
