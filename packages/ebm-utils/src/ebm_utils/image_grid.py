"""Images side by side, in one pair of axes."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ebm_core import ConfigurationError, NumericalError, SampleResult, ShapeError
from ebm_core.validation import check_integer, check_number
from ebm_utils.arrays import TensorLike, to_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = 0.6  # of an image
GAP = 1  # pixels between images


def plot_images(
    images: SampleResult | TensorLike,
    *,
    n_columns: int | None = None,
    limits: tuple[float, float] | None = None,
    title: str | None = "Samples",
    ax: "Axes | None" = None,
) -> "Axes":
    """A grid of images, row by row, with one scale for all.

    Args:
        images: ``(n, height, width)``, ``(n, 1, height, width)`` in grey, or ``(n, 3, height,
            width)`` in colour; or a result, whose final states are shown.
        n_columns: Images of a row; None for about as many as rows.
        limits: Values shown in black and in white; None for the least and the largest. Values
            beyond are shown like them.
        title: Title; None for none.
        ax: Axes to draw into; None for a new figure.

    Raises:
        ShapeError: If they are no images, or there are none.
        NumericalError: If a value is not finite.
        ConfigurationError: If a number makes no sense.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = plot_images(np.zeros((6, 8, 8)), n_columns=3, title=None)
        >>> ax.images[0].get_array().shape
        (17, 26)
        >>> plt.close(ax.figure)
    """
    pixels = _pixels(images)
    low, high = (pixels.min(), pixels.max()) if limits is None else _checked_limits(limits)
    scaled = np.clip((pixels - low) / max(high - low, 1e-300), 0.0, 1.0)
    n, height, width, n_channels = scaled.shape
    columns = math.ceil(math.sqrt(n)) if n_columns is None else n_columns
    columns = min(check_integer("n_columns", columns, at_least=1), n)
    rows = math.ceil(n / columns)
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, n_channels)
    mosaic = np.full(shape, np.nan)
    for i, image in enumerate(scaled):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        mosaic[top : top + height, left : left + width] = image
    if ax is None:
        import matplotlib.pyplot as plt

        size = (max(2.0, INCHES * columns), max(2.0, INCHES * rows * height / width))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    if n_channels == 1:
        ax.imshow(mosaic[..., 0], cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    else:
        ax.imshow(np.nan_to_num(mosaic, nan=1.0), interpolation="nearest")
    ax.set_axis_off()
    if title is not None:
        ax.set_title(title)
    return ax


def _checked_limits(limits: Any) -> tuple[float, float]:
    try:
        low, high = limits
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"limits are {limits!r}", "two numbers", "pass limits=(0, 1)"
        ) from error
    low = check_number("the lower limit", low)
    return low, check_number("the upper limit", high, above=low)


def _pixels(images: SampleResult | TensorLike) -> NDArray[np.float64]:
    """``(n, height, width, channels)``."""
    values = images.final if isinstance(images, SampleResult) else images
    tensor = to_tensor("images", values).detach().to("cpu").double()
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    if tensor.ndim != 4 or tensor.shape[1] not in (1, 3) or tensor.numel() == 0:
        raise ShapeError(
            f"images have shape {tuple(to_tensor('images', values).shape)}",
            "(n, height, width), (n, 1, height, width) or (n, 3, height, width), at least one",
            "reshape flat images: x.reshape(-1, 8, 8)",
        )
    pixels: NDArray[np.float64] = tensor.permute(0, 2, 3, 1).numpy()
    if not np.isfinite(pixels).all():
        raise NumericalError("images hold NaN or infinity", "finite values", "leave those out")
    return pixels
