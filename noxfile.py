"""Every check and job of the workspace, each one command: `nox` runs the starred ones.

Environments are made afresh by uv (by pip where there is no uv) from `constraints/dev.txt`. They
hold the wheels that `build` leaves in `dist/`, never the source trees: what a package forgot to
declare or to ship is missing there.
"""

import os
import shutil
import tarfile
import tempfile
from itertools import compress, product
from pathlib import Path

import nox

ROOT = Path(__file__).parent
DIST = ROOT / "dist"
COMPONENTS = ("ebm-energies", "ebm-samplers", "ebm-losses", "ebm-models", "ebm-utils")
PACKAGES = ("ebm-core", *COMPONENTS)
SOURCES = [str(ROOT / "packages" / name / "src") for name in PACKAGES]
TORCH = "torch==2.13.0"
RIVALS = {
    "torch": (TORCH,),
    "torchebm": (TORCH, "torchebm==0.8.9"),
    "ebmkit": (TORCH, "ebmkit==0.16.0"),
    "blackjax": ("blackjax",),
    "jax": ("jax",),
    "numpyro": ("numpyro",),
}
UNCONSTRAINED = {"UV_CONSTRAINT": None, "PIP_CONSTRAINT": None}
OWN_PYTHON = {"UV_PYTHON": None}  # else hatch installs its build backend into nox's environment
CUDA_TESTS = Path("packages/ebm-samplers/tests/cuda")
PTX = {"EBM_PTX": "1"}
SIMULATOR = {"NUMBA_ENABLE_CUDASIM": "1"}
BY_TEST = ("-n", "auto")  # over the cores
BY_FILE = ("-n", "auto", "--dist", "loadfile")  # whose tests share what they made; a page's blocks
CACHED_BYTECODE = {"PYTHONDONTWRITEBYTECODE": None}  # where several processes import torch

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "never"
nox.options.sessions = (
    *("lint", "imports", "types", "docs", "build", "subsets", "demo-quick", "ptx", "cudasim"),
    *("tests", "tests-integration"),
)

os.environ["UV_CONSTRAINT"] = os.environ["PIP_CONSTRAINT"] = str(ROOT / "constraints" / "dev.txt")
if "PIP_FIND_LINKS" in os.environ:  # uv does not read pip's settings
    os.environ.setdefault("UV_FIND_LINKS", ",".join(os.environ["PIP_FIND_LINKS"].split()))
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # on small tensors threads wait for each other
for leak in ("PYTHONPATH", "UV_PYTHON"):
    os.environ.pop(leak, None)


@nox.session
def lint(session: nox.Session) -> None:
    """Style: ruff's rules and format."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def imports(session: nox.Session) -> None:
    """Architecture: no component imports a sibling; numba in ebm-samplers only."""
    session.install(*group("imports"))
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": os.pathsep.join(SOURCES)})


@nox.session
def types(session: nox.Session) -> None:
    """Types: mypy --strict over the six source trees."""
    session.install(*group("types"), *third_party(*PACKAGES))
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The site: mkdocs build --strict (`-- serve` shows it while you write)."""
    session.install(*group("docs"))
    session.run("mkdocs", *(session.posargs or ("build", "--strict", "--quiet")))


@nox.session
def build(session: nox.Session) -> None:
    """Wheels and sdists of the six packages into dist/, and what indexes demand of them."""
    session.install(*group("build"))
    shutil.rmtree(DIST, ignore_errors=True)
    for name in PACKAGES:
        with session.chdir(ROOT / "packages" / name):
            session.run("hatch", "-qq", "build", str(DIST), env=OWN_PYTHON)
    session.run("twine", "check", "--strict", *map(str, sorted(DIST.iterdir())))
    session.run("check-wheel-contents", str(DIST))


@nox.session(requires=["build"])
def subsets(session: nox.Session) -> None:
    """Each of the 32 subsets of the five components installs alone, and imports."""
    for chosen in product((False, True), repeat=len(COMPONENTS)):
        names = ("ebm-core", *compress(COMPONENTS, chosen))
        install_exactly(session, *wheels(*names))
        modules = ", ".join(name.replace("-", "_") for name in names)
        session.run("python", "-I", "-c", f"import {modules}", env=CACHED_BYTECODE)


@nox.session(name="demo-quick", requires=["build"])
def demo_quick(session: nox.Session) -> None:
    """The demo in less than a minute: `demo -- --quick`."""
    run_demo(session, "--quick")


@nox.session(requires=["build"])
def ptx(session: nox.Session) -> None:
    """CUDA kernels compiled, and their PTX run on the CPU (`-- --record`: the table of limits)."""
    install_cuda(session)
    if session.posargs == ["--record"]:
        session.run("python", str(CUDA_TESTS / "resources.py"))
    else:
        names = ("ptx", "kernels", "emulated", "compiled")
        tests = (str(CUDA_TESTS / f"test_{name}.py") for name in names)
        session.run("pytest", *BY_TEST, *tests, *session.posargs, env=PTX)


@nox.session(requires=["build"])
def cudasim(session: nox.Session) -> None:
    """CUDA kernels run by numba.cuda's simulator, against the CPU's."""
    install_cuda(session)
    tests = str(CUDA_TESTS / "test_kernels.py")
    session.run("pytest", *BY_TEST, tests, *session.posargs, env=SIMULATOR)


