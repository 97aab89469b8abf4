"""The measured tables of docs/benchmarks.md, written from the results that are kept."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from rivals.cells import METHODS, TARGETS, Cell, cells

from harness.benchmark import last_line

NAMES = {
    "torchebm": "TorchEBM",
    "blackjax": "BlackJAX",
    "jax": "JAX by hand",
    "torch": "PyTorch by hand",
}
COMPILE_WANTED = {"first": 3.0, "cached": 0.3}
CALL_WANTED = 150e-6

Results = dict[str, Any]


def wanted(rival: str, cell: Cell) -> float:
    """How many times the rival's rate is wanted."""
    if rival == "torchebm":
        return {1: 1000, 100: 100}.get(cell.chains, 10)
    return {"blackjax": 10, "jax": 4 if cell.dim == 2 else 1.5}.get(rival, 1)


def write_pages(found: Results, docs: Path) -> None:
    """Put the tables between the markers of the page."""
    fill(docs / "benchmarks.md", "chains", found, sections(found))


def fill(page: Path, name: str, found: Results, pieces: Iterable[str]) -> None:
    """Put what was found, piece by piece, between the markers of that name in a page."""
    body = "\n\n".join(filter(None, pieces)) if found.get("cells") else "Not recorded yet."
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, _, rest = page.read_text().partition(begin)
    _, _, tail = rest.partition(end)
    page.write_text(f"{head}{begin}\n\n{body}\n\n{end}{tail}")


def sections(found: Results) -> Iterator[str]:
    """The page's measured part, piece by piece."""
    yield (
        f"{where(found)} Medians of {found['repetitions']} interleaved repetitions of "
        f"{found['seconds']:g} s."
    )
    for setting, entries in found["cells"].items():
        yield f"### Wanted and measured, {setting}"
        yield _aims(entries)
        yield f"### All cells, {setting}"
        yield _cells(entries, found.get("normals", {}).get(setting, {}))
        yield _remarks(entries)
    if "compile" in found:
        yield "### Compilation"
        yield _compilation(found)
    if "overhead" in found:
        yield "### A call beside its steps"
        yield _calls(found["overhead"])


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], right: int = 1) -> str:
    """A table in Markdown; columns from `right` on are aligned to the right."""
    rule = ("---" if i < right else "---:" for i in range(len(head)))
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, tuple(rule), *rows))


def rate(value: float) -> str:
    """A rate to two digits: 1.2 k, 35 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.995 * size:
            return f"{_two(value / size)} {unit}"
    return _two(value)


def times(value: float) -> str:
    """A ratio to two digits, bold where it is lost."""
    text = f"{_two(value)}×"
    return f"**{text}**" if value < 1 else text


def _two(value: float) -> str:
    if value < 0.095:
        return f"{value:.1g}"
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 9.95 else f"{value:.1f}"


def where(found: Results) -> str:
    """Machine and versions."""
    versions = {
        name: version
        for packages in found.get("versions", {}).values()
        for name, version in packages.items()
    }
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return f"{_place(found['machine'])}; {listed}."


def _place(machine: Results) -> str:
    return (
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, "
        f"{machine['system']}, Python {machine['python']}"
    )


def _ratios(entries: Results, rival: str, form: str) -> Iterator[tuple[Cell, float]]:
    """How many times the rival's rate is ours; in a form, by what it did when it was tried."""
    for cell in cells():
        entry = entries.get(str(cell), {})
        theirs = entry.get(rival, {}).get("rate")
        if form and theirs:
            tried = entry[rival]["tried"].items()
            theirs = max((kind.get("rate", 0) for name, kind in tried if form in name), default=0)
        ours = entry.get("ours", {}).get("rate")
        if ours and theirs:
            yield cell, ours / theirs


def _aims(entries: Results) -> str:
    rows = []
    compared = [(rival, "", name) for rival, name in NAMES.items()]
    compared.insert(1, ("torchebm", "own", "TorchEBM's own models"))
    for rival, form, name in compared:
        groups: dict[tuple[str, float], list[float]] = {}
        for cell, ratio in _ratios(entries, rival, form):
            count = "1 chain" if cell.chains == 1 else f"{cell.chains:,} chains"
            kind = f"{count}, " + ("2-D" if cell.dim == 2 else f"{cell.dim}-D")
            groups.setdefault((kind, wanted(rival, cell)), []).append(ratio)
        for (kind, aim), ratios in groups.items():
            reached = sum(ratio >= aim for ratio in ratios)
            spread = " / ".join(times(f(ratios)) for f in (min, median, max))
            rows.append((name, kind, f"{aim:g}×", spread, f"{reached} of {len(ratios)}"))
    head = ("against", "cells", "wanted", "lowest / median / highest", "reached in")
    return table(head, rows, right=2)


