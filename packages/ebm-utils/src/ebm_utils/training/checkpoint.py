"""Checkpoint files that a cut cannot spoil, and what is in them.

A file is written under another name in the same folder, flushed to the disk, and then renamed: who
opens the path finds the old checkpoint or the new one, whole. It holds tensors, numbers, words and
their containers alone, and is read with ``torch.load(weights_only=True)``: reading one runs no
code.
"""

import copy
import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ebm_core import ConfigurationError

FORMAT = 1


def write_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a state in one piece: a cut leaves what ``path`` held before.

    Args:
        path: The file. Until it is whole, ``path`` with ".partial" behind it is written.
        state: Tensors, numbers, words, and dicts, lists and tuples of them.

    Raises:
        ConfigurationError: If it holds anything that could not be read back.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    content = _encoded({"format": FORMAT, **state})
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:  # a full disk should not hold half a file too
        with suppress(OSError):
            partial.unlink()
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name is on the disk too
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_readable(state: Mapping[str, Any]) -> None:
    """Refuse a state that `write_checkpoint` would refuse.

    Raises:
        ConfigurationError: If it holds anything that could not be read back.
    """
    _encoded({"format": FORMAT, **state})


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state that `write_checkpoint` wrote, tensors on the CPU.

    Raises:
        ConfigurationError: If there is no such file, or it is no checkpoint.
    """
    path = Path(path)
    wanted = "a file that fit wrote"
    remedy = 'pass the path of one, or resume="auto" to begin where there is none'
    if not path.is_file():
        raise ConfigurationError(f"there is no checkpoint {path}", wanted, remedy)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, by what the bytes happen to say
        raise ConfigurationError(
            f"{path} cannot be read: {str(error)[:100]}", wanted, remedy
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigurationError(f"{path} is no checkpoint of this version", wanted, remedy)
    return state


def _plain(state: Any) -> Any:
    """NumPy's numbers as Python's: a learning rate of ``np.logspace`` is one."""
    if isinstance(state, np.generic):
        return state.item()
    if type(state) in (list, tuple):
        return type(state)(map(_plain, state))
    if type(state) in (dict, OrderedDict):
        made = copy.copy(state)  # with the versions that a module's state_dict has as an attribute
        made.update((key, _plain(value)) for key, value in state.items())
        return made
    return state


def _encoded(state: Mapping[str, Any]) -> io.BytesIO:
    """The file's content, which is known to be readable: better refused now than at the resume."""
    state, content = _plain(state), io.BytesIO()
    try:
        torch.save(state, content)
        content.seek(0)
        torch.load(content, map_location="cpu", weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        if len(state) == 1:
            raise
        for name, part in state.items():
            try:
                _encoded({name: part})
            except (pickle.PickleError, AttributeError, TypeError):
                raise ConfigurationError(
                    f"the state of {name} holds objects that are no tensors, numbers or words",
                    "a state that can be read with weights_only=True",
                    "keep such objects out of state_dict() and get_extra_state()",
                ) from error
    return content
