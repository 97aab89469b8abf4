"""The buffer alone: slots, shapes, dtypes, devices, saving."""

import io

import pytest
import torch
from torch.distributions import constraints

from ebm_core import ConfigurationError, ShapeError, spin
from ebm_losses import ReplayBuffer
from ebm_losses.replay_buffer import initializer_on

CPU = torch.device("cpu")


def made(size=50, event_shape=(3,), dtype=torch.float64, **options):
    buffer = ReplayBuffer(size, **options)
    buffer.prepare(event_shape, device=CPU, dtype=dtype)
    return buffer


@pytest.mark.parametrize("event_shape", ((), (2,), (1, 4, 5)))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_is_made_of_standard_normal_noise_from_torchs_generator(event_shape, dtype):
    torch.manual_seed(3)
    buffer = made(2000, event_shape, dtype)
    torch.manual_seed(3)
    assert torch.equal(buffer.states, torch.randn(2000, *event_shape, dtype=dtype))


def test_slots_are_drawn_without_replacement_and_uniformly():
    torch.manual_seed(0)
    buffer, counts = made(20), torch.zeros(20)
    for _ in range(2000):
        slots, chains = buffer.draw(5)
        assert len(slots.unique()) == 5
        assert torch.equal(chains, buffer.states[slots])
        counts[slots] += 1
    # Each slot is in a draw with probability 1/4: variance 2000 · 3/16.
    assert ((counts - 500).abs() / (2000 * 3 / 16) ** 0.5).max() < 4.5


def test_draws_are_copies_and_write_touches_their_slots_alone():
    buffer = made()
    before = buffer.states.clone()
    slots, chains = buffer.draw(10)
    chains += 100.0
    assert torch.equal(buffer.states, before)
    buffer.write(slots, chains)
    assert torch.equal(buffer.states[slots], before[slots] + 100.0)
    others = torch.ones(50, dtype=torch.bool).index_fill(0, slots, False)
    assert torch.equal(buffer.states[others], before[others])


def test_all_slots_come_in_order_as_a_copy():
    buffer = made()
    slots, chains = buffer.draw(50)
    assert torch.equal(slots, torch.arange(50))
    assert torch.equal(chains, buffer.states)
    assert chains.data_ptr() != buffer.states.data_ptr()


@pytest.mark.parametrize("probability", (0.0, 0.3, 1.0))
def test_drawn_chains_begin_anew_as_often_as_asked(probability):
    torch.manual_seed(0)
    buffer = made(4000, (2, 2), reinit_probability=probability)
    buffer.states.fill_(7.0)
    for n in (2000, 4000):
        _, chains = buffer.draw(n)
        fresh = (chains != 7.0).reshape(n, -1)
        assert torch.equal(fresh.any(1), fresh.all(1))
        expected_sd = (n * probability * (1 - probability)) ** 0.5
        assert abs(int(fresh.any(1).sum()) - n * probability) <= 4.5 * expected_sd
    assert (buffer.states == 7.0).all()


def test_follows_the_data_to_another_device():
    buffer = made()
    buffer.prepare((3,), device=torch.device("meta"), dtype=torch.float64)
    assert buffer.states.device.type == "meta"


def test_data_of_another_shape_or_dtype_are_refused():
    buffer = made()
    with pytest.raises(ShapeError, match=r"event shape \(4,\).*wanted event shape \(3,\)"):
        buffer.prepare((4,), device=CPU, dtype=torch.float64)
    with pytest.raises(ConfigurationError, match=r"float32.*wanted torch\.float64"):
        buffer.prepare((3,), device=CPU, dtype=torch.float32)
    assert buffer.to(torch.float32).states.dtype == torch.float32


@pytest.mark.parametrize("already_made", (False, True))
@pytest.mark.parametrize("assign", (False, True))
def test_state_dict_restores_the_chains(already_made, assign):
    saved, file = made(), io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    fresh = made() if already_made else ReplayBuffer(50)
    fresh.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert torch.equal(fresh.states, saved.states)
    fresh.states += 1.0
    assert not torch.equal(fresh.states, saved.states)


def test_a_buffer_not_made_yet_saves_nothing_and_loads():
    ReplayBuffer(5).load_state_dict(ReplayBuffer(5).state_dict())