def _cells(entries: Results, normals: Results) -> str:
    rows = []
    for cell in cells():
        entry = entries.get(str(cell), {})
        if not entry:
            continue
        ours = entry.get("ours", {}).get("rate")
        row = [cell.target, cell.method, f"{cell.chains:,}", rate(ours) if ours else "failed"]
        ceiling = max(normals.get(str(cell.chains), {}).values(), default=0)
        row.append(f"{ours * cell.dim / ceiling:.0%}" if ours and ceiling else "")
        row += [_rival(entry.get(rival, {}), ours, cell, rival) for rival in NAMES]
        rows.append(tuple(row))
    head = ("target", "method", "chains", "this project", "of the noise", *NAMES.values())
    return table(head, rows, right=2)


def _rival(entry: Results, ours: float | None, cell: Cell, rival: str) -> str:
    if rival == "torchebm" and cell.method == "MALA":
        return "none"
    theirs = entry.get("rate")
    if not theirs:
        return "failed" if entry else ""
    mark = " †" if entry.get("wrong") else ""
    return rate(theirs) + (f" ({times(ours / theirs)})" if ours else "") + mark


def _remarks(entries: Results) -> str:
    """What the cells do not show: wrong ones, failures, wide spreads, other engines."""
    lines = []
    for name, cell in entries.items():
        for rival, entry in cell.items():
            if entry.get("wrong"):
                error = f"{entry['worst_error']:.1f} standard errors"
                lines.append(f"- † {rival}, {name}: means are {error} from the reference's.")
            elif "error" in entry and "not offered" not in entry["error"]:
                lines.append(f"- {rival}, {name}: `{last_line(entry['error'])}`")
            elif "engine 'torch'" in entry.get("note", ""):
                lines.append(f"- {name}: {entry['note'].splitlines()[0]}")
    timed = [entry for cell in entries.values() for entry in cell.values() if "rate" in entry]
    if timed:
        spreads = [entry["high"] / entry["low"] for entry in timed]
        busy = [entry["busy"] for entry in timed]
        lines.append(
            f"- Fastest over slowest repetition of a cell: {median(spreads):.2f} in the median, "
            f"{max(spreads):.2f} at most. Processor time over wall time: {median(busy):.2f} in the "
            f"median, {min(busy):.2f} at least (on one core, less than 1 means that the machine "
            "was shared)."
        )
    return "\n".join(lines)


def _compilation(found: Results) -> str:
    rows = []
    jax = found["cells"].get("one core", {})
    for target in TARGETS:
        for method in METHODS:
            entry = found["compile"].get(f"{method} | {target}")
            if entry is None:
                continue
            own = (f"{entry[kind]:.2f}" if entry.get(kind) else "failed" for kind in COMPILE_WANTED)
            theirs = jax.get(f"{method} | {target} | 100", {})
            others = (
                f"{theirs[rival]['first_call']:.2f}" if "rate" in theirs.get(rival, {}) else ""
                for rival in ("jax", "blackjax")
            )
            rows.append((target, method, *own, *others))
    head = ("target", "method", "first", "from disk", "JAX by hand", "BlackJAX")
    aims = " and ".join(f"{seconds:g} s" for seconds in COMPILE_WANTED.values())
    return (
        f"Seconds of the first call with 100 chains, in a fresh process, on one core, imports "
        f"apart; wanted in two dimensions are at most {aims}.\n\n" + table(head, rows, right=2)
    )


def _calls(overhead: Results) -> str:
    rows = []
    for name, entry in overhead["calls"].items():
        method, target = name.split(" | ")
        cost = 1e6 * (entry["call"] - entry["step"])
        quick = 1e6 * (entry["quick"] - entry["step"])
        parts = (f"{1e6 * entry[part]:.1f}" for part in ("forward", "step"))
        rows.append((target, method, f"{cost:.0f}", f"{quick:.0f}", *parts))
    head = ("energy", "method", "a call (µs)", "fastest twentieth", "forward of 4 states", "a step")
    return (
        f"{_place(overhead['machine'])}. A call with one step on 100 chains, less a step of a long "
        f"run; wanted are at most {1e6 * CALL_WANTED:.0f} µs. Each call compares energies with "
        "`forward` on four states, and evaluates all chains where they start: as many operations "
        "as a step of Langevin.\n\n" + table(head, rows, right=2)
    )
