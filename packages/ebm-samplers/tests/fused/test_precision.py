"""Energies are compared in float32, however users let torch make products."""

import pytest
import torch

from ebm_samplers import MALA
from ebm_samplers.fused.precision import exact_products, preferred_precision

BACKENDS = torch.backends
CHOICES = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "all": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "oneDNN": lambda: setattr(BACKENDS.mkldnn, "fp32_precision", "bf16"),
    "its products": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
    "cuBLAS": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
}
PLACES = (BACKENDS, BACKENDS.mkldnn, BACKENDS.mkldnn.matmul, BACKENDS.cuda.matmul)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*API:UserWarning"),
    pytest.mark.skipif(not hasattr(BACKENDS, "fp32_precision"), reason="torch 2.8 has one way"),
]


def state():
    return [place.fp32_precision for place in PLACES]


@pytest.fixture(autouse=True)
def fresh():
    """As in a new process: what was set once by the older way does not inherit."""
    torch.set_float32_matmul_precision("highest")
    for place in PLACES:
        place.fp32_precision = "none"
    yield
    torch.set_float32_matmul_precision("highest")
    for place in PLACES:
        place.fp32_precision = "none"
    assert preferred_precision() == ("highest",)


@pytest.mark.parametrize("choice", CHOICES)
def test_comparisons_are_exact_and_leave_the_choice(choice):
    CHOICES[choice]()
    seen, x, chosen = [], torch.arange(15.0).reshape(5, 3), state()

    def energy(x):
        seen.append(state())
        return x.square().sum(1)

    sampler = MALA(energy, 0.1)
    assert sampler.explain(x).engine == "fused"
    seen.clear()
    sampler.sample_chain(x, 2)
    assert seen
    assert set().union(*(now[2:] for now in seen)) <= {"none", "ieee"}
    assert state() == chosen


def test_what_inherits_goes_on_to_inherit():
    BACKENDS.fp32_precision = "tf32"
    with exact_products():
        assert preferred_precision() == ("highest",)
    assert BACKENDS.mkldnn.matmul.fp32_precision == "tf32"
    BACKENDS.fp32_precision = "none"
    assert BACKENDS.mkldnn.matmul.fp32_precision == "none"
