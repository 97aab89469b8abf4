"""`ConvNetwork` and `ConvEnergy`: plain convolutions for small images."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ebm_core import ConfigurationError
from ebm_core.validation import check_event_shape, check_integer
from ebm_models.activations import Activation, make_activation
from ebm_models.base import BaseModel
from ebm_models.saving import register


@register
class ConvNetwork(nn.Module):
    """A convolution that keeps the resolution, then convolutions that halve it, then a linear map.

    The first has 3 × 3 windows; each of the others 4 × 4 windows and a stride of 2, so that with n
    numbers of channels an image of h × w ends as h/2ⁿ⁻¹ × w/2ⁿ⁻¹, rounded down. No normalisation: a
    batch's states must not influence each other. ``ConvEnergy`` has one with a single output; with
    an output for each class it is a network for `ClassifierEnergy` and `ConditionalEnergy`.

    Args:
        event_shape: ``(channels, height, width)`` of an image.
        channels: Channels of each convolution, at least one.
        n_outputs: Numbers that it gives for each image.
        activation: As in `MLPEnergy`.
        spectral_norm: Divide each convolution's weight by its largest singular value (Miyato et al.
            2018, arXiv:1802.05957), which bounds how steep the energy can get; the last, linear
            layer stays free, so that the energy's scale can be learned.

    Raises:
        ConfigurationError: If an argument makes no sense, or images are too small for so many
            convolutions.

    Example:
        >>> import torch
        >>> ConvNetwork((1, 8, 8), (16, 32), n_outputs=10)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        event_shape: tuple[int, int, int],
        channels: Sequence[int] = (32, 64, 128),
        n_outputs: int = 1,
        activation: str | Activation = "silu",
        *,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        depth, height, width = check_image_shape(event_shape)
        widths = check_channels(channels)
        factor = 2 ** (len(widths) - 1)
        check_size(height, width, factor, f"{len(widths)} convolutions")
        self.activation = make_activation(activation)
        self.convolutions = nn.ModuleList()
        for i, n_channels in enumerate(widths):
            layer = (
                nn.Conv2d(depth, n_channels, 4, stride=2, padding=1)
                if i
                else nn.Conv2d(depth, n_channels, 3, padding=1)
            )
            self.convolutions.append(normalized(layer, spectral_norm))
            depth = n_channels
        n_features = depth * (height // factor) * (width // factor)
        self.output = nn.Linear(n_features, check_integer("n_outputs", n_outputs, at_least=1))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs: ``(batch, channels, height, width) -> (batch, n_outputs)``."""
        x = x if x.is_floating_point() else x.to(self.output.weight.dtype)
        for layer in self.convolutions:
            x = self.activation(layer(x))
        outputs: Tensor = self.output(x.flatten(1))
        return outputs


@register
class ConvEnergy(BaseModel):
    """E(x) = ConvNetwork(x) + |x|² / (2 base_scale²), on images.

    For images from 8 × 8 to about 32 × 32; see `ConvNetwork` for the layers, and `ResNetEnergy` for
    a deeper network.

    Args:
        event_shape: ``(channels, height, width)`` of an image.
        channels: Channels of each convolution; all but the first halve the resolution.
        activation: As in `MLPEnergy`.
        base_scale: Standard deviation of the Gaussian base term; None for none. See `BaseModel`.
        spectral_norm: Bound the convolutions' singular values, see `ConvNetwork`.

    Raises:
        ConfigurationError: As `ConvNetwork` and `BaseModel`.

    Example:
        >>> import torch
        >>> ConvEnergy((1, 8, 8), base_scale=2.0)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        event_shape: tuple[int, int, int],
        channels: Sequence[int] = (32, 64, 128),
        activation: str | Activation = "silu",
        *,
        base_scale: float | None = None,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(check_image_shape(event_shape), base_scale)
        self.network = ConvNetwork(
            event_shape, channels, 1, activation, spectral_norm=spectral_norm
        )

    def network_energy(self, x: Tensor) -> Tensor:
        """The network's output, ``(batch, 1)``."""
        energy: Tensor = self.network(x)
        return energy


def check_image_shape(event_shape: Any) -> tuple[int, int, int]:
    """``(channels, height, width)``.

    Raises:
        ConfigurationError: If it is something else.
    """
    shape = check_event_shape("event_shape", event_shape)
    if len(shape) != 3:
        raise ConfigurationError(
            f"event_shape is {tuple(shape)}",
            "(channels, height, width)",
            "pass (1, height, width) for grey images",
        )
    return shape[0], shape[1], shape[2]


def check_channels(channels: Any) -> list[int]:
    """Numbers of channels, at least one.

    Raises:
        ConfigurationError: If they are something else.
    """
    if isinstance(channels, str) or not isinstance(channels, Sequence) or not channels:
        raise ConfigurationError(
            f"channels is {channels!r}", "a sequence of numbers", "pass channels=(32, 64)"
        )
    return [check_integer("a number in channels", n, at_least=1) for n in channels]


def check_size(height: int, width: int, factor: int, what: str) -> None:
    """Refuse images of which nothing is left after the resolution went down by a factor.

    Raises:
        ConfigurationError: If so.
    """
    if min(height, width) < factor:
        raise ConfigurationError(
            f"images of {height} × {width} are reduced {factor}-fold by {what}",
            f"images of at least {factor} × {factor}",
            "pass fewer channels",
        )


def normalized(layer: nn.Module, spectral_norm: bool) -> nn.Module:
    """The layer, with its weight divided by its largest singular value if asked."""
    if not isinstance(spectral_norm, bool):
        raise ConfigurationError(
            f"spectral_norm is {spectral_norm!r}", "True or False", "pass one of these"
        )
    return nn.utils.parametrizations.spectral_norm(layer) if spectral_norm else layer
