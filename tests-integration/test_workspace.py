"""What the six distributions must have in common."""

import importlib
import inspect
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPONENTS = ("ebm-energies", "ebm-samplers", "ebm-losses", "ebm-models", "ebm-utils")
PACKAGES = ("ebm-core", *COMPONENTS)


def module_of(package: str):
    return importlib.import_module(package.replace("-", "_"))


@pytest.mark.parametrize("package", PACKAGES)
def test_licence_travels_with_the_package(package):
    licence = (ROOT / "packages" / package / "LICENSE").read_text()
    assert licence == (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_version_is_stated_once(package):
    version = module_of(package).__version__
    assert f"## {version}" in (ROOT / "packages" / package / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_and_is_documented(package):
    module = module_of(package)
    values = {name: getattr(module, name, None) for name in module.__all__}
    assert None not in values.values()
    missing = [
        name
        for name, value in values.items()
        if (inspect.isclass(value) or inspect.isroutine(value)) and not value.__doc__
    ]
    assert not missing


@pytest.mark.parametrize("package", COMPONENTS)
def test_a_component_asks_for_one_minor_series_of_core_and_no_sibling(package):
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]
    own = [need for need in project["dependencies"] if need.startswith("ebm-")]
    assert own == ["ebm-core>=0.1,<0.2"]


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_shipped(package):
    module = module_of(package)
    assert Path(module.__file__).with_name("py.typed").exists()
