"""Runs the Python blocks of every Markdown page: one namespace and one empty folder a page."""

import os
import sys
import tempfile
from contextlib import ExitStack, chdir
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

os.environ.setdefault("MPLBACKEND", "Agg")


def enter_empty_folder(namespace: dict[str, Any]) -> None:
    """Keep what a page writes out of the working tree."""
    stack = namespace["_folder"] = ExitStack()
    stack.enter_context(chdir(stack.enter_context(tempfile.TemporaryDirectory())))


def leave_folder(namespace: dict[str, Any]) -> None:
    """Return to where pytest was started, with no figure open."""
    namespace["_folder"].close()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["*.md"],
    setup=enter_empty_folder,
    teardown=leave_folder,
).pytest()