@pytest.mark.parametrize("assign", (False, True))
def test_the_state_of_a_buffer_not_made_yet_takes_one_back_to_that(assign):
    buffer = made()
    buffer.load_state_dict(ReplayBuffer(50).state_dict(), assign=assign)
    assert buffer.states is None


@pytest.mark.parametrize("assign", (False, True))
def test_a_state_without_the_buffer_leaves_the_chains_alone(assign):
    buffer = made()
    before = buffer.states.clone()
    result = buffer.load_state_dict({}, strict=False, assign=assign)
    assert result.missing_keys == ["states"]
    assert torch.equal(buffer.states, before)
    with pytest.raises(RuntimeError, match="Missing key"):
        buffer.load_state_dict({}, assign=assign)


def test_state_of_another_size_is_refused_and_not_taken():
    fresh = ReplayBuffer(20)
    with pytest.raises(RuntimeError, match="50 chains were saved, buffer_size is 20"):
        fresh.load_state_dict(made().state_dict())
    assert fresh.states is None


@pytest.mark.parametrize("dtype", (torch.int8, torch.float32))
@pytest.mark.parametrize(
    ("support", "values"),
    (
        (spin, {-1, 1}),
        (constraints.boolean, {0, 1}),
        (constraints.integer_interval(1, 3), {1, 2, 3}),
    ),
)
def test_finite_supports_begin_uniformly(support, values, dtype):
    states = initializer_on(support)((3000, 2), device=CPU, dtype=dtype)
    assert states.dtype == dtype
    assert set(states.unique().tolist()) == values
    for value in values:
        assert abs((states == value).double().mean() - 1 / len(values)) < 4.5 * 0.5 / 6000**0.5


def test_real_supports_begin_normally_and_others_need_an_initializer():
    for support in (constraints.real, constraints.real_vector):
        states = initializer_on(support)((4000, 2), device=torch.device("cpu"), dtype=torch.float64)
        assert states.dtype == torch.float64
        assert abs(states.mean()) < 5 / 8000**0.5
        assert abs(states.square().mean() - 1) < 5 * (2 / 8000) ** 0.5
        with pytest.raises(ConfigurationError, match=r"int64.*x.float()"):
            initializer_on(support)((4, 2), device=torch.device("cpu"), dtype=torch.int64)
    with pytest.raises(ConfigurationError, match="initializer"):
        initializer_on(constraints.positive)


@pytest.mark.parametrize(
    "options",
    (
        {"size": 0},
        {"size": 2.5},
        {"size": 10, "reinit_probability": -0.1},
        {"size": 10, "reinit_probability": 1.1},
        {"size": 10, "reinit_probability": float("nan")},
        {"size": 10, "initializer": 3},
    ),
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigurationError):
        ReplayBuffer(**options)


def test_wrong_use_is_refused():
    with pytest.raises(ConfigurationError, match="prepare"):
        ReplayBuffer(5).draw(1)
    with pytest.raises(ConfigurationError, match="at most 50"):
        made().draw(51)
    with pytest.raises(ConfigurationError, match="initializer gave"):
        made(initializer=lambda size, *, device, dtype: torch.zeros(2))


@pytest.mark.parametrize("learned", (False, True))
def test_chains_do_not_share_memory_with_what_the_initializer_gave(learned):
    """Such as the data themselves, or one state for all."""
    data = torch.randn(5, 3, dtype=torch.float64, requires_grad=learned)
    before = data.detach().clone()
    for given in (data, torch.zeros((), dtype=torch.float64).expand(5, 3)):
        buffer = ReplayBuffer(5, initializer=lambda size, given=given, **_: given[: size[0]])
        buffer.prepare((3,), device=CPU, dtype=torch.float64)
        slots, chains = buffer.draw(2)
        buffer.write(slots, chains + 1.0)
        assert not buffer.states.requires_grad
        assert int((buffer.states != given).any(1).sum()) == 2
    assert torch.equal(data.detach(), before)


def test_an_initializer_that_gives_no_tensor_is_refused():
    with pytest.raises(ConfigurationError, match="initializer gave a list"):
        made(initializer=lambda size, *, device, dtype: [0.0])
