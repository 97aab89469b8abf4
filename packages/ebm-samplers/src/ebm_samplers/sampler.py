"""`MarkovSampler`: everything that samplers have in common, around one method that they do not.

A sampler is one step. It derives from `MarkovSampler` and writes ``transition``: from the chains'
`State` and a `Context` (this step's settings, random numbers and beta) to the next state and
statistics, in tensor operations over all chains. ``sample`` and ``sample_chain``, seeds, thinning,
burn-in, ``resume``, schedules, step adaptation, progress and partial results follow from that. A
random-walk Metropolis sampler, complete::

    class RandomWalk(MarkovSampler):
        def transition(self, state, context):
            proposal = self.evaluate(state.x + context.step_size * context.normals(Stream.NOISE))
            delta = context.temper(proposal.energy - state.energy)
            verdict = metropolis(delta, context.uniforms(Stream.ACCEPT))
            return verdict.choose(proposal, state), {
                "acceptance_rate": verdict.probability,
                "diverging": verdict.diverging,
                "n_steps": 1,
            }

Rules for a step: states and random numbers are not modified in place; there is no other source of
randomness than the context; a sampler without an accept test says ``adjusted = False``. Chains that
carry more than positions derive from `State`, and override ``start``. Further settings that may be
schedules go into ``self.settings``.
"""

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebm_core import (
    BaseSampler,
    ConfigurationError,
    SampleResult,
    draw_key,
    evaluation_mode,
    require_continuous,
    state_options,
)
from ebm_core.energy import EnergyLike
from ebm_core.protocols import Callback, Keep
from ebm_core.validation import check_choice, check_integer, check_positive
from ebm_samplers.adaptation import StepSizeAdaptation
from ebm_samplers.arguments import (
    Beta,
    check_callback,
    checked_beta,
    checked_numbers,
    checked_states,
    empty_states,
    fill_start,
    refuse,
    resumed_position,
)
from ebm_samplers.attributes import CheckedAttributes
from ebm_samplers.chains import Chains, Position
from ebm_samplers.engines import Explanation, explained, open_chains
from ebm_samplers.fused.arrays import Array
from ebm_samplers.fused.repeat import LastCall
from ebm_samplers.recorder import Recorder
from ebm_samplers.schedules import Schedule, Setting
from ebm_samplers.states import Context, State, Statistics
from ebm_samplers.stored import PathLike, opened


