"""`MLPEnergy`: a multilayer perceptron as an energy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ebm_core import ConfigurationError
from ebm_core.validation import check_event_shape, check_integer, check_positive
from ebm_models.activations import Activation, make_activation
from ebm_models.base import BaseModel
from ebm_models.features import FourierFeatures
from ebm_models.saving import register


@register
class MLPEnergy(BaseModel):
    """E(x) = MLP(x) + |x|² / (2 base_scale²), on events of any shape, which are flattened.

    Layers start as ``torch.nn.Linear`` does, uniform on ±1/sqrt(inputs): energies of order 0.1 at
    the start, so that the first chains see little but the base term. A network learns broad
    features first ("spectral bias", Rahaman et al. 2019, arXiv:1806.08734); densities with detail
    finer than their extent are learned sooner with a larger ``input_gain``, or with Fourier
    features. With fewer than two derivatives in x ("relu"), samplers work and score matching does
    not.

    Args:
        event_shape: The shape of one state; an int d for vectors.
        hidden: Width of each hidden layer; empty for a linear energy.
        activation: "silu", "softplus", "gelu", "elu", "tanh" or "relu", or an elementwise function
            or module instance.
        base_scale: Standard deviation of the Gaussian base term, a few times the data's spread;
            None for none. See `BaseModel`.
        input_gain: The first layer's weights and biases start this many times as large: the
            network begins with features of a width of about 1/input_gain.
        n_frequencies: Number of random Fourier features put beside the input; 0 for none. See
            `FourierFeatures`.
        frequency_scale: Standard deviation of their frequencies, in radians for each unit of x.

    Raises:
        ConfigurationError: If a number is out of range or the activation unknown.

    Example:
        >>> energy = MLPEnergy(2, hidden=(64, 64), base_scale=4.0)
        >>> energy(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        event_shape: int | tuple[int, ...],
        hidden: Sequence[int] = (128, 128, 128),
        activation: str | Activation = "silu",
        *,
        base_scale: float | None = None,
        input_gain: float = 1.0,
        n_frequencies: int = 0,
        frequency_scale: float = 1.0,
    ) -> None:
        super().__init__(check_event_shape("event_shape", event_shape), base_scale)
        assert self.event_shape is not None
        self.n_inputs = self.event_shape.numel()
        self.activation = make_activation(activation)
        width = self.n_inputs
        self.features: FourierFeatures | None = None
        if check_integer("n_frequencies", n_frequencies):
            self.features = FourierFeatures(width, n_frequencies, frequency_scale)
            width = self.features.n_outputs
        self.hidden = nn.ModuleList()
        for layer_width in _widths(hidden):
            self.hidden.append(nn.Linear(width, layer_width))
            width = layer_width
        self.output = nn.Linear(width, 1)
        gain = check_positive("input_gain", input_gain)
        with torch.no_grad():
            for parameter in (*self.hidden, self.output)[0].parameters():
                parameter.mul_(gain)

    def network_energy(self, x: Tensor) -> Tensor:
        """The perceptron's output: ``(batch, *event) -> (batch, 1)``; integers are numbers."""
        x = x.reshape(-1, self.n_inputs)
        if not x.is_floating_point():
            x = x.to(self.output.weight.dtype)
        if self.features is not None:
            x = self.features(x)
        for layer in self.hidden:
            x = self.activation(layer(x))
        energy: Tensor = self.output(x)
        return energy


def _widths(hidden: Any) -> list[int]:
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise ConfigurationError(
            f"hidden is {hidden!r}", "a sequence of layer widths", "pass hidden=(128, 128)"
        )
    return [check_integer("a width in hidden", width, at_least=1) for width in hidden]
