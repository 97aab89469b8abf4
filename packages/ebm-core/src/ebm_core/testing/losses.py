"""Conformance of losses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ebm_core.energy import EnergyFunction
from ebm_core.errors import EBMError
from ebm_core.seeding import make_generator
from ebm_core.testing.reference import QuadraticEnergy

MakeLoss = Callable[[EnergyFunction], Any]


class LossConformance:
    """What every loss must do. Give a fixture ``make_loss``: a function ``energy -> loss``.

    Attributes:
        event_shapes: Event shapes that the loss must take.
        batch_size: Number of data in a batch.
    """

    event_shapes: tuple[tuple[int, ...], ...] = ((2,), (2, 3))
    batch_size: int = 8

    def data(self, event_shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """A batch of standard normal data, ``(batch_size, *event_shape)``."""
        shape = (self.batch_size, *event_shape)
        return torch.randn(shape, generator=make_generator(1), dtype=dtype)

    def energy(
        self, event_shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> EnergyFunction:
        """The energy to train: quadratic, its parameters away from the data's."""
        mean = torch.full(event_shape, 0.5, dtype=dtype)
        return QuadraticEnergy(mean, torch.full(event_shape, 2.0, dtype=dtype))

    def test_is_a_scalar_that_trains_the_energy(self, make_loss: MakeLoss) -> None:
        for event_shape in self.event_shapes:
            for dtype in (torch.float32, torch.float64):
                energy = self.energy(event_shape, dtype)
                loss = make_loss(energy)(self.data(event_shape, dtype))
                assert loss.shape == ()
                assert loss.dtype == dtype
                loss.backward()
                gradients = [parameter.grad for parameter in energy.parameters()]
                assert all(g is not None and torch.isfinite(g).all() for g in gradients)
                assert any(g is not None and g.abs().sum() > 0 for g in gradients)

    def test_does_not_change_the_data(self, make_loss: MakeLoss) -> None:
        x = self.data(self.event_shapes[0])
        before = x.clone()
        make_loss(self.energy(self.event_shapes[0]))(x)
        assert torch.equal(x, before)
        assert not x.requires_grad

    def test_metrics_are_detached_scalars(self, make_loss: MakeLoss) -> None:
        loss_fn = make_loss(self.energy(self.event_shapes[0]))
        loss_fn(self.data(self.event_shapes[0]))
        assert loss_fn.metrics
        assert all(v.shape == () and not v.requires_grad for v in loss_fn.metrics.values())

    def test_metrics_stay_what_they_were(self, make_loss: MakeLoss) -> None:
        loss_fn = make_loss(self.energy(self.event_shapes[0]))
        loss = loss_fn(self.data(self.event_shapes[0]))
        before = {name: value.clone() for name, value in loss_fn.metrics.items()}
        with torch.no_grad():  # as optimisers and gradient accumulation do
            for tensor in (loss, *getattr(loss_fn, "parameters", tuple)()):
                tensor.add_(1.0)
        assert all(torch.equal(value, before[name]) for name, value in loss_fn.metrics.items())

    def test_data_of_inference_mode_can_be_trained_on(self, make_loss: MakeLoss) -> None:
        with torch.inference_mode():
            x = self.data(self.event_shapes[0]).clone()
        make_loss(self.energy(self.event_shapes[0]))(x).backward()

    def test_wrong_shapes_and_non_finite_data_are_refused(self, make_loss: MakeLoss) -> None:
        event_shape = self.event_shapes[0]
        broken = self.data(event_shape)
        broken[0] = torch.nan
        for x in (broken, self.data((*event_shape, 2)), self.data(event_shape)[0]):
            try:
                make_loss(self.energy(event_shape))(x)
            except EBMError:
                continue
            raise AssertionError(f"data of shape {tuple(x.shape)}, or with NaN, were taken")

    def test_takes_a_plain_function_as_energy(self, make_loss: MakeLoss) -> None:
        scale = torch.tensor(1.5, requires_grad=True)
        loss_fn = make_loss(lambda x: scale * x.square().flatten(1).sum(1))  # type: ignore[arg-type]
        loss_fn(self.data(self.event_shapes[0])).backward()
        assert scale.grad is not None
