"""The tables of effective draws per second in docs/benchmarks.md."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from harness.benchmark import last_line
from harness.report import fill, rate, table, times, where

Results = dict[str, Any]

WANTED = {1024: 5.0, 1: 2.0}
"""Times the best rival's rate, by the number of chains."""

NUTS_WANTED = 20.0
"""Times the rate of BlackJAX's NUTS by ours, on targets in two dimensions."""


def write_pages(found: Results, docs: Path) -> None:
    """Put the tables between the markers of the pages."""
    fill(docs / "benchmarks.md", "ess", found, sections(found))
    fill(docs / "choosing.md", "choosing", found, choices(found))


def sections(found: Results) -> Iterator[str]:
    """The page's measured part, piece by piece."""
    yield (
        f"{where(found)} A rival begins no further block of draws after {found['patience']:g} s."
    )
    for setting, measured in found["cells"].items():
        cells = ordered(measured, list(found["dims"]))
        yield f"### Effective draws: wanted and measured, {setting}"
        yield _aims(cells, found["dims"])
        yield f"### Effective draws per second, {setting}"
        yield _table(cells)
        yield _remarks(cells)


def choices(found: Results) -> Iterator[str]:
    """Our own methods beside each other."""
    yield where(found)
    yield _methods(ordered(found["cells"].get("one core", {}), list(found["dims"])))


def ordered(cells: Results, targets: list[str]) -> Results:
    """Cells by target and number of chains, in whatever order they were measured."""

    def place(cell: str) -> tuple[int, int]:
        target, chains = cell.split(" | ")
        return targets.index(target), int(chains)

    return {cell: cells[cell] for cell in sorted(cells, key=place)}


def right(entries: Results, side: str) -> dict[str, Results]:
    """The methods of a side whose draws have the moments of the target."""
    return {
        name: entry
        for name, entry in entries.items()
        if (name.startswith("ours") == (side == "ours")) and not entry.get("wrong", True)
    }


def best(entries: Results, side: str, kind: str) -> tuple[str, float] | None:
    """The fastest right method of a side, and its rate."""
    rates = {name: entry[kind] for name, entry in right(entries, side).items()}
    return max(rates.items(), key=lambda item: item[1]) if rates else None


def ratio(entries: Results, kind: str) -> float | None:
    """How many times the best rival's rate is ours."""
    ours, theirs = best(entries, "ours", kind), best(entries, "rivals", kind)
    return ours[1] / theirs[1] if ours and theirs else None


def _aims(cells: Results, dims: dict[str, int]) -> str:
    rows = []
    kinds = {"draws alone": "rate", "with warm-up": "rate_with_warm_up"}
    for label, kind in kinds.items():
        for chains, aim in WANTED.items():
            chosen = {name: e for name, e in cells.items() if name.endswith(f"| {chains}")}
            what = f"best against best rival, {chains:,} chain{'s' if chains > 1 else ''}"
            rows += _aim(f"{what}, {label}", aim, [ratio(e, kind) for e in chosen.values()])
        pairs = []
        for name, entries in cells.items():
            both = [entries.get(f"{side} NUTS", {}) for side in ("ours", "blackjax")]
            if dims[name.split(" | ")[0]] == 2 and not any(e.get("wrong", True) for e in both):
                pairs.append(both[0][kind] / both[1][kind])
        rows += _aim(f"NUTS against BlackJAX's, two dimensions, {label}", NUTS_WANTED, pairs)
    head = ("cells", "wanted", "lowest / median / highest", "reached in")
    return table(head, rows)


def _aim(what: str, aim: float, found: list[float | None]) -> list[tuple[str, ...]]:
    ratios = [r for r in found if r is not None]
    if not ratios:
        return []
    spread = " / ".join(times(f(ratios)) for f in (min, median, max))
    return [(what, f"{aim:g}×", spread, f"{sum(r >= aim for r in ratios)} of {len(ratios)}")]


def _table(cells: Results) -> str:
    rows = []
    for name, entries in cells.items():
        target, chains = name.split(" | ")
        row = [target, f"{int(chains):,}"]
        for side in ("ours", "rivals"):
            found = best(entries, side, "rate")
            if found is None:
                row += ["none is right" if entries else "", ""]
                continue
            entry = entries[found[0]]
            row += [
                f"{rate(entry['rate'])} ({rate(entry['rate_with_warm_up'])})",
                " ".join(filter(None, (found[0].removeprefix("ours "), entry["form"]))),
            ]
        for kind in ("rate", "rate_with_warm_up"):
            value = ratio(entries, kind)
            row.append("" if value is None else times(value))
        rows.append(tuple(row))
    head = ("target", "chains", "this project (with warm-up)", "by", "best rival (with warm-up)")
    return table((*head, "by", "times", "with warm-up"), rows)


def _methods(cells: Results) -> str:
    def told(entry: Results | None) -> str:
        if entry is None or "error" in entry:
            return ""
        wrong = f", wrong by {entry['error_in']:.0f} standard errors" if entry["wrong"] else ""
        return f"{rate(entry['rate'])} ({rate(entry['rate_with_warm_up'])}){wrong}"

    rows = []
    for name, entries in cells.items():
        target, chains = name.split(" | ")
        methods = (told(entries.get(f"ours {method}")) for method in ("NUTS", "HMC"))
        rows.append((target, f"{int(chains):,}", *methods))
    return table(("target", "chains", "NUTS (with warm-up)", "HMC (with warm-up)"), rows)


def _remarks(cells: Results) -> str:
    """Methods that failed, whose moments were wrong, or that had fewer draws than the others."""
    lines = []
    for name, entries in cells.items():
        most = max((entry.get("draws", 0) for entry in entries.values()), default=0)
        for method, entry in entries.items():
            if "error" in entry:
                lines.append(f"- {method}, {name}: `{last_line(entry['error'])}`")
            elif entry["wrong"]:
                apart = f"{entry['error_in']:.1f} standard errors"
                lines.append(f"- {method}, {name}: a moment is {apart} from the exact one.")
            elif entry["draws"] < most:
                lines.append(f"- {method}, {name}: {entry['draws']} draws in the time it had.")
    return "\n".join(lines) or "All methods had right moments and all their draws."
