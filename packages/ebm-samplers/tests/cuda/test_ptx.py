"""Every kernel compiled for CUDA devices, without one: `nox -s ptx`."""

import json
import os

import pytest
import torch

from ebm_samplers.fused.cuda._backend import CudaUnavailableError, numba_cuda, simulated

if simulated() or not os.environ.get("EBM_PTX"):
    pytest.skip("run by nox -s ptx", allow_module_level=True)

try:
    numba_cuda()
except CudaUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

from resources import (
    ARCHITECTURES,
    ENERGIES,
    NOISE,
    PAGE,
    PLANE,
    SAMPLERS,
    TABLE,
    noise_resources,
    page,
    resources,
)

RECORDED = json.loads(TABLE.read_text()) if TABLE.exists() else {}
MARGIN = 1.1


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ENERGIES)
def test_float32(arch, name, sampler):
    have = resources(name, sampler)[arch]
    if name in PLANE:
        assert have.spills == 0
    if sampler != "energy":
        assert have.guards >= (1 if sampler in ("langevin", "underdamped") else 2)
    require_within(have, RECORDED[f"{arch} {name} {sampler}"])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", NOISE)
def test_noise(arch, kind):
    have = noise_resources(kind)[arch]
    assert have.spills == have.stack == 0
    require_within(have, RECORDED[f"{arch} none {kind}"])


def require_within(have, recorded):
    assert have.doubles == 0
    for field in ("registers", "stack", "spills", "code"):
        assert getattr(have, field) <= MARGIN * recorded[field], field


def test_the_docs_have_the_table():
    if PAGE.exists():
        assert page(RECORDED) in PAGE.read_text()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", PLANE)
def test_float64(name, sampler):
    have = resources(name, sampler, torch.float64)["sm_90"]
    assert have.spills == 0
    assert have.doubles > 0
