"""`BaseModel`: a network as an energy, and the base term that makes its density integrable.

A network's output may grow slowly, or fall, far from the data, so that exp(-E) has no finite
integral and chains run away. A weak Gaussian base term, E(x) = network(x) + |x|²/(2 s²), bounds
that with s a few times the spread of the data: the network then models the ratio of the density to
N(0, s² I), and grows at most linearly for the usual activations.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ebm_core import EnergyFunction, ShapeError
from ebm_core.validation import check_event_shape, check_positive


class BaseModel(EnergyFunction):
    """A network as an energy: E(x) = network_energy(x) + |x|² / (2 base_scale²).

    Subclasses implement `network_energy`, and no more. The states of a batch must not influence
    each other (so no batch normalisation in training mode): samplers and normalisers take each for
    itself.

    Args:
        event_shape: The shape of one state (an int for vectors); None if the network takes any.
        base_scale: s, the standard deviation of the Gaussian base in units of the data, positive;
            None for no base term.

    Attributes:
        base_scale: s as a scalar buffer (moved by ``.to``, saved in ``state_dict``), or None.

    Raises:
        ConfigurationError: If ``event_shape`` is no shape or ``base_scale`` not positive.

    Example:
        >>> class ConvolutionalEnergy(BaseModel):
        ...     def __init__(self):
        ...         super().__init__((1, 8, 8), base_scale=2.0)
        ...         self.network = torch.nn.Sequential(
        ...             torch.nn.Conv2d(1, 16, 3),
        ...             torch.nn.SiLU(),
        ...             torch.nn.Flatten(),
        ...             torch.nn.Linear(576, 1),
        ...         )
        ...     def network_energy(self, x):
        ...         return self.network(x)
        >>> ConvolutionalEnergy()(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    base_scale: Tensor | None

    def __init__(
        self, event_shape: int | tuple[int, ...] | None = None, base_scale: float | None = None
    ) -> None:
        super().__init__()
        if event_shape is not None:
            self.event_shape = check_event_shape("event_shape", event_shape)
        scale = (
            None if base_scale is None else torch.tensor(check_positive("base_scale", base_scale))
        )
        self.register_buffer("base_scale", scale)

    @abstractmethod
    def network_energy(self, x: Tensor) -> Tensor:
        """The network's part of the energy.

        Args:
            x: States, ``(batch, *event)``.

        Returns:
            One number a state, ``(batch,)`` or ``(batch, 1)``.
        """

    def forward(self, x: Tensor) -> Tensor:
        """The energy: ``(batch, *event) -> (batch,)``.

        Raises:
            ShapeError: If ``x`` is not one batch of states, or the network does not give one number
                a state.
        """
        self.batch_size(x)
        energy = _check_output(self.network_energy(x), x)
        energy = energy.squeeze(1) if energy.ndim == 2 else energy
        return self.with_base(energy, x)

    def with_base(self, energy: Tensor, x: Tensor) -> Tensor:
        """Energies ``(batch,)`` of states ``(batch, *event)``, with the base term added."""
        if self.base_scale is None:
            return energy
        return energy + _squared_norm(x.to(energy.dtype)) / (2 * self.base_scale.square())


def _check_output(output: Any, x: Tensor) -> Tensor:
    is_tensor = isinstance(output, Tensor)
    if not is_tensor or output.shape not in ((len(x),), (len(x), 1)):
        given = tuple(output.shape) if is_tensor else f"a {type(output).__name__}"
        raise ShapeError(
            f"the network gave {given} for states {tuple(x.shape)}",
            "a tensor of one number a state, (batch,) or (batch, 1)",
            "end the network in a layer with one output, sum over the other axes, or pick the "
            "energies out of what it returns",
        )
    checked: Tensor = output
    return checked


def _squared_norm(x: Tensor) -> Tensor:
    # The axis added last keeps a batch of scalar states, (batch,), from losing its only axis.
    return x.square().unsqueeze(-1).flatten(1).sum(1)
