"""`save` and `load`: models as safetensors files, with what rebuilds them in JSON, and no pickle.

A file holds the tensors of ``state_dict``, each in its dtype, and one entry of metadata,
``ebm_models``: the name of the model's class and the arguments it was constructed with. `load`
looks the name up among the registered classes, calls the constructor and fills in the tensors, so
that a file can do no more than that. Every model of this package is registered; a class of your own
is by `register`::

    @register
    class MyEnergy(BaseModel):
        def __init__(self, width, depth=2): ...

Arguments may be numbers, words, booleans, None, lists and tuples of these, and instances of
registered classes. A model with others (a function as activation, an arbitrary network in
`ModuleEnergy`), or with a network that has been replaced since, can be saved as well; its file then
says why it cannot be rebuilt, and `load_into` fills a model that you construct.
"""

import functools
import inspect
import json
import math
import numbers
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ebm_core import ConfigurationError

PathLike = str | os.PathLike[str]
M = TypeVar("M", bound=nn.Module)

FORMAT = 1
"""Version of the metadata."""

_ENTRY = "ebm_models"
_REGISTRY: dict[str, type[nn.Module]] = {}


class _CannotRebuild(Exception):  # noqa: N818 - a reason
    """Why a file cannot rebuild its model."""


def register(kind: type[M]) -> type[M]:
    """Make a class of models one that `load` can rebuild; a decorator.

    From then on its instances remember the arguments they are constructed with. A class that
    derives from a registered one is to be registered by itself.

    Raises:
        ConfigurationError: If it is no class of modules, takes ``*args``, or another class of its
            name is registered.

    Example:
        >>> @register
        ... class Scaled(nn.Module):
        ...     def __init__(self, scale):
        ...         super().__init__()
        ...         self.scale = scale
        >>> constructor_arguments(Scaled(2.0))
        {'scale': 2.0}
    """
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ConfigurationError(
            f"register was given {kind!r}", "a class of torch.nn.Module", "decorate the class"
        )
    other = _REGISTRY.get(kind.__name__, kind)
    if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ConfigurationError(
            f"{kind.__module__}.{kind.__qualname__} has the name of the registered class "
            f"{other.__module__}.{other.__qualname__}",
            "a name of its own",
            "rename the class: files refer to it by name",
        )
    construct = kind.__init__
    signature = inspect.signature(construct)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        raise ConfigurationError(
            f"the constructor of {kind.__name__} takes *args",
            "named arguments, which a file can hold",
            "name them in the constructor",
        )

    @functools.wraps(construct)
    def recording(self: M, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        if type(self) is kind:
            bound = signature.bind(self, *args, **kwargs)
            vars(self)["_constructor_arguments"] = _named(bound)

    setattr(kind, "__init__", recording)  # noqa: B010 - which mypy refuses as an assignment
    _REGISTRY[kind.__name__] = kind
    return kind


def constructor_arguments(model: nn.Module) -> dict[str, Any]:
    """The arguments that a registered model was constructed with, by name; defaults left out.

    Raises:
        ConfigurationError: If its class is not registered.
    """
    arguments = vars(model).get("_constructor_arguments")
    if arguments is None:
        raise ConfigurationError(
            f"{type(model).__name__} does not know its constructor's arguments",
            "an instance of a class that is registered",
            "decorate the class with ebm_models.register",
        )
    return dict(arguments)


def save(model: nn.Module, path: PathLike) -> None:
    """Write a model to a file, all at once: whatever happens, the file is the old or the new one.

    Args:
        model: Any module; `load` rebuilds those of registered classes, see the module's text.
        path: Of the file, usually ending in ``.safetensors``.

    Raises:
        ConfigurationError: If ``model`` is no module, has state that is no tensor, or one of a
            dtype that the format has not, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from ebm_models import MLPEnergy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(MLPEnergy(2, hidden=(8,)), f"{folder}/energy.safetensors")
        ...     load(f"{folder}/energy.safetensors").event_shape
        torch.Size([2])
    """
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"the model is {model!r}", "an instance of torch.nn.Module", "pass the model"
        )
    description: dict[str, Any] = {"format": FORMAT, "class": type(model).__name__}
    try:
        description["arguments"] = _described(model)["arguments"]
    except _CannotRebuild as reason:
        description["cannot_rebuild"] = str(reason)
    metadata = {_ENTRY: json.dumps(description, allow_nan=False)}
    tensors = _tensors(model)
    try:
        content = to_bytes(tensors, metadata)
    except KeyError as error:  # of the dtype
        (kind,) = error.args
        names = ", ".join(repr(name) for name, tensor in tensors.items() if tensor.dtype == kind)
        raise ConfigurationError(
            f"{names} in the model's state_dict is of {kind}",
            "tensors of dtypes that safetensors files hold",
            "keep it as real and imaginary parts (torch.view_as_real), for example",
        ) from error
    _write(Path(path), content)


def load(path: PathLike, device: torch.device | str = "cpu") -> Any:
    """Rebuild the model of a file: its class, its constructor's arguments, its tensors.

    The model is as after its construction in all that tensors do not hold: in training mode, with
    all parameters to be trained. Torch's random state is left as it is.

    Args:
        path: What `save` wrote.
        device: Where the model is to be.

    Returns:
        The model.

    Raises:
        ConfigurationError: If the file is not there, was not written by `save`, is of a class that
            is not registered, or cannot rebuild its model.
    """
    description, tensors = _read(path)
    if "arguments" not in description:
        raise ConfigurationError(
            f"{os.fspath(path)!r} cannot rebuild its model: {description.get('cannot_rebuild')}",
            "a model of registered classes, with arguments that JSON can hold",
            "construct the model as it was, and call ebm_models.load_into(path, model)",
        )
    # On the CPU, whatever the default device: its random state alone is put back.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = _rebuilt(description, os.fspath(path))
    _fill(model, tensors, os.fspath(path))
    return model.to(device)


