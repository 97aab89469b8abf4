"""The table of rules, and how a function enters it.

A rule takes the `Lowering` and the operation's arguments, tensors replaced by arrays (tensors of
integers stay references), and gives an array, or a tuple of arrays where the operation has several
results. A rule is right for every input, or raises: what a kernel does where nobody compared it
with torch rests on the rules alone.
"""

from collections.abc import Callable
from typing import Any, TypeVar

Rule = Callable[..., Any]
R = TypeVar("R", bound=Rule)

RULES: dict[Any, Rule] = {}
VIEWS: set[Any] = set()


def rule(*functions: Any, view: bool = False) -> Callable[[R], R]:
    """Make a function the rule of operations.

    Args:
        functions: ATen operations.
        view: Whether the rule only names elements anew; it then serves parameters too.
    """

    def register(function: R) -> R:
        for op in functions:
            RULES[op] = function
            if view:
                VIEWS.add(op)
        return function

    return register
