"""The tables of training steps in docs/benchmarks.md."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from rivals.training_cells import OBJECTIVES, SIDES, WANTED

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
        ours = entries.get("ours", {}).get("step")
        row = [objective, f"{WANTED.get(objective, 1):g}×"]
        for side in SIDES:
            entry = entries.get(side, {})
            step = entry.get("step")
            if step is None:
                missing = "not offered" in entry.get("error", "not offered")
                row.append("failed" if not missing else "" if side == "products" else "none")
            else:
                ratio = f" ({times(step / ours)})" if side != "ours" and ours else ""
                row.append(f"{1e3 * step:.3g}{ratio}")
        row.append(entries.get("ours", {}).get("form", ""))
        rows.append(tuple(row))
    head = ("objective", "wanted", *(f"{NAMES[side]} (ms)" for side in SIDES), "our engine")
    return table(head, rows)


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
