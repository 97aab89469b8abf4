"""Results as ArviZ data: an xarray ``DataTree`` that arviz-stats and arviz-plots accept."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm_core import ConfigurationError, SampleResult, ShapeError
from ebm_utils.draws import require_trajectory

if TYPE_CHECKING:
    from xarray import DataTree


def to_arviz(
    result: SampleResult,
    name: str = "x",
    *,
    dims: Sequence[str] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> "DataTree":
    """Draws and statistics in ArviZ's schema.

    Group ``posterior`` holds the draws under ``name``, sharing their memory if they are on the CPU.
    Group ``sample_stats`` holds ``lp`` = -E(x), unnormalised, and the result's statistics under
    their own names (``step_size`` repeated for each draw, as the schema has it). The seed is an
    attribute of the root, in decimal digits, since it may not fit 64 signed bits.

    Args:
        result: A result with a trajectory.
        name: The variable's name.
        dims: Names of the event's axes; None for ``x_dim_0`` and so on.
        coords: Labels along these axes, by their name.

    Raises:
        ConfigurationError: If the result holds no trajectory, or a name of ``dims`` is taken.
        ShapeError: If ``dims`` are not as many as the event's axes.

    Example:
        >>> import torch
        >>> draws = torch.zeros(4, 10, 2)
        >>> result = SampleResult(draws[:, -1], draws, potential=draws.sum(-1), stats={}, seed=1)
        >>> tree = to_arviz(result, "position", dims=["axis"], coords={"axis": ["across", "up"]})
        >>> dict(tree.posterior.sizes), tree.sample_stats.lp.shape, tree.attrs["seed"]
        ({'chain': 4, 'draw': 10, 'axis': 2}, (4, 10), '1')
    """
    from arviz_base import from_dict

    trajectory = require_trajectory(result)
    n_chains, n_draws, *event = trajectory.shape
    if dims is not None and len(dims) != len(event):
        raise ShapeError(
            f"dims are {list(dims)} for the event shape {tuple(event)}",
            f"{len(event)} names",
            "name each axis of the event, or none",
        )
    if dims is not None and len({"chain", "draw", name, *dims}) < 3 + len(dims):
        raise ConfigurationError(
            f"dims are {list(dims)} for the variable {name!r}",
            f"names that differ from each other and from 'chain', 'draw' and {name!r}",
            "rename dims",
        )
    statistics = {"lp": -result.potential, **result.stats}
    sample_stats = {
        key: _array(value.reshape(n_chains, -1).expand(n_chains, n_draws)).copy()
        for key, value in statistics.items()
    }
    return from_dict(
        {"posterior": {name: _array(trajectory)}, "sample_stats": sample_stats},
        dims=None if dims is None else {name: list(dims)},
        coords=None if coords is None else dict(coords),
        attrs={"/": {} if result.seed is None else {"seed": str(result.seed)}},
        check_conventions=False,  # many chains of few draws are the rule here, not a mistake
    )


def _array(values: Tensor) -> NDArray[np.generic]:
    """As NumPy's, which knows no bfloat16."""
    values = values.detach().cpu()
    array: NDArray[np.generic] = (
        values.float() if values.dtype == torch.bfloat16 else values
    ).numpy()
    return array