class MarkovSampler(CheckedAttributes, BaseSampler):
    """Base class of samplers that repeat one transition.

    Args:
        energy: An `EnergyFunction` or any callable ``(chain, *event) -> (chain,)``, on continuous
            states.
        step_size: A positive number, or a schedule ``step -> number``.
        target_acceptance: Acceptance rate that the step size is to follow (see
            `ebm_samplers.adaptation`): always in ``sample_chain``, in ``sample`` during ``burn_in``
            only. None: the step stays.
        engine: ``"fused"`` compiles the energy and the step into one kernel that runs whole chains
            (on CPUs and CUDA devices, energies that are not too large), ``"torch"`` goes step by
            step in torch; ``"auto"`` takes the first where it can, else the second. See `explain`.

    Raises:
        SupportError: If the energy is defined on discrete states.
        ConfigurationError: If a setting makes no sense.

    Attributes:
        adjusted: Whether transitions end in an accept test (class attribute).
        statistics: Names of what transitions report (class attribute).
        usual_acceptance: The acceptance rate that `warm_up` aims at (class attribute).
        kernel: The step as a kernel (class attribute): the name of a module of
            `ebm_samplers.fused.kernels`, or the path of such a file; None if there is none.
        state_class: What the chains' states are; of those of a kernel, the fields after
            ``gradient`` are of the shape of ``x`` (class attribute).
        checks, fixed: See `CheckedAttributes`.
        settings: What may be a schedule, by name.
    """

    adjusted: ClassVar[bool] = True
    statistics: ClassVar[tuple[str, ...]] = ("acceptance_rate", "diverging", "n_steps")
    usual_acceptance: ClassVar[float] = 0.6
    kernel: ClassVar[str | None] = None
    state_class: ClassVar[type[State]] = State

    def __init__(
        self,
        energy: EnergyLike,
        step_size: float | Schedule,
        *,
        target_acceptance: float | None = None,
        engine: str = "auto",
    ) -> None:
        super().__init__(energy)
        self.require_support()
        self.engine = check_choice("engine", engine, ("auto", "fused", "torch"))
        self.adaptation = (
            None if target_acceptance is None else StepSizeAdaptation(target_acceptance)
        )
        self.settings: dict[str, Setting] = {}
        self._adapted_step_size: float | None = None
        self._last = LastCall()
        self._key: int | None = None
        self._counter = 0
        self.step_size = step_size

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; calls are then no longer what they were."""
        if "_last" in vars(self):
            vars(self)["_last"] = replace(self._last, repeat=None)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy begins with: no call has been made."""
        return {**vars(self), "settings": dict(self.settings), "_last": LastCall()}

    def require_support(self) -> None:
        """Refuse an energy on states that the steps are not made for; discrete ones, by default.

        Raises:
            SupportError: If it is defined on such states.
        """
        require_continuous(self.energy.support, type(self).__name__)

    @abstractmethod
    def transition(self, state: State, context: Context) -> tuple[State, Statistics]:
        """One step of all chains.

        Args:
            state: The chains; not to be modified in place.
            context: Settings of this step, random numbers, beta.

        Returns:
            The next state, and statistics under ArviZ's names: ``acceptance_rate`` (needed by
            ``target_acceptance``; 0 where the proposal was not finite), ``diverging``, ``n_steps``
            (gradients), and more where there is more.
        """

    def branch(self, context: Context) -> Hashable:
        """What of this step is decided on the host, and changes which operations it is made of.

        For CUDA graphs: steps with equal answers are one graph. A step that looks at the values of
        tensors on a device has no answer, and is not captured.
        """
        return None

    def enter(self, step: int, x: Tensor) -> Hashable:
        """Make the energy what it is to be at a step, where it changes on the way.

        It may change where a setting does that is a `Staircase`, in tensors that the energy holds.

        Args:
            step: The step's number in schedules.
            x: Of the dtype and device of states; empty.

        Returns:
            What tells this energy from others: where it changes, states are evaluated again.
        """
        return None

    def prepare(self, x: Tensor, context: Context) -> None:
        """Put into ``context.prepared`` what transitions need, and what no state changes.

        Args:
            x: States of the kind to come, ``(chain, *event)``.
            context: Has no settings yet.
        """

    def start(self, x: Tensor, context: Context) -> State:
        """The state of chains at ``x``, ``(chain, *event)``."""
        return self.evaluate(x)

    def evaluate(self, x: Tensor) -> State:
        """Positions with energy and gradient: one forward and one backward pass."""
        energy, gradient = self.energy.energy_and_gradient(x)
        return State(x, energy, gradient)

    @property
    def step_size(self) -> float | Schedule:
        """The step size (where it adapts, the present one) or its schedule. Can be set."""
        return self._adapted_step_size or self.settings["step_size"].value

    @step_size.setter
    def step_size(self, step_size: float | Schedule) -> None:
        setting = Setting("step_size", step_size)
        if self.adaptation is not None:
            if callable(setting.value):
                raise ConfigurationError(
                    "step_size is a schedule and target_acceptance a number",
                    "one rule for the step size",
                    "pass step_size as a number, or leave target_acceptance out",
                )
            self._adapted_step_size = setting.value
        self.settings["step_size"] = setting

    @property
    def acceptance_rate(self) -> Tensor | None:
        """Mean over transitions and chains of the last ``sample_chain``, a scalar tensor.

        None before, and where there is no accept test. Losses report it.
        """
        rate = self._last.rate
        return None if rate is None else torch.as_tensor(rate).to(self._last.dtype)

    def kernel_constants(self, x: Tensor) -> dict[str, Tensor]:
        """What the kernel needs for a run from ``x``, by names of `FusedEnergy.launch`."""
        return {}

    def kernel_carried(self, normals: Callable[[int], Tensor]) -> dict[str, Tensor]:
        """What chains carry beside positions at their start, as `start` would give it.

        Args:
            normals: Gives, for a stream, standard normals of the first step, ``(chain, *event)``.
        """
        return {}

    def kernel_lengths(self, n: int, uniforms: Callable[[int, int], Array]) -> Array | int:
        """Leapfrogs of each of the next ``n`` transitions, int64; a number if all have as many.

        Args:
            n: Number of transitions.
            uniforms: Gives, for a stream and n, uniforms that all chains share.
        """
        return 1

    def kernel_final_lengths(self, n: int, uniforms: Callable[[int, int], Array]) -> Array | int:
        """`kernel_lengths` of a run of which nothing is wanted but the positions at its end.

        A 0 leaves out the energy and gradient that a transition ends with.
        """
        return self.kernel_lengths(n, uniforms)

    @property
    def kernel_gradients(self) -> int:
        """Gradients of a transition at most, where that matters: a first launch is cut by it."""
        return 1

    def explain(self, x: Tensor | None = None) -> Explanation:
        """Which engine runs on states like ``x``, and why; compiles the kernel if there is one.

        Args:
            x: States, ``(chain, *event)``; None for one state of the energy's ``event_shape``.

        Example:
            >>> import torch
            >>> from ebm_samplers import MALA
            >>> print(MALA(lambda x: torch.fft.fft(x).abs().sum(1)).explain(torch.ones(1, 4)))
            engine 'torch': the fused engine cannot run this: aten._fft_r2c has no rule in ...
        """
        return explained(self, x)

    def sample_chain(self, x_init: Tensor, n_steps: int, *, beta: Beta | None = None) -> Tensor:
        """Advance chains, going on with the sampler's random stream and adaptation.

        Args:
            x_init: Start states, ``(chain, *event)``; not modified.
            n_steps: Number of transitions, at least 1.
            beta: Target exp(-beta E): a positive number, or one a chain (tensor, array or list);
                None for 1.

        Returns:
            Final states, detached.

        Raises:
            ShapeError: If ``x_init`` is no batch of states with one chain axis.
            NumericalError: If start states are not finite, or energies too large for accept tests.

        Example:
            >>> from ebm_samplers import LangevinDynamics
            >>> sampler = LangevinDynamics(lambda x: x.square().sum(1), step_size=0.1)
            >>> sampler.sample_chain(torch.zeros(5, 2), n_steps=10).shape
            torch.Size([5, 2])
        """
        n_steps = check_integer("n_steps", n_steps, at_least=1)
        repeat = self._last.repeat
        if repeat is not None and beta is None and self._key is not None:
            made = repeat.again(self, x_init, n_steps, self._key, self._counter)
            if made is not None:
                vars(self)["_counter"] += n_steps
                final, self._last.rate = made
                return final
        position = self._own_position(x=checked_states(self.energy, x_init), beta=beta)
        last = self._last  # not that of a thread that sets an attribute meanwhile
        reserved = position.counter + n_steps
        with self._running(
            position, reserved, n_steps, adapts=True, check_start=True, ahead=n_steps
        ) as chains:
            last.rate = chains.advance(n_steps, self.adaptation, age=chains.counter)
            last.dtype, final = chains.state.energy.dtype, chains.x
            if type(self).enter is MarkovSampler.enter:
                last.repeat = chains.repeat()
            return final

    def sample(
        self,
        x_init: Tensor | None = None,
        *,
        n_steps: int,
        n_samples: int | None = None,
        dim: int | tuple[int, ...] | None = None,
        thin: int = 1,
        burn_in: int = 0,
        keep: Keep = "final",
        seed: int | None = None,
        first_chain: int = 0,
        resume: Mapping[str, Any] | PathLike | None = None,
        progress: bool | None = None,
        callback: Callback | None = None,
        beta: Beta | None = None,
        out: PathLike | None = None,
    ) -> SampleResult:
        """Run chains and report on them.

        With a ``seed``, the result is a function of the arguments and of the sampler's settings
        (its present step size among them), and the sampler stays as it is. Without, the run goes on
        with the sampler's own random stream, of which it takes the numbers of all its steps at the
        beginning: a callback may use the sampler, and a run that stops early leaves a gap. An
        adapting step moves during ``burn_in``, then stays; a run with a ``seed`` or ``resume``
        moves a copy. Of nested runs, the step of the outer one stays.

        Args:
            x_init: Start states, ``(chain, *event)``; not modified. None to start from N(0, I), or
                from uniform states where the energy's support is finite.
            n_steps: Transitions after ``burn_in``.
            n_samples: Number of chains, where ``x_init`` is None.
            dim: Event shape (int or tuple), where ``x_init`` is None and the energy's
                ``event_shape`` too.
            thin: Draws are the states after ``thin``, 2·``thin``, … transitions: n_steps // thin of
                them. Transitions after the last draw count for ``final``.
            burn_in: Transitions before the first counted one (after those that a run to ``resume``
                still had before it).
            keep: ``"final"`` states only, the ``"trajectory"`` of draws, or running ``"moments"``.
                Without a trajectory nothing grows with ``n_steps``.
            seed: Key of the random stream, an integer from 0 to 2**64 - 1.
            first_chain: Chain i of this call has the randomness of chain first_chain + i of a
                larger run.
            resume: The ``resume`` of an earlier result: goes on as if that run had not been cut
                there (its ``n_steps`` being a multiple of ``thin``). Start, seed, first_chain and
                beta come from there. Or the path that was ``out``: its files go on, and the result
                has all their draws.
            progress: Show a progress bar on stderr; None: on runs of more than 2 seconds in a
                terminal.
            callback: Called with the partial result after every max(1, n_draws // 100)-th draw; a
                true return value stops the run, whose result has what was drawn till then. The
                partial trajectory is a view, to be cloned if it is to be kept or modified.
            beta: Target exp(-beta E): a positive number, or one a chain (tensor, array or list).
                ``potential`` stays E.
            out: With ``keep="trajectory"``: a path ending in ``.npy``, of a file to come to which
                draws go as they are made, ``(draw, chain, *event)``, others beside it for the rest
                (see `ebm_samplers.stored`): memory does not grow with their number. The result has
                tensors on the CPU whose memory is these files.

        Returns:
            The result; see `SampleResult`.

        Raises:
            ConfigurationError: If arguments make no sense, or not together.
            ShapeError: If ``x_init`` is no batch of states with one chain axis.
            NumericalError: If start states are not finite, or energies too large for accept tests.
                Any exception in the middle of a run (Ctrl-C, one of the energy's, a schedule's or
                the callback's own) carries the draws before it as its attribute ``result``.
        """
        n_steps, thin, burn_in = checked_numbers(n_steps, thin, burn_in)
        check_choice("keep", keep, ("final", "trajectory", "moments"))
        start = {"x_init": x_init, "n_samples": n_samples, "dim": dim}
        check_callback(callback)
        store, resume = opened(keep, out, resume, ("potential", *self.statistics))
        if resume is not None:
            others = {"seed": seed, "first_chain": first_chain or None, "beta": beta}
            refuse("resume", start | others)
            position = resumed_position(self, resume)
        else:
            settings = {"beta": beta, "first_chain": check_integer("first_chain", first_chain)}
            if x_init is not None:
                refuse("x_init", {"n_samples": n_samples, "dim": dim})
                x = checked_states(self.energy, x_init)
            else:
                x = empty_states(self.energy, n_samples, dim)
            if seed is None:
                position = self._own_position(x=x, **settings)
            else:
                position = self._position(x=x, key=draw_key(seed), **settings)
            if x_init is None:
                fill_start(position, self.energy.support)
        burn_in += position.burn_in
        own = resume is None and seed is None
        follows = own or (resume is not None and position.key == self._key)
        reserved = position.counter + burn_in + n_steps if follows else 0
        with self._running(
            position, reserved, burn_in + n_steps, adapts=own, check_start=resume is None
        ) as chains:
            if store is not None:
                store.begin(position.x)
            recorder = Recorder(chains, keep, n_steps // thin, burn_in, store)
            try:
                recorder.record(n_steps, thin, burn_in, self.adaptation, progress, callback)
            except BaseException as error:
                with suppress(Exception):  # a device that failed fails here again
                    error.result = recorder.result()  # type: ignore[attr-defined]
                raise
            return recorder.result()

    def state_dict(self) -> dict[str, Any]:
        """Key and counter of the random stream, and the adapting step: numbers or None."""
        return {
            "key": self._key,
            "counter": self._counter,
            "step_size": self._adapted_step_size,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ConfigurationError: If it is not a state of such a sampler.
        """
        found = state_dict if isinstance(state_dict, Mapping) else {}
        if set(found) != set(self.state_dict()):
            raise ConfigurationError(
                f"the {type(state_dict).__name__} has the entries {sorted(map(str, found))}",
                f"{sorted(self.state_dict())}",
                "load what state_dict() of such a sampler gave",
            )
        if (state_dict["step_size"] is None) != (self._adapted_step_size is None):
            raise ConfigurationError(
                "only one of the sampler and the state to load has an adapting step size",
                "both or neither",
                "construct the sampler with the target_acceptance it had when it was saved",
            )
        key, step_size = state_dict["key"], state_dict["step_size"]
        key = None if key is None else draw_key(key)
        counter = check_integer("counter", state_dict["counter"])
        step_size = None if step_size is None else check_positive("step_size", step_size)
        self._key, self._counter, self._adapted_step_size = key, counter, step_size

    @contextmanager
    def _running(
        self,
        position: Position,
        reserved: int,
        total: int,
        adapts: bool,
        check_start: bool,
        ahead: int = 0,
    ) -> Iterator[Chains]:
        """Chains, in eval mode.

        Args:
            position: Where they begin.
            reserved: Step at which the sampler's own stream goes on, at the least.
            total: Transitions that they will make.
            adapts: Whether the sampler's own step becomes theirs.
            check_start: Refuse start states that are not finite.
            ahead: So many transitions will be asked for at once, with no plan; 0 if unknown.
        """
        chains = None
        inference = torch.is_inference_mode_enabled()
        leaving = torch.inference_mode(False) if inference else nullcontext()
        with evaluation_mode(self.energy), leaving, torch.set_grad_enabled(False):
            if position.x.is_inference():
                position = replace(position, x=position.x.clone())
            try:
                chains = open_chains(self, position, check_start, total, ahead)
                vars(self)["_counter"] = max(self._counter, reserved)
                yield chains
            finally:
                if chains is not None:
                    chains.close()
                    if adapts and chains.adapted_step_size is not None:
                        self._adapted_step_size = chains.adapted_step_size.item()

    def _own_position(self, x: Tensor, **settings: Any) -> Position:
        if self._key is None:
            self._key = draw_key(None)
        return self._position(x=x, key=self._key, counter=self._counter, **settings)

    def _position(self, x: Tensor, beta: Beta | None = None, **settings: Any) -> Position:
        dtype = x.dtype if x.is_floating_point() else state_options(self.energy)[1]
        beta = checked_beta(beta, x, dtype)
        return Position(x=x, beta=beta, step_size=self._adapted_step_size, **settings)
