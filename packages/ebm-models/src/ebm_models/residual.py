"""`ResidualNetwork` and `ResNetEnergy`: residual blocks without normalisation, for images.

The networks of Du & Mordatch 2019 (IGEBM, arXiv:1903.08689) and Grathwohl et al. 2020 (JEM,
arXiv:1912.03263) are residual networks without batch normalisation, which would let the states of a
batch influence each other, with a smooth activation, average pooling between stages and a linear
map of what is pooled over the image.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ebm_core.validation import check_integer
from ebm_models.activations import Activation, make_activation
from ebm_models.base import BaseModel
from ebm_models.convolutional import check_channels, check_image_shape, check_size, normalized
from ebm_models.saving import register


class ResidualBlock(nn.Module):
    """x ↦ s(x) + conv(a(conv(a(x)))), with a 1 × 1 convolution s where the channels change.

    Args:
        n_inputs: Channels of x.
        n_outputs: Channels of the result.
        activation: a.
        spectral_norm: Divide each convolution's weight by its largest singular value.
    """

    def __init__(
        self, n_inputs: int, n_outputs: int, activation: Activation, spectral_norm: bool
    ) -> None:
        super().__init__()
        self.activation = activation
        self.first = normalized(nn.Conv2d(n_inputs, n_outputs, 3, padding=1), spectral_norm)
        self.second = normalized(nn.Conv2d(n_outputs, n_outputs, 3, padding=1), spectral_norm)
        self.shortcut: nn.Module = nn.Identity()
        if n_inputs != n_outputs:
            self.shortcut = normalized(nn.Conv2d(n_inputs, n_outputs, 1), spectral_norm)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, n_inputs, h, w) -> (batch, n_outputs, h, w)``."""
        inner = self.second(self.activation(self.first(self.activation(x))))
        outputs: Tensor = self.shortcut(x) + inner
        return outputs


@register
class ResidualNetwork(nn.Module):
    """A 3 × 3 convolution, stages of residual blocks, the mean over the image, a linear map.

    Between stages 2 × 2 average pooling halves the resolution. With an output for each class it is
    a network for `ClassifierEnergy` and `ConditionalEnergy`.

    Args:
        event_shape: ``(channels, height, width)`` of an image.
        channels: Channels of each stage.
        n_outputs: Numbers that it gives for each image.
        blocks_per_stage: Residual blocks of each stage.
        activation: As in `MLPEnergy`.
        spectral_norm: Divide each convolution's weight by its largest singular value, as IGEBM
            does (Miyato et al. 2018, arXiv:1802.05957); the linear map stays free.

    Raises:
        ConfigurationError: If an argument makes no sense, or images are too small for so many
            stages.

    Example:
        >>> import torch
        >>> ResidualNetwork((3, 32, 32), (16, 32, 64), 10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        event_shape: tuple[int, int, int],
        channels: Sequence[int] = (64, 128, 256),
        n_outputs: int = 1,
        blocks_per_stage: int = 2,
        activation: str | Activation = "silu",
        *,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        depth, height, width = check_image_shape(event_shape)
        widths = check_channels(channels)
        check_size(height, width, 2 ** (len(widths) - 1), f"{len(widths)} stages")
        n_blocks = check_integer("blocks_per_stage", blocks_per_stage, at_least=1)
        self.activation = make_activation(activation)
        self.input = normalized(nn.Conv2d(depth, widths[0], 3, padding=1), spectral_norm)
        self.stages = nn.ModuleList()
        depth = widths[0]
        for n_channels in widths:
            inputs = (depth, *[n_channels] * (n_blocks - 1))
            blocks = (ResidualBlock(n, n_channels, self.activation, spectral_norm) for n in inputs)
            self.stages.append(nn.Sequential(*blocks))
            depth = n_channels
        self.output = nn.Linear(depth, check_integer("n_outputs", n_outputs, at_least=1))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs: ``(batch, channels, height, width) -> (batch, n_outputs)``."""
        x = self.input(x if x.is_floating_point() else x.to(self.output.weight.dtype))
        for i, stage in enumerate(self.stages):
            x = stage(nn.functional.avg_pool2d(x, 2) if i else x)
        outputs: Tensor = self.output(self.activation(x).mean((2, 3)))
        return outputs


@register
class ResNetEnergy(BaseModel):
    """E(x) = ResidualNetwork(x) + |x|² / (2 base_scale²), on images.

    Args:
        event_shape: ``(channels, height, width)`` of an image.
        channels: Channels of each stage; the resolution halves between stages.
        blocks_per_stage: Residual blocks of each stage.
        activation: As in `MLPEnergy`.
        base_scale: Standard deviation of the Gaussian base term; None for none. See `BaseModel`.
        spectral_norm: Bound the convolutions' singular values, see `ResidualNetwork`.

    Raises:
        ConfigurationError: As `ResidualNetwork` and `BaseModel`.

    Example:
        >>> import torch
        >>> energy = ResNetEnergy((1, 8, 8), channels=(16, 32), blocks_per_stage=1)
        >>> energy(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        event_shape: tuple[int, int, int],
        channels: Sequence[int] = (64, 128, 256),
        blocks_per_stage: int = 2,
        activation: str | Activation = "silu",
        *,
        base_scale: float | None = None,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(check_image_shape(event_shape), base_scale)
        self.network = ResidualNetwork(
            event_shape, channels, 1, blocks_per_stage, activation, spectral_norm=spectral_norm
        )

    def network_energy(self, x: Tensor) -> Tensor:
        """The network's output, ``(batch, 1)``."""
        energy: Tensor = self.network(x)
        return energy
