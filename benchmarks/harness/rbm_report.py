"""The tables of exact likelihoods in docs/benchmarks.md."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from harness.report import fill, table, where

Results = dict[str, Any]

WANTED = ("bars 4x4", "PT-CD", -3.45, 0.02)
"""On these data, of this method: the least final likelihood, and the most below the best."""

TITLES = {
    "bars 3x3": "Bars-and-Stripes 3 × 3",
    "bars 4x4": "Bars-and-Stripes 4 × 4",
    "digits": "digits, test part",
}


def write_pages(found: Results, docs: Path) -> None:
    """Put the tables between the markers of the page."""
    fill(docs / "benchmarks.md", "rbm", found, sections(found))


def sections(found: Results) -> Iterator[str]:
    """The page's measured part, piece by piece."""
    yield (
        f"{where(found)} {found['n_hidden']} hidden units, {found['chains']} chains; tempering "
        f"with {len(found['betas'])} replicas from beta {found['betas'][0]:g} to "
        f"{found['betas'][-1]:.2g}."
    )
    yield "### Exact log-likelihood, nats per pattern"
    yield _likelihoods(found.get("cells", {}))
    yield _aim(found.get("cells", {}))
    yield _stopped(found.get("cells", {}))
    if "speed" in found:
        yield "### A step of block Gibbs"
        yield _speed(found["speed"])


def _likelihoods(cells: Results) -> str:
    rows = []
    for name, cell in cells.items():
        bound = "" if cell["bound"] is None else f"{cell['bound']:.4f}"
        for method, runs in cell.get("methods", {}).items():
            best, final, seconds = (
                [run[key] for run in runs.values()] for key in ("best", "final", "seconds")
            )
            rows.append(
                (
                    TITLES[name],
                    bound,
                    method,
                    f"{cell['updates']:,}",
                    *(_spread(values) for values in (best, final)),
                    f"{median(seconds):.0f}",
                )
            )
    head = ("data", "bound", "method", "updates", "best", "final", "seconds")
    text = table(head, rows, right=3)
    return f"Medians over seeds, with the lowest and highest in brackets.\n\n{text}"


def _spread(values: list[float]) -> str:
    text = f"{median(values):.3f}"
    return f"{text} ({min(values):.3f}, {max(values):.3f})" if len(values) > 1 else text


def _aim(cells: Results) -> str:
    name, method, least, gap = WANTED
    runs = list(cells.get(name, {}).get("methods", {}).get(method, {}).values())
    if not runs:
        return ""
    reached = sum(
        run["final"] >= least and run["best"] - run["final"] <= gap and not run["stopped"]
        for run in runs
    )
    return (
        f"Wanted of {method} on {TITLES[name]}: at least {least:g} at the end, and the end within "
        f"{gap:g} of the best; reached by {reached} of {len(runs)} seeds."
    )


def _stopped(cells: Results) -> str:
    return "\n".join(
        f"- {TITLES[name]}, {method}, seed {seed}: stopped at {run['stopped']}"
        for name, cell in cells.items()
        for method, runs in cell.get("methods", {}).items()
        for seed, run in runs.items()
        if run["stopped"]
    )


def _speed(cells: Results) -> str:
    names = list(next(iter(cells.values())))
    rows = [(cell, *(f"{entry[name]:.0f}" for name in names)) for cell, entry in cells.items()]
    head = ("machine", *(f"{name} (µs)" for name in names))
    return (
        "Microseconds of a step of all chains, on one thread; the plain loop is torch's matrix "
        "products, sigmoid and bernoulli, without energies or seeds.\n\n" + table(head, rows)
    )
