"""Attributes that are checked whenever they are set, not by the constructor alone."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ebm_core import ConfigurationError

Check = Callable[[Any], Any]
"""Gives a value as it is kept, or raises."""


class CheckedAttributes:
    """An object whose class says what its attributes may be.

    Attributes:
        checks: The check of an attribute, by its name (class attribute).
        fixed: Attributes that cannot be changed once they are set (class attribute).
    """

    checks: ClassVar[Mapping[str, Check]] = {}
    fixed: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute.

        Raises:
            ConfigurationError: If the value makes no sense, or the attribute cannot be changed.
        """
        if name in self.fixed and name in vars(self):
            raise ConfigurationError(
                f"{name} is set to {value!r:.80} after construction",
                f"the {name} that the {type(self).__name__} was made with",
                "make another one",
            )
        check = self.checks.get(name)
        super().__setattr__(name, value if check is None else check(value))
