"""The chains of each sampler as plain functions over tiles.

Their source, below the line "compiled", becomes part of each generated module.
"""

from pathlib import Path

CARRIED = {"underdamped": 1}
"""How many numbers for each element a kernel's states have beside position and gradient."""

STATISTICS = {"nuts": 7}
"""How many numbers a kernel reports of a slot, if not `USUAL`; `engine.Run` says which."""

USUAL = 4

ONE_LANE = {"nuts"}
"""Kernels whose chains go each their own way: a tile has one."""

ALONE = {"energy", "sensitivities"}
"""Kernels without chains: they evaluate a batch."""

_MARK = "# compiled -"


def compiled_text(kernel: str) -> str:
    """The part of a kernel's source that is compiled: of one of this package, or in a file."""
    path = Path(kernel)
    text = (path if path.suffix == ".py" else Path(__file__).parent / f"{kernel}.py").read_text()
    return text[text.index("\n", text.index(_MARK)) + 1 :].strip("\n") + "\n"
