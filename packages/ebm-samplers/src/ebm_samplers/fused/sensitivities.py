"""Derivatives of energies by parameters: what kernels give for them, and how it is put together.

A weight meets each state in a product, so that a state's ∂E/∂W is a product, too: of the cotangent
of the layer's output and the layer's input. A kernel gives both for all states; their sum over
states, weighted by the slopes of whatever the energies go into, is one product of matrices, which
is torch's. Derivatives that are no such product (by biases) are given element by element.

`read` finds these parts in a trace, `TrainableEnergy` has the kernels.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebm_core.energy import EnergyFunction
from ebm_samplers.fused.algebra import SAME_ORDER, TURNS
from ebm_samplers.fused.arrays import Array, plain
from ebm_samplers.fused.engine import FusedEnergy, Run
from ebm_samplers.fused.kernel import address
from ebm_samplers.fused.matrices import rows_by_rows
from ebm_samplers.fused.rules import RULES
from ebm_samplers.fused.trace import Call, CannotFuse, Ref, Trace, aten, trace_training

CALL, OPERATION, ELEMENT = 200e-6, 3e-6, 7e-12
"""Seconds that a call takes beside the kernel's arithmetic, that each of torch's operations takes
beside its own, and that a kernel saves on each scalar operation: so that perceptrons of 2-32-32-1
to 2-512-512-1 were found to be quicker by kernels in denoising score matching with 256 states (1.1
to 1.8 times) and 2048 (1.2 to 2.4), in sliced score matching always (1.2 to 3), and by energies
alone with some 30 million scalar operations in all (Zen 5, one core)."""

MOST_ROWS = 1024
"""Elements up to which a derivative that is no product is given for each state."""

VIEWS = SAME_ORDER | TURNS | {aten.sum.dim_IntList}
"""Operations that only arrange elements anew if there are as many afterwards."""


@dataclass(frozen=True)
class Product:
    """A derivative ``(p, q)`` of a state that is ``(p, k) @ (k, q)``, by numbers of exports.

    Attributes:
        left, right: The factors.
        p, k, q: Their sizes.
        turned: Whether the derivative is the transposed product.
    """

    left: int
    right: int
    p: int
    k: int
    q: int
    turned: bool

    def total(self, exports: Sequence[Tensor], slopes: Tensor) -> Tensor:
        """The sum over states ``n``, weighted by slopes ``(n,)``; elements in C order."""
        left, right = exports[self.left] * slopes, exports[self.right]
        if self.k > 1:  # more terms, as if there were more states
            left = left.view(self.p, -1)
            right = right.reshape(self.k, self.q, -1).transpose(0, 1).reshape(self.q, -1)
        product = rows_by_rows(left, right)
        return (product.t() if self.turned else product).reshape(-1)


@dataclass(frozen=True)
class Sensitivity:
    """∂E/∂θ of one parameter: the sum of all its parts.

    Attributes:
        shape: That of the parameter.
        products: Parts that are products.
        rows: Parts given element by element, by numbers of exports.
        constant: The part that is the same for all states; None for nothing.
    """

    shape: torch.Size
    products: tuple[Product, ...] = ()
    rows: tuple[int, ...] = ()
    constant: Tensor | None = None

    def total(self, exports: Sequence[Tensor], slopes: Tensor) -> Tensor | None:
        """Σ slope · ∂E/∂θ over states, of the shape of the parameter; None where there is none."""
        parts = [product.total(exports, slopes) for product in self.products]
        parts += [exports[row] @ slopes for row in self.rows]
        if self.constant is not None:
            parts.append(self.constant.reshape(-1) * slopes.sum())
        if not parts:
            return None
        total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        return total.view(self.shape)


def read(trace: Trace, parameters: Sequence[Tensor]) -> list[Sensitivity]:
    """What the derivatives of a trace are made of; the parts become exports of the trace.

    Raises:
        CannotFuse: If one of them would take too many numbers for each state.
    """
    return [
        Sensitivity(parameter.shape) if slope is None else _Reading(trace).of(slope)
        for parameter, slope in zip(parameters, trace.slopes, strict=True)
    ]


class _Reading:
    """The parts of one derivative."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.values = trace, trace.values
        self.found: list[tuple[Ref, Ref, bool]] = []
        self.constant: Tensor | None = None

    def of(self, slope: Ref) -> Sensitivity:
        """The parts of a value."""
        example = self.values[slope.index].example
        if self._add(slope, ()):
            products = tuple(self._product(*factors) for factors in self.found)
            return Sensitivity(example.shape, products, constant=self.constant)
        if example.numel() > MOST_ROWS:
            raise CannotFuse(
                f"a parameter's derivative has {example.numel():,} numbers for each state, and "
                f"beyond {MOST_ROWS:,} it has to be a product of matrices"
            )
        return Sensitivity(example.shape, rows=(self._export(slope),))

    def _add(self, ref: Ref, views: tuple[Call, ...]) -> bool:
        """Add a value, seen through views; False if it is no sum of products and constants."""
        value = self.values[ref.index]
        call = value.call
        if value.fixed:
            constant = _viewed(value.example.detach().clone(), views)
            self.constant = constant if self.constant is None else self.constant + constant
            return True
        if call is None:
            return False
        if self._is_view(ref):
            return self._add(call.args[0], (call, *views))
        if call.function is aten.add.Tensor and self._is_plain_sum(call, ref):
            return all(self._add(part, views) for part in call.args)
        if call.function not in (aten.mm.default, aten.bmm.default):
            return False
        left, right = call.args
        *batch, p, k = self.values[left.index].example.shape
        q = self.values[right.index].example.shape[-1]
        turned = _turned(p, q, views, value.example.shape)
        if batch not in ([], [1]) or turned is None or p * k + k * q > p * q:
            return False
        self.found.append((left, right, turned))
        return True

    def _product(self, left: Ref, right: Ref, turned: bool) -> Product:
        p, k = self.values[left.index].example.shape[-2:]
        q = self.values[right.index].example.shape[-1]
        return Product(self._export(left), self._export(right), p, k, q, turned)

    def _is_view(self, ref: Ref) -> bool:
        value = self.values[ref.index]
        if value.call is None or value.call.function not in VIEWS:
            return False
        before: int = self.values[value.call.args[0].index].example.numel()
        return before == value.example.numel()

    def _is_plain_sum(self, call: Call, ref: Ref) -> bool:
        shape = self.values[ref.index].example.shape
        return not call.kwargs and all(
            isinstance(part, Ref) and self.values[part.index].example.shape == shape
            for part in call.args
        )

    def _export(self, ref: Ref) -> int:
        while self._is_view(ref) and sum(n > 1 for n in self.values[ref.index].example.shape) <= 1:
            call = self.values[ref.index].call
            assert call is not None
            ref = call.args[0]  # the same elements in the same order
        exports = self.trace.exports
        if ref not in exports:
            exports.append(ref)
        return exports.index(ref)


