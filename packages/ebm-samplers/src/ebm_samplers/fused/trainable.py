"""Functions of states as kernels that training differentiates by parameters."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebm_core.energy import EnergyFunction
from ebm_samplers.fused.arrays import Array, plain
from ebm_samplers.fused.engine import FusedEnergy, Run
from ebm_samplers.fused.kernel import address
from ebm_samplers.fused.rules import RULES
from ebm_samplers.fused.sensitivities import n_rows, read
from ebm_samplers.fused.trace import CannotFuse, Trace, trace_training

PAYS = 100
"""Torch's operations, backward pass included, from which kernels are asked. Perceptrons' energies
take some 30 or 60, with their gradients, as objectives differentiate them, 120 and more: where
benchmarks/terms.py was recorded, kernels were mostly slower for the former, not for the latter."""


class Trainable(EnergyFunction):
    """A function of states whose values are to be differentiated by parameters."""

    @abstractmethod
    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Of a batch: values ``(n,)`` with their history, what `witness` gives, and more."""

    @abstractmethod
    def witness(self, x: Tensor) -> Tensor:
        """What is quickly computed, ``(n,)``, and shows whether numbers have changed."""

    def forward(self, x: Tensor) -> Tensor:
        """The values."""
        return self.outputs(x)[0]


@dataclass
class Evaluation(Run):
    """What the kernel gives.

    Attributes:
        exported: All exports, ``(row, chain)``.
    """

    exported: Tensor


