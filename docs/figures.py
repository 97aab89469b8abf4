"""Make the pictures of a page: its Python blocks are run in docs/, where their savefig writes.

python docs/figures.py posterior
"""

import os
import sys
from contextlib import chdir
from pathlib import Path

from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

os.environ.setdefault("MPLBACKEND", "Agg")


def main() -> None:
    """Run the page named on the command line."""
    folder = Path(__file__).parent
    page = Document.parse(str(folder / f"{sys.argv[1]}.md"), PythonCodeBlockParser())
    with chdir(folder):
        for example in page.examples():
            example.evaluate()


if __name__ == "__main__":
    main()