def _viewed(tensor: Tensor, views: tuple[Call, ...]) -> Tensor:
    for view in views:
        tensor = view.function(tensor, *view.args[1:], **view.kwargs)
    return tensor


def _turned(p: int, q: int, views: tuple[Call, ...], shape: torch.Size) -> bool | None:
    """Whether views transpose a matrix ``(p, q)``; None if they do something else to it."""
    numbers = torch.arange(p * q)
    seen = _viewed(numbers.view(shape), views).reshape(-1)
    if seen.equal(numbers):
        return False
    return True if seen.equal(numbers.view(p, q).t().reshape(-1)) else None


@dataclass
class Evaluation(Run):
    """What the kernel gives.

    Attributes:
        exports: The exports, each ``(row, chain)``.
    """

    exports: list[Tensor]


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
        known = set(map(id, parameters))
        for leaf in found.leaves:
            if leaf.tensor.requires_grad and id(leaf.tensor) not in known:
                raise CannotFuse("it uses a tensor that requires gradients but is no parameter")
        self.n_calls = sum(value.varies and value.call is not None for value in found.values)
        self.n_others = len(found.exports)
        self.sensitivities = read(found, parameters)
        return found

    def prepare(self) -> None:
        """Where the exports stand."""
        super().prepare()
        blocks = self.program.export_blocks
        self.block_sizes = [n for _, n in blocks]
        self.places = [blocks.index(block) for block in self.program.exports]

    def lanes(self, n_chains: int) -> int:
        """How many lanes a tile has: with fewer than 64, rows of exports are too short to copy."""
        return 64 if n_chains > 32 else 32 if n_chains > 24 else super().lanes(n_chains)

    def slower(self, n_chains: int) -> str | None:
        """Why torch would be quicker with so many states; None if it would not."""
        saved = OPERATION * self.n_calls + ELEMENT * self.n_operations * n_chains
        if saved >= CALL:
            return None
        return (
            f"a call by a kernel takes {1e6 * CALL:.0f} µs more than its arithmetic, and with "
            f"{n_chains} states it would save {1e6 * saved:.0f}"
        )

    def start(
        self, x: Array, sampler: str, lanes: int, p: Array, offset: float, **constants: Any
    ) -> "Evaluation":
        """All outputs at states ``(chain, d)``."""
        n_chains, real = len(x), self.real
        source, state = plain(x, real), np.empty((n_chains, 2 * self.size + 1), real)
        exported = np.empty((sum(self.block_sizes), -(-n_chains // lanes) * lanes), real)
        given = {
            "p": p,
            "source": address(source),
            "state": address(state),
            "n_chains": n_chains,
            "exported": address(exported),
            "stride": exported.shape[1],
        }
        self.kernel(sampler, lanes)(n_chains * self.n_operations, given)
        parts = torch.split_with_sizes(torch.from_numpy(exported)[:, :n_chains], self.block_sizes)
        exports = [parts[place] for place in self.places]
        slots, notes = self.slots(sampler, n_chains, 0), np.empty((3, n_chains), real)
        notes[1] = exports[0].numpy() - real.type(offset)
        return Evaluation(state, slots.draws, slots.statistics, notes, exports)

    def by_parameters(self, run: "Evaluation", slopes: Tensor) -> list[Tensor | None]:
        """Σ slope · ∂value/∂θ over states, for slopes ``(chain,)``, by parameter.

        None by those that the values do not depend on, as autograd has it.
        """
        return [sensitivity.total(run.exports, slopes) for sensitivity in self.sensitivities]

    def others(self, run: "Evaluation") -> list[Tensor]:
        """The outputs beside the values, each ``(chain,)``."""
        return [part[0] for part in run.exports[: self.n_others]]

    def probe(self, energy: EnergyFunction) -> Callable[[Tensor], Tensor]:
        """Gives what is compared at each call."""
        assert isinstance(energy, Trainable)
        return energy.witness

    def slopes(self, run: Run) -> list[list[float]]:
        """Values, other outputs, and derivatives of a weighted sum of the values that are finite.

        The constant of values is left out.
        """
        assert isinstance(run, Evaluation)
        values = torch.from_numpy(run.state[:, -1])
        finite = values.isfinite()
        kept = replace(run, exports=[part[:, finite] for part in run.exports])
        found = self.by_parameters(kept, _weights(int(finite.sum()), self.dtype))
        rows = values, *self.others(run), *found
        return [[] if row is None else row.reshape(-1).tolist() for row in rows]

    def wanted(self, energy: EnergyFunction, x: Tensor) -> tuple[Tensor, list[list[float]]]:
        """What `probe` gives, and what `slopes` should be."""
        assert isinstance(energy, Trainable)
        parameters = Training(energy).parameters
        with torch.enable_grad():
            values, *others = energy.outputs(x)
            finite = values.detach().isfinite()
            total = values[finite] @ _weights(int(finite.sum()), self.dtype)
            found = torch.autograd.grad(total, parameters, allow_unused=True)
        offset = self.parameters("sensitivities", self.lanes(len(x)))[1]
        rows = values.detach() - offset, *others, *found
        return others[0], [[] if row is None else row.reshape(-1).tolist() for row in rows]


def _weights(n: int, dtype: torch.dtype) -> Tensor:
    """Different weights for states."""
    return torch.linspace(1.0, 2.0, n, dtype=dtype)


class Training:
    """What of an energy is to be trained, and what its derivatives depend on beside numbers.

    Args:
        energy: The energy, or another module.

    Attributes:
        parameters: Those that require gradients.
        form: Tells which these are, and which modules are in training mode.

    Raises:
        CannotFuse: If more is to happen in ``forward`` than computing energies.
    """

    def __init__(self, energy: nn.Module) -> None:
        if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
            raise CannotFuse("there are hooks on all modules")
        self._found: dict[int, nn.Parameter] = {}
        self._form: list[Any] = []
        self._visit(energy)
        self.parameters, self.form = list(self._found.values()), tuple(self._form)

    def _visit(self, module: nn.Module) -> None:
        """Look at a module and its parts; ``modules()`` and ``parameters()`` take much longer."""
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or isinstance(module, nn.parallel.DistributedDataParallel)
        ):
            raise CannotFuse(f"{type(module).__name__} does more in forward than to compute")
        self._form += (id(module), module.training)
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            self._found[id(parameter)] = parameter
            self._form.append(name)
        for part in module._modules.values():
            if part is not None:
                self._visit(part)