@nox.session(requires=["build"])
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def tests(session: nox.Session, package: str) -> None:
    """One package's tests, README and doctests; beside it ebm-core and what it declares."""
    session.install(*wheels("ebm-core", package), *group("test"), *group("test", package))
    run_tests(session, package)


@nox.session(name="tests-integration", requires=["build"])
def tests_integration(session: nox.Session) -> None:
    """What needs several components; the site's and the README's Python blocks."""
    groups = (*group("test"), *group("pages"), *group("integration"))
    session.install(*wheels(*PACKAGES), *groups)
    session.run("pytest", *BY_FILE, "README.md", "docs", "tests-integration", *session.posargs)


@nox.session(requires=["build"])
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def lowest(session: nox.Session, package: str) -> None:
    """One package's tests with the lowest versions it declares (torch stays pinned); needs uv."""
    if session.venv_backend != "uv":
        session.skip("only uv resolves to the lowest versions")
    project = f"packages/{package}/pyproject.toml"
    session.install(
        *("--resolution=lowest-direct", f"--find-links={DIST}", TORCH, "-r", project),
        *(*group("test", package), *wheels("ebm-core", package)),
        env=UNCONSTRAINED,
    )
    session.install(*group("test"), env=UNCONSTRAINED)
    run_tests(session, package)


@nox.session(name="released-core", requires=["build"])
@nox.parametrize("package", COMPONENTS, ids=COMPONENTS)
def released_core(session: nox.Session, package: str) -> None:
    """One component's tests against the last tagged ebm-core instead of the workspace's."""
    command = ("git", "tag", "--list", "--sort=-version:refname", "ebm-core-v*")
    tags = str(session.run(*command, external=True, silent=True)).split()
    if not tags:
        session.log("No ebm-core-v* tag yet: nothing is released to test against.")
        return
    session.log(f"ebm-core of tag {tags[0]}")
    with tempfile.TemporaryDirectory() as folder:
        core, archive = Path(folder, "packages", "ebm-core"), Path(folder, "core.tar")
        paths = (f"--output={archive}", tags[0], "packages/ebm-core")
        session.run("git", "archive", *paths, external=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        session.install(str(core), *wheels(package), *group("test"), *group("test", package))
    run_tests(session, package)


@nox.session(requires=["build"])
def demo(session: nox.Session) -> None:
    """Train on eight Gaussians and two moons, print how good it is (`-- --full`: five seeds)."""
    run_demo(session)


@nox.session(name="bench-rival")
@nox.parametrize("rival", tuple(RIVALS), ids=tuple(RIVALS))
def bench_rival(session: nox.Session, rival: str) -> None:
    """The environment of one rival of the benchmarks, from released packages."""
    session.install(*RIVALS[rival], env=UNCONSTRAINED)


@nox.session(requires=["build", "bench-rival"])
def bench(session: nox.Session) -> None:
    """Measure: every script of benchmarks/, or one with its options (`-- chains --quick`)."""
    session.install(*wheels(*PACKAGES), "scikit-learn")
    name, *options = session.posargs or ("",)
    for path in sorted(Path("benchmarks").glob(f"{name or '*'}.py")):
        if path.name != "targets.py":  # which scripts import
            session.run("python", str(path), *options, env=CACHED_BYTECODE)


def group(name: str, package: str | None = None) -> tuple[str, ...]:
    """The requirements of a dependency group of the workspace, or of one package (may be none)."""
    project = nox.project.load_toml(
        f"packages/{package}/pyproject.toml" if package else "pyproject.toml"
    )
    known = name in project.get("dependency-groups", {})
    return nox.project.dependency_groups(project, name) if known or not package else ()


def third_party(*packages: str) -> set[str]:
    """What packages declare, ebm-core apart."""
    projects = (nox.project.load_toml(f"packages/{name}/pyproject.toml") for name in packages)
    declared = {need for project in projects for need in project["project"]["dependencies"]}
    return {need for need in declared if not need.startswith("ebm-core")}


def wheels(*packages: str) -> list[str]:
    """The wheels that `build` left in dist/."""
    names = (name.replace("-", "_") for name in dict.fromkeys(packages))
    return [str(next(DIST.glob(f"{name}-*.whl"))) for name in names]


def install_exactly(session: nox.Session, *requirements: str) -> None:
    """Install requirements, and remove what they do not need."""
    if session.venv_backend == "uv":
        session.install("--exact", *requirements)
    else:
        session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", *PACKAGES)
        session.install(*requirements)


def install_cuda(session: nox.Session) -> None:
    """ebm-samplers with numba-cuda and the toolkit's wheels; no driver is needed."""
    (samplers,) = wheels("ebm-samplers")
    session.install(f"{samplers}[cuda13]", *wheels("ebm-core"), *group("test"))


def run_tests(session: nox.Session, package: str) -> None:
    """Run a package's README and tests, and the doctests of the module as installed."""
    folder, module = f"packages/{package}", package.replace("-", "_")
    targets = (f"{folder}/README.md", f"{folder}/tests", "--pyargs", module)
    session.run("pytest", *BY_FILE, "--doctest-modules", *targets, *session.posargs)


def run_demo(session: nox.Session, *arguments: str) -> None:
    """Run examples/demo.py with the six wheels."""
    session.install(*wheels(*PACKAGES))
    session.run("python", "examples/demo.py", *arguments, *session.posargs, env=CACHED_BYTECODE)
