"""Chains whose legs are launches of a kernel: the fused engine's side of `sample`.

A leg takes some tenth of a second at most, so that progress bars move, callbacks come, and Ctrl-C
is heard; where the legs are cut changes no number. A step size that adapts needs all chains'
acceptance after each transition, and so a launch for each.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ebm_core import ConfigurationError
from ebm_samplers.acceptance import RESOLUTION, check_resolution
from ebm_samplers.adaptation import StepSizeAdaptation
from ebm_samplers.chains import Chains, Leg, Plan, Position, require_finite
from ebm_samplers.fused.arrays import Array
from ebm_samplers.fused.engine import FusedEnergy, Launch, Run, Slots
from ebm_samplers.fused.kernels import USUAL
from ebm_samplers.fused.lookup import fused_start
from ebm_samplers.fused.repeat import Repeat, shared_uniforms
from ebm_samplers.fused.trace import CannotFuse
from ebm_samplers.noise import check_counter, fill_normals
from ebm_samplers.states import State

if TYPE_CHECKING:
    from ebm_samplers.sampler import MarkovSampler

SECONDS = 0.1
"""How long a leg may take, about."""

SERIES = {"step_size", "noise_scale", "friction"}
"""Settings that kernels take."""

COUNTED = 20
"""Bits of a number of leapfrogs that a kernel counts at a time."""

SCRATCH = 2**20
"""Elements of draws that are only passed on, to running moments or a file."""


class FusedChains(Chains):
    """Chains that a kernel runs.

    Args:
        sampler: Whose ``kernel`` is run.
        kernel: Its name.
        position: Where to begin.
        check_start: Refuse start states that are not finite.
        ahead: So many transitions `advance` will be asked for first; 0 if that is not known. The
            first leg then needs no launch of its own: it is that in which energies at the start are
            compared with torch's.

    Raises:
        CannotFuse: If the energy has no kernel for states like these.
        NumericalError: If start states, their energies or gradients are not finite, or too large
            for accept tests.
    """

    block = 64

    def __init__(
        self,
        sampler: "MarkovSampler",
        kernel: str,
        position: Position,
        check_start: bool = True,
        ahead: int = 0,
    ) -> None:
        super().__init__(sampler, position)
        self.kernel, self.shape = kernel, position.x.shape
        if self.first_chain:
            check_counter(self.key, 0, self.first_chain, len(position.x), 0, 0)
        if self.counter > 2**32 and (self.counter + 2**40) * self.shape[1:].numel() >= 2**63:
            raise ConfigurationError(
                f"the random stream stands at step {self.counter:,}",
                "numbers of steps times elements below 2**63 - 2**40",
                "take another seed, or engine='torch'",
            )
        self.constants: dict[str, Any] = {**sampler.kernel_constants(position.x)}
        if self.beta is not None:
            beta = torch.as_tensor(self.beta, dtype=position.x.dtype, device=position.x.device)
            self.constants["beta"] = beta.expand(len(position.x)).reshape(-1, 1)
        if position.x.device.type == "cpu":
            self.constants = {name: values.numpy() for name, values in self.constants.items()}
        self._pace = 0.0  # transitions a leg; 0 for a guess
        self._leapfrogs: float | None = None  # of a chain's transition, where trees decide
        self._ahead: tuple[_Series, Launch] | None = None
        self._only: tuple[_Series, Launch] | None = None  # the launch of a call of one

        first: list[_Series] = []

        def begin(fused: FusedEnergy, lanes: int, parameters: Array, offset: float) -> Run:
            self.fused, self.lanes = fused, lanes
            self.parameters, self.offset = parameters, offset
            x = self._fresh(position)
            if not ahead:
                return fused.start(x, kernel, lanes, parameters, offset, **self.constants)
            adapts = self.adapted_step_size is not None  # a launch for each transition
            if not first:  # a schedule is asked once, though the energy be traced again
                first.append(self._series(1 if adapts else self._end(0, ahead, Plan())))
            series = first[0]
            if not series.n and series.failure is not None:
                raise series.failure
            if series.n == ahead:  # all of a call that wants final states alone
                lengths = sampler.kernel_final_lengths(series.n, self._shared_uniforms)
                series.values["lengths"] = lengths
            launch = self._launched(series, series.n, x=x)
            self._ahead = self._only = series, launch
            return launch.run

        if not ahead:
            self.step_size = next(self.settings(1))["step_size"]
        if_quicker = sampler.engine == "auto"
        run = fused_start(sampler.energy, position.x, kernel, if_quicker, begin).run
        self.packed = run.state
        if check_start and self.fused.any(run.notes[2]):
            x = self._fresh(position)
            settings = kernel, self.lanes, self.parameters, self.offset
            require_finite(self._state(self.fused.start(x, *settings, **self.constants).state))
        self._start_resolved = not sampler.adjusted or self._is_resolved(run.largest)
        if not self._start_resolved:
            potential = run.notes[1] + self.fused.real.type(self.offset)
            if self.beta is not None:
                potential = potential * self.constants["beta"][:, 0]
            check_resolution(self.fused.tensor(potential))

    @property
    def state(self) -> State:
        """The present state; not modified when the chains go on."""
        return self._state(self.packed)

    @property
    def x(self) -> Tensor:
        """The present positions, ``(chain, *event)``."""
        return self._positions(self.packed)

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
        room = min(plan.n_draws, self._scratch) if plan.passed_on else plan.n_draws
        columns = _Columns(self, room) if plan.keep == "trajectory" else None
        adapts = self.adapted_step_size is not None and adaptation is not None
        done = 0
        while done < n:
            self._look_again(done)
            if self._ahead is not None:
                series, _ = self._ahead
            else:
                series = self._series(1 if adapts else self._end(done, n, plan) - done)
            made = series.n
            # full slots end in draws; otherwise one slot has the statistics of it all
            full = plan.keep != "final" and done % plan.thin == made % plan.thin == 0
            if made and columns is not None and full:
                first = 0 if plan.passed_on else done // plan.thin
                self._advance(series, plan.thin, slots=columns.slots(first))
                columns.complete(first, plan.thin, series)
                yield Leg(made, {}, columns=columns.tensors)
            elif made:
                run = self._advance(series, plan.thin if full else made, keep_draws=full)
                leg = self._leg(run, series)
                if columns is not None and not plan.passed_on:
                    leg = dataclasses.replace(leg, columns=columns.tensors)
                if adapts and adaptation is not None and self.adapted_step_size is not None:
                    acceptance = leg.statistics["acceptance_rate"]
                    assert isinstance(acceptance, Tensor)
                    self.adapted_step_size = adaptation.moved(
                        self.adapted_step_size, acceptance, age + done
                    )
                yield leg
            done += made
            if series.failure is not None:
                raise series.failure

    def advance(
        self, n: int, adaptation: StepSizeAdaptation | None = None, age: int = 0
    ) -> Tensor | float | None:
        """Make ``n`` transitions, and give their mean acceptance rate; see `Chains.advance`."""
        if self.adapted_step_size is not None:
            return super().advance(n, adaptation, age)
        done, accepted = 0, 0.0
        while done < n:
            self._look_again(done)
            if self._ahead is not None:
                series, _ = self._ahead
            else:
                series = self._series(self._end(done, n, Plan()) - done)
            run = self._advance(series, series.n)
            if self.sampler.adjusted:
                accepted += float(run.acceptance.sum())
            done += series.n
            if series.failure is not None:
                raise series.failure
        return accepted / (n * self.shape[0]) if self.sampler.adjusted else None

    def repeat(self) -> Repeat | None:
        """What makes again the one launch that `advance` was; None if there was, or is, more to it.

        The launch's memory is the repeat's from now on.
        """
        sampler = self.sampler
        if self._only is None or self.constants or sampler.state_class.carried:
            return None
        series, launch = self._only
        constant = all(setting.is_constant for setting in sampler.settings.values())
        if (
            not constant
            or self.adapted_step_size is not None
            or type(self.fused) is not FusedEnergy
        ):
            return None
        return Repeat(sampler, self.fused, self.kernel, self.lanes, self.shape, series.n, launch)

    def _fresh(self, position: Position) -> Array:
        """What the kernel enters of the chains at their start: positions, or states."""
        x, names = position.x, self.sampler.state_class.carried
        if not names:
            positions: Array = self.fused.flat(x)
            return positions

        def normals(stream: int) -> Tensor:
            out = torch.empty((len(x), x[0].numel()), dtype=x.dtype, device=x.device)
            first = self.counter * out.shape[1]
            return fill_normals(out, self.key, stream, self.first_chain, first).view(x.shape)

        carried = position.carried or self.sampler.kernel_carried(normals)
        parts = [x, x, x.new_zeros(len(x), 1), *(carried[name] for name in names)]
        states: Array = self.fused.flat(torch.cat([p.reshape(len(x), -1) for p in parts], 1))
        return states

    def _look_again(self, done: int) -> None:
        """After a leg the energy may be another one, and whoever looked on may have changed it."""
        is_new = self.enter()
        if done or is_new:
            self._read_parameters()
        if is_new:
            states = self._fresh(self.position(self.moment()))
            settings = self.kernel, self.lanes, self.parameters, self.offset
            run = self.fused.start(states, *settings, **self.constants)
            if self.sampler.adjusted and not self._is_resolved(run.largest):
                check_resolution(self.fused.tensor(run.largest))
            self.packed = run.state

    def _read_parameters(self) -> None:
        try:
            self.parameters, self.offset = self.fused.parameters(self.kernel, self.lanes)
        except CannotFuse as reason:
            raise ConfigurationError(
                f"the energy has changed during the run, and its kernel cannot follow: {reason}",
                "an energy whose tensors keep their kind while it is sampled",
                "call again; what `sample` drew before is in this error's `result`",
            ) from reason

    def _advance(self, series: "_Series", thin: int, **more: Any) -> Run:
        """Make transitions, unless they have been made ahead; the chains then stand after them."""
        if self._ahead is not None:
            _, launch = self._ahead
            self._ahead = None
            run, resolved = launch.run, self._start_resolved
        else:
            launch = self._launched(series, thin, state=self.packed, **more)
            self._only, run = None, launch.run
            resolved = not self.sampler.adjusted or self._is_resolved(run.largest)
        if not resolved:
            check_resolution(self.fused.tensor(run.largest))
        self.packed = run.state
        self.counter += series.n
        self.schedule_step += series.n
        self.step_size = series.last_step_size
        return run

    def _launched(
        self, series: "_Series", thin: int, x: Array | None = None, **more: Any
    ) -> Launch:
        started = time.perf_counter()
        launch = self.fused.launch(
            self.kernel,
            x,
            n_steps=series.n,
            key=self.key,
            first_chain=self.first_chain,
            first_step=self.counter,
            thin=thin,
            parameters=self.parameters,
            offset=self.offset,
            lanes=self.lanes,
            leapfrogs=self._leapfrogs,
            **self.constants,
            **series.values,
            **more,
        )
        launch()
        self.fused.wait()
        seconds = max(time.perf_counter() - started, 1e-6)
        self._pace = series.n * min(4.0, SECONDS / seconds)
        if len(launch.run.statistics) > USUAL:
            first = more["slots"].first if "slots" in more else 0
            written = launch.run.statistics[:, :, first : first + series.n // thin]
            n_gradients = int(_of_trees(self.fused.tensor(written))[0].sum())
            self._leapfrogs = n_gradients / (self.shape[0] * series.n)
        else:
            n_gradients = self.shape[0] * int(series.leapfrogs(series.n)[0])
        self.fused.took(n_gradients, seconds)
        return launch

    def _is_resolved(self, potential: Array) -> bool:
        return bool(self.fused.eps * potential.max() <= RESOLUTION)

    def _state(self, packed: Array) -> State:
        energy = self.fused.tensor(self.fused.energies(packed, self.offset))
        gradient = self.fused.copied(self.fused.gradients(packed), self.shape)
        size, state = self.fused.size, self.sampler.state_class
        rest = packed[:, 2 * size + 1 :]
        carried = [
            self.fused.copied(rest[:, i * size : (i + 1) * size], self.shape)
            for i in range(len(state.carried))
        ]
        return state(self._positions(packed), energy, gradient, *carried)

    def _positions(self, packed: Array) -> Tensor:
        return self.fused.copied(packed[:, : self.fused.size], self.shape)

    def _leg(self, run: Run, series: "_Series") -> Leg:
        """A launch's transitions, with statistics of all of them together."""
        one = run.statistics.shape[2] == 1
        tensor = self.fused.tensor
        columns: dict[str, Callable[[], Tensor | int]] = {
            "acceptance_rate": lambda: tensor(
                run.acceptance[:, 0] if one else run.acceptance.sum(1)
            ),
            "diverging": lambda: tensor((run.wild[:, 0] if one else run.wild.sum(1)) > 0),
            "energy": lambda: tensor(run.hamiltonian[:, -1]),
            "n_steps": lambda: int(series.leapfrogs(series.n)[0]),
        }
        if len(run.statistics) > USUAL:
            leapfrogs, depths = _of_trees(tensor(run.statistics))
            columns["n_steps"] = lambda: leapfrogs.sum(1)
            columns["tree_depth"] = lambda: depths.amax(1)
        statistics = {name: columns[name]() for name in self.sampler.statistics}
        draws = None
        if run.draws.shape[1]:
            draws = self.fused.tensor(run.draws).view(*run.draws.shape[:2], *self.shape[1:])
        return Leg(series.n, statistics, draws)

    def _series(self, n: int) -> "_Series":
        """The settings of the next transitions."""
        failure: BaseException | None = None
        settings = self.sampler.settings
        first = self.schedule_step
        values: dict[str, Any] = {
            name: setting.at(first) if setting.steady_until(first) >= first + n else setting.value
            for name, setting in settings.items()
        }
        if self.adapted_step_size is not None:
            values["step_size"] = self.adapted_step_size.item()
        if any(map(callable, values.values())):
            rows: list[dict[str, Any]] = []
            try:
                rows.extend(self.settings(n))
            except BaseException as error:
                failure = error
            values = {name: np.array([row[name] for row in rows]) for name in settings}
            n = len(rows)
        values = {name: value for name, value in values.items() if name in SERIES}
        values["lengths"] = self.sampler.kernel_lengths(n, self._shared_uniforms)
        return _Series(n, values, failure)

    def _shared_uniforms(self, stream: int, n: int) -> Array:
        """Uniforms of the next ``n`` transitions that all chains share."""
        return shared_uniforms(self.key, self.counter, stream, n)

    @property
    def _scratch(self) -> int:
        """Draws that are passed on at once."""
        return max(1, SCRATCH // (self.shape[0] * self.fused.size))

    def _end(self, done: int, n: int, plan: Plan) -> int:
        """Where the next leg ends: with a draw, if there is one in it."""
        if not self._pace:
            gradients = self.sampler.kernel_gradients
            self._pace = SECONDS / (gradients * self.fused.seconds(self.shape[0]))
        end = int(min(n, done + max(1, int(self._pace)), done + self.steady()))
        thin = plan.thin
        if plan.stop is not None:
            interval = plan.stop * thin
            end = min(end, (done // interval + 1) * interval)
        if plan.keep == "moments" or plan.passed_on:
            end = min(end, done + self._scratch * thin)
        if plan.keep != "final" and done % thin:
            end = min(end, (done // thin + 1) * thin)
        last_draw = end // thin * thin
        return last_draw if last_draw > done else end


@dataclass
class _Series:
    """The settings of transitions.

    Attributes:
        n: Number of transitions.
        values: By name, as `FusedEnergy.launch` takes them.
        failure: The error of a schedule after so many.
    """

    n: int
    values: dict[str, Any]
    failure: BaseException | None

    @property
    def last_step_size(self) -> float:
        """h of the last transition."""
        step_size = self.values["step_size"]
        return float(step_size[-1]) if isinstance(step_size, np.ndarray) else step_size

    def leapfrogs(self, thin: int) -> Array:
        """Sums over ``thin`` transitions at a time."""
        lengths = self.values["lengths"]
        if not isinstance(lengths, np.ndarray):
            return np.full(self.n // thin, thin * lengths)
        sums: Array = lengths.reshape(-1, thin).sum(1)
        return sums


def _of_trees(statistics: Tensor) -> tuple[Tensor, Tensor]:
    """Leapfrogs and depths from what a kernel writes of trees, both ``(chain, slot)``, int64."""
    rest, above, depth = statistics[USUAL:].long()
    return rest + (above << COUNTED), depth


class _Columns:
    """The columns of a result with a trajectory, and what the kernel needs of them."""

    def __init__(self, chains: FusedChains, n_draws: int) -> None:
        n_chains, fused = len(chains.packed), chains.fused
        self._all = fused.slots(chains.kernel, n_chains, n_draws)
        draws, self._statistics = fused.tensor(self._all.draws), fused.tensor(self._all.statistics)
        potential, acceptance, self._wild, hamiltonian = self._statistics[:USUAL].unbind()
        self._acceptance = acceptance
        columns = {
            "acceptance_rate": acceptance,
            "diverging": torch.empty_like(acceptance, dtype=torch.bool),
            "n_steps": torch.empty_like(acceptance, dtype=torch.int64),
            "energy": hamiltonian,
            "tree_depth": torch.empty_like(acceptance, dtype=torch.int64),
        }
        self.tensors = {
            "x": draws.view(n_chains, n_draws, *chains.shape[1:]),
            "potential": potential,
            **{name: columns[name] for name in chains.sampler.statistics},
        }

    def slots(self, first: int) -> Slots:
        """From draw ``first`` on."""
        return dataclasses.replace(self._all, first=first)

    def complete(self, first: int, thin: int, series: _Series) -> None:
        """Turn the sums that a kernel has written from draw ``first`` on into statistics."""
        end = first + series.n // thin
        self._acceptance[:, first:end] /= thin
        if "diverging" in self.tensors:
            self.tensors["diverging"][:, first:end] = self._wild[:, first:end] > 0
        if len(self._statistics) > USUAL:
            leapfrogs, depths = _of_trees(self._statistics[:, :, first:end])
            self.tensors["n_steps"][:, first:end] = leapfrogs
            self.tensors["tree_depth"][:, first:end] = depths
        elif "n_steps" in self.tensors:
            self.tensors["n_steps"][:, first:end] = torch.from_numpy(series.leapfrogs(thin))
