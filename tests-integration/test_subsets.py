"""A component brings along what it declares, and nothing of its siblings."""

import json
import subprocess
import sys

import pytest

HEAVY = {"numba", "matplotlib", "arviz_stats", "xarray"}
ALLOWED = {
    "ebm_core": set(),
    "ebm_energies": set(),
    "ebm_samplers": {"numba"},
    "ebm_losses": set(),
    "ebm_models": set(),
    "ebm_utils": {"matplotlib", "arviz_stats", "xarray"},
}


@pytest.mark.parametrize("module", ALLOWED)
def test_importing_one_component_imports_no_other(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    command = (sys.executable, "-I", "-c", code)
    loaded = set(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    assert loaded & ALLOWED.keys() <= {module, "ebm_core"}
    assert loaded & HEAVY <= ALLOWED[module]
