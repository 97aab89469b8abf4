"""Chains whose legs are launches of a kernel: the fused engine's side of `sample`.

A leg takes some tenth of a second at most, so that progress bars move, callbacks come, and Ctrl-C
is heard; where the legs are cut changes no number. A step size that adapts needs all chains'
acceptance after each transition, and so a launch for each.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ebm_core import ConfigurationError
from ebm_samplers.acceptance import RESOLUTION, check_resolution
from ebm_samplers.adaptation import StepSizeAdaptation
from ebm_samplers.chains import Chains, Leg, Plan, Position, require_finite
from ebm_samplers.fused.engine import Array, Run, Slots
from ebm_samplers.fused.lookup import fused_start
from ebm_samplers.fused.trace import CannotFuse
from ebm_samplers.noise import check_counter, fill_uniforms
from ebm_samplers.states import State

if TYPE_CHECKING:
    from ebm_samplers.sampler import MarkovSampler

SECONDS = 0.1
"""How long a leg may take, about."""

OPERATIONS = 1e9
"""Scalar operations a second, for the first leg."""

SERIES = {"step_size", "noise_scale"}
"""Settings that kernels take."""

SCRATCH = 2**20
"""Elements of draws that are only passed on, to running moments."""


class FusedChains(Chains):
    """Chains that a kernel runs, on a CPU.

    Args:
        sampler: Whose ``kernel`` is run.
        kernel: Its name.
        position: Where to begin.
        check_start: Refuse start states that are not finite.

    Raises:
        CannotFuse: If the energy has no kernel for states like these.
        NumericalError: If start states, their energies or gradients are not finite, or too large
            for accept tests.
    """

    block = 64

    def __init__(
        self, sampler: "MarkovSampler", kernel: str, position: Position, check_start: bool = True
    ) -> None:
        super().__init__(sampler, position)
        self.kernel = kernel
        if_quicker = sampler.engine == "auto"
        start = fused_start(sampler.energy, position.x, kernel, if_quicker)
        self.fused, self.lanes, self.parameters = start.fused, start.lanes, start.parameters
        self.shape, self.packed, self.offset = position.x.shape, start.state, start.offset
        check_counter(self.key, 0, self.first_chain, len(position.x), 0, 0)
        real: Any = self.fused.real
        self.constants: dict[str, Any] = {
            name: value.astype(real) for name, value in sampler.kernel_constants(position.x).items()
        }
        if self.beta is not None:
            beta = torch.as_tensor(self.beta, dtype=position.x.dtype).expand(len(position.x))
            self.constants["beta"] = beta.reshape(-1, 1).numpy().astype(real)
        self.step_size = next(self.settings(1))["step_size"]
        self._eps = torch.finfo(position.x.dtype).eps
        self._pace = 0.0  # transitions a leg; 0 for a guess
        # a sum in torch, which does not warn, and is finite of nothing but finite numbers
        if check_start and not math.isfinite(torch.from_numpy(self.packed).sum()):
            require_finite(self.state)
        if sampler.adjusted:
            potential = self.fused.energies(self.packed, self.offset)
            if self.beta is not None:
                potential = potential * self.constants["beta"][:, 0]
            self._check(np.abs(potential))

    @property
    def state(self) -> State:
        """The present state; not modified when the chains go on."""
        energy = self.fused.energies(self.packed, self.offset)
        gradient = self.fused.gradients(self.packed).copy()
        return State(self.x, torch.from_numpy(energy), torch.from_numpy(gradient).view(self.shape))

    @property
    def x(self) -> Tensor:
        """The present positions, ``(chain, *event)``."""
        return torch.from_numpy(self.packed[:, : self.fused.size].copy()).view(self.shape)

    def check(self) -> None:
        """Nothing: each leg has been looked at."""

    def legs(
        self,
        n: int,
        adaptation: StepSizeAdaptation | None = None,
        age: int = 0,
        plan: Plan | None = None,
    ) -> Iterator[Leg]:
        """Make ``n`` transitions, as many a leg as take a tenth of a second."""
        plan = plan or Plan(thin=n)
        columns = _Columns(self, plan.n_draws) if plan.keep == "trajectory" else None
        adapts = self.adapted_step_size is not None and adaptation is not None
        done = 0
        while done < n:
            if done:  # whoever looked on may have changed them
                self._read_parameters()
            series, failure = self._series(1 if adapts else self._end(done, n, plan) - done)
            made = len(series["step_size"])
            # full slots end in draws; otherwise one slot has the statistics of it all
            full = plan.keep != "final" and done % plan.thin == made % plan.thin == 0
            if made and columns is not None and full:
                first = done // plan.thin
                run = self._launch(series, plan.thin, columns.slots(first))
                columns.complete(first, plan.thin, series["lengths"])
                yield Leg(made, {}, columns=columns.tensors)
            elif made:
                run = self._launch(series, plan.thin if full else made, keep_draws=full)
                leg = self._leg(run, series["lengths"])
                if columns is not None:
                    leg = dataclasses.replace(leg, columns=columns.tensors)
                if adapts and adaptation is not None and self.adapted_step_size is not None:
                    acceptance = leg.statistics["acceptance_rate"]
                    assert isinstance(acceptance, Tensor)
                    self.adapted_step_size = adaptation.moved(
                        self.adapted_step_size, acceptance, age + done
                    )
                yield leg
            done += made
            if failure is not None:
                raise failure

    def _read_parameters(self) -> None:
        try:
            self.parameters, self.offset = self.fused.parameters(self.kernel, self.lanes)
        except CannotFuse as reason:
            raise ConfigurationError(
                f"the energy has changed during the run, and its kernel cannot follow: {reason}",
                "an energy whose tensors keep their kind while it is sampled",
                "go on from the `resume` of this error's `result`",
            ) from reason

    def _launch(
        self, series: dict[str, Any], thin: int, slots: Slots | None = None, **more: Any
    ) -> Run:
        n, started = len(series["step_size"]), time.perf_counter()
        run = self.fused.run(
            self.kernel,
            self.packed,
            state=self.packed,
            key=self.key,
            first_chain=self.first_chain,
            first_step=self.counter,
            thin=thin,
            slots=slots,
            parameters=self.parameters,
            offset=self.offset,
            lanes=self.lanes,
            **self.constants,
            **series,
            **more,
        )
        if n > 1:
            seconds = max(time.perf_counter() - started, 1e-6)
            self._pace = n * min(4.0, SECONDS / seconds)
        if self.sampler.adjusted:
            self._check(run.largest)
        self.packed = run.state
        self.counter += n
        self.schedule_step += n
        self.step_size = float(series["step_size"][-1])
        return run

    def _check(self, potential: Array) -> None:
        if not self._eps * potential.max() <= RESOLUTION:
            check_resolution(torch.from_numpy(potential))

    def _leg(self, run: Run, lengths: Array) -> Leg:
        """A launch's transitions, with statistics of all of them together."""
        one = run.statistics.shape[2] == 1
        columns: dict[str, Callable[[], Array]] = {
            "acceptance_rate": lambda: run.acceptance[:, 0] if one else run.acceptance.sum(1),
            "diverging": lambda: (run.wild[:, 0] if one else run.wild.sum(1)) > 0,
            "energy": lambda: run.hamiltonian[:, -1],
        }
        statistics: dict[str, Tensor | int] = {
            name: int(_sums(lengths, len(lengths))[0])
            if name == "n_steps"
            else torch.from_numpy(columns[name]())
            for name in self.sampler.statistics
        }
        draws = None
        if run.draws.shape[1]:
            draws = torch.from_numpy(run.draws).view(*run.draws.shape[:2], *self.shape[1:])
        return Leg(len(lengths), statistics, draws)

    def _series(self, n: int) -> tuple[dict[str, Array], BaseException | None]:
        """The settings of the next transitions, a value each (of stride 0 where it is the same).

        Also the error of a schedule that failed; then there are the transitions before it alone.
        """
        failure: BaseException | None = None
        if all(setting.is_constant for setting in self.sampler.settings.values()):
            values = next(self.settings(1))
            series = {
                name: np.broadcast_to(np.float64(values[name]), (n,))
                for name in SERIES & values.keys()
            }
        else:
            rows: list[dict[str, Any]] = []
            try:
                rows.extend(self.settings(n))
            except BaseException as error:
                failure = error
            names = SERIES & self.sampler.settings.keys()
            series = {name: np.array([row[name] for row in rows]) for name in names}
            n = len(rows)
        lengths = self.sampler.kernel_lengths(n, self._shared_uniforms)
        series["lengths"] = np.broadcast_to(np.int64(1), (n,)) if lengths is None else lengths
        return series, failure

    def _shared_uniforms(self, stream: int, n: int) -> Array:
        """Uniforms of the next ``n`` transitions that all chains share."""
        out = fill_uniforms(torch.empty(1, n, device="cpu"), self.key, stream, 0, self.counter)
        uniforms: Array = out[0].double().numpy()
        return uniforms

    def _end(self, done: int, n: int, plan: Plan) -> int:
        """Where the next leg ends: with a draw, if there is one in it."""
        if not self._pace:
            work = len(self.packed) * (self.fused.n_operations + 40 * self.fused.size)
            self._pace = OPERATIONS * SECONDS / work
        end = min(n, done + max(1, int(self._pace)))
        thin = plan.thin
        if plan.stop is not None:
            interval = plan.stop * thin
            end = min(end, (done // interval + 1) * interval)
        if plan.keep == "moments":
            end = min(end, done + max(1, SCRATCH // (len(self.packed) * self.fused.size)) * thin)
        if plan.keep != "final" and done % thin:
            end = min(end, (done // thin + 1) * thin)
        last_draw = end // thin * thin
        return last_draw if last_draw > done else end


class _Columns:
    """The columns of a result with a trajectory, and what the kernel needs of them."""

    def __init__(self, chains: FusedChains, n_draws: int) -> None:
        n_chains = len(chains.packed)
        self._all = chains.fused.slots(n_chains, n_draws, keep_draws=True)
        potential, acceptance, _, hamiltonian = (torch.from_numpy(a) for a in self._all.statistics)
        columns = {
            "acceptance_rate": acceptance,
            "diverging": torch.empty(n_chains, n_draws, dtype=torch.bool),
            "n_steps": torch.empty(n_chains, n_draws, dtype=torch.int64),
            "energy": hamiltonian,
        }
        self.tensors = {
            "x": torch.from_numpy(self._all.draws).view(n_chains, n_draws, *chains.shape[1:]),
            "potential": potential,
            **{name: columns[name] for name in chains.sampler.statistics},
        }

    def slots(self, first: int) -> Slots:
        """From draw ``first`` on."""
        return dataclasses.replace(self._all, first=first)

    def complete(self, first: int, thin: int, lengths: Array) -> None:
        """Turn the sums that a kernel has written from draw ``first`` on into statistics."""
        end = first + len(lengths) // thin
        _, chances, wild, _ = self._all.statistics[..., first:end]
        chances /= thin
        if "diverging" in self.tensors:
            self.tensors["diverging"][:, first:end] = torch.from_numpy(wild > 0)
        if "n_steps" in self.tensors:
            self.tensors["n_steps"][:, first:end] = torch.from_numpy(_sums(lengths, thin))


def _sums(lengths: Array, thin: int) -> Array:
    """Sums of ``thin`` at a time; of what is the same everywhere, without looking at it all."""
    if lengths.strides == (0,):
        return np.full(len(lengths) // thin, thin * lengths[0])
    sums: Array = lengths.reshape(-1, thin).sum(1)
    return sums
