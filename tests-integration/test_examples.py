"""The scripts of examples/ run, stay short, and are what the README quotes."""

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ebm_losses import NoiseContrastiveEstimation, PersistentContrastiveDivergence

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "demo")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs_and_is_short(script, tmp_path):
    text = script.read_text()
    quick = ("--quick",) if "--quick" in text else ()  # of those that train for minutes
    command = (sys.executable, "-W", "error", str(script), *quick)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert len(text.splitlines()) < 80


def test_the_readme_quotes_a_script_as_it_is():
    readme = (ROOT / "README.md").read_text()
    assert any(script.read_text() in readme for script in SCRIPTS)


def test_the_demo_trains_by_the_objectives_it_names(monkeypatch):
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", demo)
    spec.loader.exec_module(demo)
    kinds = (PersistentContrastiveDivergence, NoiseContrastiveEstimation)
    for recipe, kind in zip(demo.RECIPES, kinds, strict=True):
        sent = pickle.loads(pickle.dumps(recipe))  # as its process receives it
        assert isinstance(sent.make_loss(demo.make_model()), kind)
