"""A hook of the site's build: every public name of the six packages has its entry in the reference.

A function that bears its module's name, for one, disappears from generated pages without a word.
"""

import ast
from pathlib import Path

from mkdocs.exceptions import PluginError


def on_post_build(config):
    """Compare each package's ``__all__`` with the anchors of the pages."""
    pages = "".join(p.read_text() for p in Path(config["site_dir"], "api").rglob("*.html"))
    names = [
        f"{init.parent.name}.{name}"
        for init in sorted(Path("packages").glob("*/src/*/__init__.py"))
        for node in ast.parse(init.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for name in ast.literal_eval(node.value)
    ]
    missing = [name for name in names if f'id="{name}"' not in pages]
    if missing or not names:
        raise PluginError(f"public names without an entry in the reference: {missing}")
