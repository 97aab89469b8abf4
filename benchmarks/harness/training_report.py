"""The tables of training steps in docs/benchmarks.md."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from rivals.training_cells import OBJECTIVES, WANTED

from harness import density_report
from harness.benchmark import last_line
from harness.report import fill, table, times, where

Results = dict[str, Any]

NAMES = {**density_report.NAMES, "products": "products alone"}


def write_pages(found: Results, docs: Path) -> None:
    """Put the tables between the markers of the page."""
    fill(docs / "benchmarks.md", "training", found, sections(found))


def sections(found: Results) -> Iterator[str]:
    """The page's measured part, piece by piece."""
    yield (
        f"{where(found)} Medians of {found['repetitions']} interleaved repetitions of "
        f"{found['seconds']:g} s."
    )
    for setting, cells in found["cells"].items():
        yield f"### Training steps, {setting}"
        yield _table(cells)
        yield _remarks(cells)


def _table(cells: Results) -> str:
    rows = []
    for objective in OBJECTIVES:
        entries = cells.get(objective, {})
        ours = entries.get("ours", {})
        row = [objective, f"{WANTED.get(objective, 1):g}×", _cell(entries, "ours", None)]
        row += [_cell(entries, side, ours.get("step")) for side in density_report.SIDES[1:]]
        rows.append((*row, ours.get("form", ""), _floor(entries)))
    sides = (f"{NAMES[side]} (ms)" for side in density_report.SIDES)
    head = ("objective", "wanted", *sides, "our engine", "products alone (ms)")
    return table(head, rows)


def _cell(entries: Results, side: str, ours: float | None) -> str:
    """Milliseconds, and how many times ours they are."""
    entry = entries.get(side, {})
    step = entry.get("step")
    if step is None:
        return "none" if "not offered" in entry.get("error", "not offered") else "failed"
    return f"{1e3 * step:.3g}" + (f" ({times(step / ours)})" if ours else "")


def _floor(entries: Results) -> str:
    """The products alone, and how many times them the faster rival takes."""
    floor = entries.get("products", {}).get("step")
    steps = [entries.get(side, {}).get("step") for side in density_report.SIDES[1:]]
    known = [step for step in steps if step]
    if not floor:
        return ""
    return f"{1e3 * floor:.3g}" + (f" ({times(min(known) / floor)})" if known else "")


def _remarks(cells: Results) -> str:
    """Failures, and how steady the measurement was."""
    lines = []
    for objective, entries in cells.items():
        for side, entry in entries.items():
            if "error" in entry and "not offered" not in entry["error"]:
                lines.append(f"- {NAMES[side]}, {objective}: `{last_line(entry['error'])}`")
    timed = [e for entries in cells.values() for e in entries.values() if "step" in e]
    if timed:
        spreads = [entry["high"] / entry["low"] for entry in timed]
        lines.append(
            f"- Slowest over fastest repetition: {median(spreads):.2f} in the median, "
            f"{max(spreads):.2f} at most."
        )
    return "\n".join(lines)
