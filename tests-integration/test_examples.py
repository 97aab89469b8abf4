"""The scripts of examples/ run, stay short, and are what the README quotes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "demo")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs_and_is_short(script, tmp_path):
    command = (sys.executable, "-W", "error", str(script))
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert len(script.read_text().splitlines()) < 60


def test_the_readme_quotes_a_script_as_it_is():
    readme = (ROOT / "README.md").read_text()
    assert any(script.read_text() in readme for script in SCRIPTS)
