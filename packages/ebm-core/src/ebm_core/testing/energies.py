"""Conformance of energies and of trainable models."""

import copy
import io
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ebm_core.energy import EnergyFunction, state_options
from ebm_core.errors import ShapeError
from ebm_core.seeding import make_generator


class EnergyConformance:
    """What every energy must do. Give a fixture ``energy`` (parametrise it over your instances).

    Override `states` where standard normal states lie outside the support or say little.

    Attributes:
        n_states: Batch size of the states that tests use.
        event_shape: Event shape for energies that leave theirs free.
        tolerance: Allowed relative error of energies, by dtype.
        gradient_tolerance: Allowed error of float64 gradients against central differences, relative
            to the largest gradient element of a state.
    """

    n_states: int = 6
    event_shape: tuple[int, ...] = (3,)
    tolerance: ClassVar[Mapping[torch.dtype, float]] = {torch.float32: 1e-5, torch.float64: 1e-12}
    gradient_tolerance: float = 1e-6

    def states(self, energy: EnergyFunction) -> Tensor:
        """Test states, ``(n_states, *event)``, of the energy's device and dtype."""
        event_shape = self.event_shape if energy.event_shape is None else energy.event_shape
        noise = torch.randn((self.n_states, *event_shape), generator=make_generator(0))
        return noise.to(*state_options(energy))

    def test_gives_one_number_a_state(self, energy: EnergyFunction) -> None:
        x = self.states(energy)
        assert energy(x).shape == x.shape[:1]
        assert energy(x).dtype == x.dtype
        assert torch.isfinite(energy(x)).all()

    def test_states_of_a_batch_do_not_mix(self, energy: EnergyFunction) -> None:
        energy.eval()
        x = self.states(energy)
        alone = torch.cat([energy(row[None]) for row in x])
        self._assert_close(energy(x), alone)
        self._assert_close(energy(x.flip(0)), alone.flip(0))

    def test_gradient_equals_central_differences(self, energy: EnergyFunction) -> None:
        energy = copy.deepcopy(energy).double().eval()
        x = self.states(energy).double()
        gradient = energy.gradient(x).reshape(len(x), -1)
        step = 1e-5
        for row in range(len(x)):
            moves = step * torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
            moves = moves.reshape(-1, *x.shape[1:])
            with torch.no_grad():
                difference = (energy(x[row] + moves) - energy(x[row] - moves)) / (2 * step)
            scale = 1 + gradient[row].abs().max()
            assert (difference - gradient[row]).abs().max() <= self.gradient_tolerance * scale

    def test_score_is_minus_gradient(self, energy: EnergyFunction) -> None:
        x = self.states(energy)
        energy.eval()
        assert torch.equal(energy.score(x), -energy.gradient(x))

    def test_gradient_is_detached_and_leaves_everything_alone(self, energy: EnergyFunction) -> None:
        x = self.states(energy).requires_grad_()
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                before = torch.is_grad_enabled()
                value, gradient = energy.energy_and_gradient(x)
                assert torch.is_grad_enabled() == before
            assert gradient.shape == x.shape
            assert not value.requires_grad
            assert not gradient.requires_grad
        assert x.grad is None
        assert all(parameter.grad is None for parameter in energy.parameters())

    def test_an_unbatched_state_is_refused(self, energy: EnergyFunction) -> None:
        x = self.states(energy)
        state = x[0] if x.ndim > 2 or energy.event_shape is not None else x[0, 0]
        try:
            energy.energy_and_gradient(state)
        except ShapeError as error:
            assert "[None]" in str(error)  # noqa: PT017 (this module does not import pytest)
        else:
            raise AssertionError("a state without batch axis was taken")

    def test_state_dict_and_copies_restore_the_energy(self, energy: EnergyFunction) -> None:
        energy.eval()
        x = self.states(energy)
        file = io.BytesIO()
        torch.save(energy.state_dict(), file)
        file.seek(0)
        twin = copy.deepcopy(energy)
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.data.zero_()
        twin.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(twin(x), energy(x))

    def test_moves_to_double(self, energy: EnergyFunction) -> None:
        energy.eval()
        double = copy.deepcopy(energy).double()
        x = self.states(energy)
        assert double(x.double()).dtype == torch.float64
        self._assert_close(double(x.double()).to(x.dtype), energy(x))

    def test_exact_samples_are_seeded(self, energy: EnergyFunction) -> None:
        exact_sample: Any = getattr(energy, "exact_sample", None)
        if exact_sample is None:
            return
        state = torch.get_rng_state()
        first, again, other = (exact_sample(4, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert energy(first).shape == (4,)
        assert torch.isfinite(energy(first)).all()

    def _assert_close(self, first: Tensor, second: Tensor) -> None:
        tolerance = self.tolerance[first.dtype]
        torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


class ModelConformance(EnergyConformance):
    """What every trainable energy must do beside. Give a fixture ``energy``."""

    def test_every_parameter_is_trained_by_the_energy(self, energy: EnergyFunction) -> None:
        x = self.states(energy)
        loss = (energy(x) * torch.arange(1.0, len(x) + 1).to(x)).sum()
        torch.autograd.backward(loss)
        untouched = [name for name, p in energy.named_parameters() if p.grad is None]
        assert not untouched
        assert any(isinstance(p, nn.Parameter) for p in energy.parameters())
        energy.zero_grad()

    def test_scores_can_be_trained(self, energy: EnergyFunction) -> None:
        x = self.states(energy)
        torch.autograd.backward(energy.score(x, create_graph=True).square().sum())
        gradients = [p.grad for p in energy.parameters() if p.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert any(gradient.abs().sum() > 0 for gradient in gradients)
        energy.zero_grad()
