import math

import pytest
import torch

from ebm_core import NumericalError
from ebm_samplers import State, metropolis
from ebm_samplers.acceptance import check_resolution

NAN, INF = math.nan, math.inf


def test_verdicts():
    delta = torch.tensor([-5.0, 0.0, math.log(2), math.log(2), 2000.0, INF, -INF, NAN])
    uniforms = torch.tensor([0.999, 0.999, 0.49, 0.51, 1e-7, 1e-7, 1e-7, 1e-7])
    verdict = metropolis(delta, uniforms)
    assert verdict.accepted.tolist() == [True, True, True, False, False, False, False, False]
    assert verdict.diverging.tolist() == [False] * 4 + [True] * 4
    torch.testing.assert_close(verdict.probability, torch.tensor([1, 1, 0.5, 0.5, 0, 0, 0, 0]))


def test_choice_takes_whole_rows():
    def state(value: float, event: tuple[int, ...]) -> State:
        return State(
            torch.full((2, *event), value), torch.full((2,), value), torch.full((2, *event), value)
        )

    for event in ((), (3,), (2, 2)):
        verdict = metropolis(torch.tensor([0.0, INF]), torch.tensor([0.5, 0.5]))
        chosen = verdict.choose(state(NAN, event), state(1.0, event))
        assert chosen.x.isnan().flatten().tolist() == [True] * math.prod(event) + [
            False
        ] * math.prod(event)
        assert chosen.energy.isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("dtype", "fine", "coarse"),
    ((torch.float32, 1.6e5, 1.7e5), (torch.float64, 8.9e13, 9.1e13)),
)
def test_resolution(dtype, fine, coarse):
    check_resolution(torch.tensor([0.0, fine, -fine], dtype=dtype))
    with pytest.raises(NumericalError, match="1 of 2 chains.*float64.*offset"):
        check_resolution(torch.tensor([0.0, -coarse], dtype=dtype))