class TrainableEnergy(FusedEnergy):
    """The kernel "sensitivities" of a `Trainable` in its present mode, training or eval; on CPUs.

    It gives values, the other outputs, and what derivatives of values by parameters are made of;
    no gradients by states.

    Attributes:
        sensitivities: Of the parameters that require gradients.
        n_calls: Number of torch's operations, backward pass included.
        n_others: Number of outputs beside the values.
    """

    def traced(self, energy: EnergyFunction, x: Tensor) -> Trace:
        """Outputs and derivatives, from one state with its batch axis."""
        assert isinstance(energy, Trainable)
        parameters = Training(energy).parameters
        if not parameters:
            raise CannotFuse("its energy has no parameters that require gradients")
        found = trace_training(energy, energy.outputs, x, RULES, parameters)
        if not found.exports:
            raise CannotFuse("its terms come without energies")
        known = set(map(id, parameters))
        self.constants = [leaf for leaf in found.leaves if id(leaf.tensor) not in known]
        self.n_calls = sum(value.varies and value.call is not None for value in found.values)
        self.n_others = len(found.exports)
        self.sensitivities, self.copies = read(found, parameters)
        self.n_exported = n_rows(self.copies)
        return found

    def parameters(self, sampler: str, lanes: int) -> tuple[Array, float]:
        """The numbers as they are now, and the values' additive constant.

        Raises:
            CannotFuse: If one requires gradients that is no parameter: it would get none.
        """
        for leaf in self.constants:
            tensor = leaf.now()
            if tensor is not None and tensor.requires_grad:
                raise CannotFuse("it uses a tensor that requires gradients but is no parameter")
        return super().parameters(sampler, lanes)

    def lanes(self, n_chains: int) -> int:
        """How many lanes a tile has: with fewer than 64, rows of exports are too short to copy."""
        return 64 if n_chains > 32 else 32 if n_chains > 24 else super().lanes(n_chains)

    def slower(self, energy: EnergyFunction, x: Tensor, sampler: str) -> str | None:
        """Why torch would be quicker; None if it would not."""
        if self.n_calls >= PAYS:
            return None
        return (
            f"torch takes {self.n_calls} operations for it and its derivatives, and kernels are "
            f"quicker from some {PAYS} on"
        )

    def start(
        self, x: Array, sampler: str, lanes: int, p: Array, offset: float, **constants: Any
    ) -> Evaluation:
        """All outputs at states ``(chain, d)``."""
        n_chains, real = len(x), self.real
        source, state = plain(x, real), np.empty((n_chains, 2 * self.size + 1), real)
        exported = np.empty((self.n_exported, -(-n_chains // lanes) * lanes), real)
        given = {
            "p": p,
            "source": address(source),
            "state": address(state),
            "n_chains": n_chains,
            "exported": address(exported),
            "stride": exported.shape[1],
        }
        self.kernel(sampler, lanes)(n_chains * self.n_operations, given)
        slots, notes = self.slots(sampler, n_chains, 0), np.empty((3, n_chains), real)
        notes[1] = exported[0, :n_chains] - real.type(offset)
        rows = torch.from_numpy(exported)[:, :n_chains]
        return Evaluation(state, slots.draws, slots.statistics, notes, rows)

    def by_parameters(self, exported: Tensor, slopes: Tensor) -> list[Tensor | None]:
        """Σ slope · ∂value/∂θ over states, for slopes ``(chain,)``, by parameter.

        None by those that the values do not depend on, as autograd has it.
        """
        return [sensitivity.total(exported, slopes) for sensitivity in self.sensitivities]

    def others(self, exported: Tensor) -> list[Tensor]:
        """The outputs beside the values, each ``(chain,)``."""
        return [row.clone() for row in exported[: self.n_others]]

    def probe(self, energy: EnergyFunction) -> Callable[[Tensor], Tensor]:
        """Gives what is compared at each call."""
        assert isinstance(energy, Trainable)
        return energy.witness

    def allowed(self, expected: list[float], offset: float, tolerance: float) -> list[float]:
        """How far energies may be off: in proportion to how they differ, as gradients count."""
        known = [value for value in expected if math.isfinite(value)]
        if len(known) < 2:
            return super().allowed(expected, offset, tolerance)
        mean = sum(known) / len(known)
        spread = max(abs(value - mean) for value in known)
        return [tolerance * spread + 4 * self.eps * (1 + 4 * abs(value)) for value in expected]

    def units(self, largest: list[float]) -> list[float]:
        """What derivatives are measured by: the largest of all, and of each kind."""
        return [1e-3 * max(largest, default=0.0) + most for most in largest]

    def slopes(self, run: Run) -> list[list[float]]:
        """Values, other outputs, and derivatives of a weighted sum of the values that are finite.

        The constant of values is left out.
        """
        assert isinstance(run, Evaluation)
        values = torch.from_numpy(run.state[:, -1])
        finite = _finite(values)
        found = self.by_parameters(run.exported[:, finite], _weights(values[finite]))
        rows = values, *self.others(run.exported), *found
        return [[] if row is None else row.reshape(-1).tolist() for row in rows]

    def wanted(self, energy: EnergyFunction, x: Tensor) -> tuple[Tensor, list[list[float]]]:
        """What `probe` gives, and what `slopes` should be."""
        assert isinstance(energy, Trainable)
        parameters = Training(energy).parameters
        with torch.enable_grad():
            values, *others = energy.outputs(x)
            kept = energy(x[_finite(values.detach())])
            found = torch.autograd.grad(kept @ _weights(kept), parameters, allow_unused=True)
        offset = self.parameters("sensitivities", self.lanes(len(x)))[1]
        rows = values.detach() - offset, *others, *found
        return others[0], [[] if row is None else row.reshape(-1).tolist() for row in rows]


def _finite(values: Tensor) -> Tensor:
    """Which values count: those that are finite, or all if none is."""
    finite = values.isfinite()
    return finite if finite.any() else ~finite


def _weights(values: Tensor) -> Tensor:
    """Different weights for states."""
    return torch.linspace(1.0, 2.0, len(values), dtype=values.dtype)


class Training:
    """What of an energy is to be trained, and what its derivatives depend on beside numbers.

    Args:
        energy: The energy, or another module.

    Attributes:
        parameters: Those that require gradients, each once.
        names: Where each is first met.
        form: Tells which these are, where else they are met, and which modules are in training
            mode.

    Raises:
        CannotFuse: If more is to happen in ``forward``, or with gradients, than computing.
    """

    def __init__(self, energy: nn.Module) -> None:
        if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
            raise CannotFuse("there are hooks on all modules")
        self.parameters: list[nn.Parameter] = []
        self.names: list[str] = []
        self._places: dict[int, int] = {}
        self._form: list[Any] = []
        self._visit(energy, "")
        self.form = tuple(self._form)

    def _visit(self, module: nn.Module, prefix: str) -> None:
        """Look at a module and its parts; ``modules()`` and ``parameters()`` take much longer."""
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or isinstance(module, nn.parallel.DistributedDataParallel | torch.jit.ScriptModule)
        ):
            raise CannotFuse(f"{type(module).__name__} does more in forward than to compute")
        self._form += (id(module), module.training)
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            if parameter._backward_hooks:
                raise CannotFuse(f"the parameter {prefix}{name} has hooks")
            place = self._places.setdefault(id(parameter), len(self.parameters))
            if place == len(self.parameters):
                self.parameters.append(parameter)
                self.names.append(prefix + name)
            self._form += (name, place)
        for name, part in module._modules.items():
            if part is not None:
                self._visit(part, f"{prefix}{name}.")
