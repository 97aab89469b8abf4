"""The tables of exact divergences in docs/benchmarks.md and docs/objectives.md."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from rivals.density_cells import DATASETS, OBJECTIVES, SIDES, forms_of

from harness.benchmark import last_line
from harness.report import fill, table, where

Results = dict[str, Any]

NAMES = {"ours": "this project", "torchebm": "TorchEBM", "ebmkit": "ebmkit"}
FEW_MODES = ("eight Gaussians", "two moons")
WANTED = {
    "NCE": (0.015, FEW_MODES),
    "energy discrepancy": (0.015, FEW_MODES),
    "sliced score matching": (0.015, FEW_MODES),
    "PCD": (0.05, DATASETS[:3]),
    "PT-CD": (0.05, DATASETS[:3]),
}
"""Largest median divergence, and on which data."""
ABOVE_FLOOR = 0.02
"""By how much denoising score matching may exceed the divergence of the noisy density."""
LEVEL = 0.0005
"""Nats within which two sides are level: the same objective on the same batches may end alike."""


def write_pages(found: Results, docs: Path) -> None:
    """Put the tables between the markers of the pages."""
    fill(docs / "benchmarks.md", "density", found, sections(found))
    fill(docs / "objectives.md", "objectives", found, choices(found))


def sections(found: Results) -> Iterator[str]:
    """The page's measured part, piece by piece."""
    at_once = f"Cells trained at once: {found['jobs']}, each on one core."
    yield f"{where(found)} {at_once}{_others(found)}"
    yield "### Exact divergence: wanted and measured"
    yield _aims(found)
    for dataset in DATASETS:
        if dataset in found["cells"]:
            facts = found["facts"][dataset]
            yield f"### Exact divergence: {dataset}"
            yield (
                f"Entropy of the data {facts['entropy']:.4f} nats; divergence of the density that "
                f"denoising score matching aims at {facts['noise floor']:.4f}."
            )
            yield _table(found["cells"][dataset])
    yield _remarks(found)


def choices(found: Results) -> Iterator[str]:
    """This project's medians alone, by objective and data."""
    yield where(found)
    rows = []
    for objective in OBJECTIVES:
        by_data = [runs(found["cells"].get(data, {}), objective, "ours") for data in DATASETS]
        seconds = [run[2] for run in by_data if run]
        if seconds:
            divergences = (_number(median(run[1])) if run else "" for run in by_data)
            rows.append((objective, *divergences, f"{median(seconds):.0f}"))
    yield table(("objective", *DATASETS, "s"), rows)


def _others(found: Results) -> str:
    """How many cells were trained on other processors, and on which: their seconds differ."""
    processors = Counter(
        entry["processor"]
        for cells in found["cells"].values()
        for entries in cells.values()
        for entry in entries.values()
        if "processor" in entry
    )
    del processors[found["machine"]["processor"]]
    return "".join(f" {count} of the cells on {name}." for name, count in processors.items())


def runs(cells: Results, objective: str, side: str) -> tuple[str, list[float], float] | None:
    """The form of a side with the lowest median: its name, divergences, median seconds."""
    found = []
    for row, entries in cells.items():
        name, its_side, form = row.split(" | ")
        judged = [e for e in entries.values() if "kl" in e]
        if (name, its_side) == (objective, side) and judged:
            seconds = median(e["seconds"] for e in judged)
            found.append((form, sorted(_kl(e) for e in judged), seconds))
    return min(found, key=lambda item: median(item[1])) if found else None


def _kl(entry: Results) -> float:
    return math.inf if "broke_off" in entry else float(entry["kl"])


def _aims(found: Results) -> str:
    rows = []
    aims = [(o, d, aim, "") for o, (aim, data) in WANTED.items() for d in data]
    for dataset in DATASETS:
        floor = found["facts"][dataset]["noise floor"]
        aims.append(
            ("denoising score matching", dataset, floor + ABOVE_FLOOR, f"{floor:.3f} + 0.02 = ")
        )
    for objective, dataset, aim, sum_ in aims:
        best = runs(found["cells"].get(dataset, {}), objective, "ours")
        if best:
            reached = median(best[1]) <= aim
            text = _number(median(best[1]))
            rows.append(
                (objective, dataset, f"≤ {sum_}{aim:.3f}", text if reached else f"**{text}**")
            )
    ahead = [
        _ahead(cells, objective) for cells in found["cells"].values() for objective in OBJECTIVES
    ]
    compared = [a for a in ahead if a is not None]
    if compared:
        counted = f"{sum(compared)} of {len(compared)}"
        rows.append(("all shared rows", "", f"ahead of both, or level to {LEVEL:g}", counted))
    return table(("objective", "data", "wanted", "median measured"), rows, right=2)


def _ahead(cells: Results, objective: str) -> bool | None:
    ours = runs(cells, objective, "ours")
    theirs = [r for side in SIDES[1:] if (r := runs(cells, objective, side))]
    if ours is None or not theirs:
        return None
    return all(median(ours[1]) <= median(r[1]) + LEVEL for r in theirs)


def _table(cells: Results) -> str:
    rows = []
    for objective in OBJECTIVES:
        by_side = {side: runs(cells, objective, side) for side in SIDES}
        if not any(row.startswith(f"{objective} | ") for row in cells):
            continue
        least = min((median(r[1]) for r in by_side.values() if r), default=math.inf)
        row = [objective]
        for side in SIDES:
            found = by_side[side]
            if found is None:
                tried = any(row_.startswith(f"{objective} | {side} |") for row_ in cells)
                absent = not forms_of(side, objective)
                row += ["none" if absent else "failed" if tried else "", ""]
                continue
            text = _spread(found[1])
            lost = side == "ours" and median(found[1]) > least + LEVEL
            row += [f"**{text}**" if lost else text, f"{found[2]:.0f}"]
        rows.append(tuple(row))
    head = ("objective", *(t for side in SIDES for t in (NAMES[side], "s")))
    return table(head, rows)


def _spread(values: list[float]) -> str:
    """Median, and the least and largest."""
    if len(values) == 1:
        return _number(values[0])
    return f"{_number(median(values))} ({_number(values[0])} to {_number(values[-1])})"


def _number(value: float) -> str:
    if math.isinf(value):
        return "diverged"
    return f"{value:.3f}" if value < 10 else f"{value:.0e}"


def _remarks(found: Results) -> str:
    """Which form of a rival counted; runs that broke off, were not resolved, or failed."""
    lines = []
    for dataset, cells in found["cells"].items():
        for row, entries in cells.items():
            name = ", ".join(filter(None, (dataset, *row.split(" | "))))
            for seed, entry in entries.items():
                if "error" in entry:
                    lines.append(f"- {name}, seed {seed}: `{last_line(entry['error'])}`")
                elif "broke_off" in entry:
                    lines.append(f"- {name}, seed {seed}: stopped at step {entry['broke_off']}.")
                elif entry.get("note"):
                    lines.append(f"- {name}, seed {seed}: {entry['note'][:120]}")
        for objective, recipe in OBJECTIVES.items():
            for side, forms in recipe.forms.items():
                best = runs(cells, objective, side) if len(forms) > 1 else None
                if best:
                    lines.append(
                        f"- {dataset}, {objective}, {NAMES[side]}: the better form is “{best[0]}”."
                    )
    return "\n".join(lines)