def load_into(path: PathLike, model: M) -> M:
    """Fill a model with the tensors of a file.

    Args:
        path: What `save` wrote.
        model: A model like the one that was saved; takes over the tensors' dtypes, and stays on its
            device.

    Returns:
        ``model``.

    Raises:
        ConfigurationError: If the file is not there, was not written by `save`, or has tensors of
            other names or shapes.
    """
    description, tensors = _read(path)
    if description["class"] != type(model).__name__:
        raise ConfigurationError(
            f"{os.fspath(path)!r} holds a {description['class']}",
            f"a {type(model).__name__}, as the model is",
            "construct the model as the one that was saved",
        )
    _fill(model, tensors, os.fspath(path))
    return model


def _named(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Arguments by name, without self; those of ``**kwargs`` among the others."""
    arguments = dict(list(bound.arguments.items())[1:])
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return {
        name: list(value) if isinstance(value, list) else value for name, value in arguments.items()
    }


def _described(model: nn.Module) -> dict[str, Any]:
    """Class and arguments of a model as JSON has them."""
    name = type(model).__name__
    arguments = vars(model).get("_constructor_arguments")
    if arguments is None or _REGISTRY.get(name) is not type(model):
        raise _CannotRebuild(f"the class {name} is not registered")
    parts = set(model.modules())
    for key, value in arguments.items():
        if isinstance(value, nn.Module) and value not in parts:
            raise _CannotRebuild(f"{key} of {name} was replaced after its construction")
    values = {key: _as_json(value, f"{key} of {name}") for key, value in arguments.items()}
    return {"class": name, "arguments": values}


def _as_json(value: Any, what: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple):
        return [_as_json(item, what) for item in value]
    if isinstance(value, nn.Module):
        return {"model": _described(value)}
    raise _CannotRebuild(f"{what} is {value!r:.80}, which JSON cannot hold")


def _rebuilt(description: Mapping[str, Any], path: str) -> nn.Module:
    name = description["class"]
    kind = _REGISTRY.get(name)
    if kind is None:
        raise ConfigurationError(
            f"{path!r} holds a {name}, a class that is not registered here",
            f"one of {', '.join(sorted(_REGISTRY))}",
            f"import the module that defines {name}, decorated with ebm_models.register; or "
            "construct the model and call ebm_models.load_into(path, model)",
        )
    try:
        return kind(**{key: _from_json(v, path) for key, v in description["arguments"].items()})
    except (TypeError, RecursionError) as error:
        raise ConfigurationError(
            f"{path!r} has arguments that {name} does not take ({error})",
            "those of its constructor",
            "use the version of the class that wrote the file, or load_into(path, model)",
        ) from error


def _from_json(value: Any, path: str) -> Any:
    if isinstance(value, list):
        return tuple(_from_json(item, path) for item in value)
    if isinstance(value, dict):
        return _rebuilt(value["model"], path)
    return value


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state, each tensor in memory of its own, as the format wants it."""
    tensors = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ConfigurationError(
                f"{name!r} in the model's state_dict is a {type(value).__name__}",
                "tensors alone",
                "make it a buffer, or leave get_extra_state out",
            )
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], path: str) -> None:
    own = model.state_dict(keep_vars=True)
    wrong = [
        f"{name}: {_shape(tensors, name)} in the file, {_shape(own, name)} in the model"
        for name in sorted(own.keys() | tensors.keys())
        if _shape(tensors, name) != _shape(own, name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigurationError(
            f"{path!r} does not fit the model ({'; '.join(wrong[:3])}{more})",
            "tensors of the same names and shapes",
            "construct the model with the arguments it was saved with",
        )
    for name, tensor in own.items():
        tensor.data = tensor.data.to(tensors[name].dtype)  # parameters that are tied stay so
    model.load_state_dict(tensors)


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "nothing"


def _write(path: Path, content: bytes) -> None:
    """Put a file in its place in one move, when it is complete on the disk."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{os.fspath(path)!r} cannot be written ({error})",
            "a path in a folder that exists and can be written to",
            "make the folder, or pass another path",
        ) from error


def _read(path: PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            description = json.loads((file.metadata() or {})[_ENTRY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if description["format"] != FORMAT:
            raise ValueError(f"its format is {description['format']}")
        _check_description(description, nested=False)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{os.fspath(path)!r} is no file of a model ({type(error).__name__}: {error})",
            f"a file written by ebm_models.save, of format {FORMAT}",
            "check the path; of other safetensors files, load the tensors and call load_state_dict",
        ) from error
    return description, tensors


def _check_description(description: Any, nested: bool) -> None:
    """Refuse what `_described` cannot have written.

    Raises:
        ValueError: If it is such.
    """
    arguments = description.get("arguments", None if nested else {})
    if not isinstance(description.get("class"), str) or not isinstance(arguments, dict):
        raise ValueError("it does not name a class and its arguments")
    todo = list(arguments.values())
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += value
        elif isinstance(value, dict):
            if not isinstance(value.get("model"), dict):
                raise ValueError("an argument is an object that is no model")
            _check_description(value["model"], nested=True)
