"""`fit`: the loop around a loss.

The loop is the plain one (a batch, the loss, its backward pass, clipping, the optimiser, the
schedule), with records, evaluations and checkpoints between steps. None of these draws random
numbers that training sees: with the same settings, a plain loop gives the same parameters.
"""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from ebm_core import ConfigurationError, EBMError, evaluation_mode
from ebm_core.validation import check_integer
from ebm_utils.training.batches import Batches, Data, batches_of
from ebm_utils.training.checkpoint import check_readable, read_checkpoint, write_checkpoint
from ebm_utils.training.interruption import Interruption
from ebm_utils.training.random_state import capture_random_state, restore_random_state
from ebm_utils.training.result import FitResult
from ebm_utils.training.schedules import Schedule, schedule_of
from ebm_utils.training.trainer import Loss, MakeOptimizer, Parameters, Trainer

Evaluation = Callable[[int], Mapping[str, float] | bool | np.bool_ | Tensor | None]

CHECKPOINT_EVERY = 1000
BAR_DELAY = 2.0  # seconds without a bar


def fit(
    loss: Loss,
    data: Data,
    *,
    n_steps: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    parameters: Parameters | None = None,
    optimizer: Optimizer | MakeOptimizer | None = None,
    learning_rate: float = 1e-3,
    schedule: Schedule | None = None,
    max_gradient_norm: float | None = None,
    ema_decay: float | None = None,
    evaluate: Evaluation | None = None,
    evaluate_every: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool | Literal["auto"] = False,
    record_every: int = 1,
    seed: int | None = 0,
    progress: bool | None = None,
) -> FitResult:
    """Minimise a loss over data; go on from a checkpoint bit for bit.

    Args:
        loss: What is minimised: a `BaseLoss`, or any callable that takes a batch and gives a scalar
            tensor. Where it has ``metrics`` (scalars by name), they are recorded. A module's
            ``state_dict`` is saved, hence also the buffers and sampler of the objectives of
            ebm-losses; what a plain callable keeps elsewhere is not.
        data: One of

            - a tensor ``(n, *event)``, or a tuple ``(x, y, …)`` of tensors of the same length, for
              ``loss(x, y, …)``; moved to the parameters' device batch by batch;
            - a map-style ``Dataset`` (or anything that has ``len`` and items by number, and is no
              iterable): a set of fixed size, shuffled here, the data sets of this package among
              them;
            - a callable ``step -> batch``, steps from 0, for fresh data at each step: ``lambda
              step: moons.sample(256)``;
            - an iterable of batches, such as a ``DataLoader``, begun anew when it ends.

            A batch that is a tuple or list becomes the arguments of the loss; data that are a list
            of tensors are taken as the tuple ``(x, y, …)``, not as batches. Tensors and data sets
            are visited in an order that ``seed`` and the number of the epoch give; in the last
            steps of an epoch, items that do not fill a batch are left out.
        n_steps: Steps in all, those before a resume included.
        epochs: Passes over the data, instead of ``n_steps``.
        batch_size: Items of a batch, for tensors and data sets; None for 128.
        parameters: What is trained, or a module whose parameters are; None for those of the loss
            that require gradients (or of the optimizer, where that is an instance).
        optimizer: An optimizer, or a callable ``parameters -> optimizer``; None for Adam. One whose
            ``step`` needs a closure will not do.
        learning_rate: Of Adam, where ``optimizer`` is None.
        schedule: Of the learning rate, stepped after each step of the optimizer: ``"cosine"`` (see
            `cosine_schedule`), any scheduler of torch, or a callable ``optimizer -> scheduler``;
            None for a constant rate.
        max_gradient_norm: Gradients are scaled down to this norm over all parameters; None for no
            clipping.
        ema_decay: Decay of a running average of the parameters (see `ParameterAverage`), 0.999 for
            example; None for no average.
        evaluate: Called with the number of steps made, the parameters holding their averages if
            there are any and modules in eval mode. A mapping that it gives is recorded; True (of
            Python, NumPy or a tensor) ends the run. The global random state is put back afterwards.
        evaluate_every: Steps between two evaluations; one is made at the end in any case.
        checkpoint: File of the checkpoint, also written at the end and on Ctrl-C.
        checkpoint_every: Steps between two checkpoints; None for 1000.
        resume: True to go on from ``checkpoint``, ``"auto"`` to do so if it exists. Without,
            a file that exists is an error: none is overwritten by mistake.
        record_every: Steps between two entries of the history.
        seed: Of the data's order. Nothing else is seeded here: ``torch.manual_seed`` governs the
            rest.
        progress: Show a progress bar; None: on long runs in a terminal.

    Returns:
        The outcome; see `FitResult`.

    Raises:
        ConfigurationError: If arguments make no sense together, or a checkpoint does not fit.
        EBMError: What the loss raised, the step added to its message; a `NumericalError` also where
            loss or gradient are not finite. Its ``result`` is the `FitResult` up to there. The last
            checkpoint stays. Whatever ``evaluate`` raised, after a checkpoint has been written, has
            such a ``result`` too.
        OSError: If a checkpoint cannot be written (the disk is full); the one before stays. Its
            ``result`` likewise.
        KeyboardInterrupt: After Ctrl-C, when the step is done and the checkpoint written; its
            ``result`` likewise. A second Ctrl-C does not wait.

    A resumed run needs the same arguments; the model, optimizer, schedule, average, buffer and
    sampler of the loss, order of the data, history, and the random states of torch, NumPy and
    Python are restored, so that its parameters equal the uncut run's bit for bit (on the same
    machine and number of threads).

    Example:
        >>> import torch
        >>> from ebm_core.testing import QuadraticEnergy
        >>> from ebm_utils import EightGaussians
        >>> energy = QuadraticEnergy(torch.ones(2))
        >>> result = fit(
        ...     lambda x: (energy(x) + energy.log_normalizer()).mean(),
        ...     EightGaussians(1024),
        ...     parameters=energy,
        ...     epochs=40,
        ...     learning_rate=0.01,
        ...     schedule="cosine",
        ...     ema_decay=0.9,
        ... )
        >>> result.step, result.history["loss"][0] > result.history["loss"][-1]
        (320, True)
    """
    batches = batches_of(data, batch_size, seed)
    total = _total_steps(n_steps, epochs, batches)
    trainer = Trainer(
        loss, batches, parameters, optimizer, learning_rate, max_gradient_norm, ema_decay
    )
    trainer.schedule = schedule_of(schedule, trainer.optimizer, total)
    every = total if evaluate_every is None else evaluate_every
    check_integer("evaluate_every", every, at_least=1)
    check_integer("record_every", record_every, at_least=1)
    file = _File(checkpoint, checkpoint_every, resume)
    saved = file.read()
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())  # first: workers inherit it
        if saved is not None:
            trainer.load_state_dict(saved)
        else:
            file.check(trainer)
        bar = stack.enter_context(_bar(total, trainer.step, progress))
        while trainer.step < total:
            try:
                batch = trainer.batch()
            except Exception as error:
                if not interruption.asked:
                    raise
                file.write(trainer)  # Ctrl-C has ended the workers; nothing of the step was done
                raise _interrupt(trainer, file) from error
            try:
                values = trainer.advance(batch)
            except EBMError as error:
                _explain(error, trainer, file)
                raise
            step, last = trainer.step, trainer.step == total
            if step % record_every == 0 or last:
                trainer.record.add(step, values)
            if not bar.disable:
                bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
            bar.update()
            stop = False
            if evaluate is not None and (step % every == 0 or last):
                try:
                    stop = _evaluate(evaluate, trainer)
                except Exception as error:
                    _keep(error, trainer, file)
                    raise
            if file.due(step) or last or stop or interruption.asked:
                file.write(trainer)
            if interruption.asked:
                raise _interrupt(trainer, file)
            if stop:
                return trainer.result("callback")
    return trainer.result("finished")


class _File:
    """The checkpoint's file, or none."""

    def __init__(self, path: Any, every: int | None, resume: bool | str) -> None:
        if resume not in (True, False, "auto"):
            raise ConfigurationError(
                f"resume is {resume!r}", 'True, False or "auto"', 'pass resume="auto"'
            )
        if path is None and (resume or every is not None):
            raise ConfigurationError(
                "resume or checkpoint_every without checkpoint",
                "the file of the checkpoint",
                'pass checkpoint="run.pt"',
            )
        self.path = None if path is None else Path(path)
        self.every = check_integer(
            "checkpoint_every", CHECKPOINT_EVERY if every is None else every, at_least=1
        )
        self.resume = resume

    def read(self) -> dict[str, Any] | None:
        """The state to go on from; None to begin."""
        if self.path is None:
            return None
        if self.resume is True or (self.resume == "auto" and self.path.exists()):
            return read_checkpoint(self.path)
        if self.path.exists():
            raise ConfigurationError(
                f"the checkpoint {self.path} exists",
                'resume=True or "auto" to go on from it',
                "pass one of these, or remove the file to begin anew",
            )
        if not self.path.parent.is_dir():
            raise ConfigurationError(
                f"there is no folder {self.path.parent} for the checkpoint",
                "a folder that exists",
                "make it first",
            )
        return None

    def due(self, step: int) -> bool:
        """Whether a checkpoint is written after this step."""
        return step % self.every == 0

    def check(self, trainer: Trainer) -> None:
        """Refuse at once what no checkpoint could hold."""
        if self.path is not None:
            check_readable(trainer.state_dict())

    def write(self, trainer: Trainer) -> None:
        """Write the state of a run."""
        if self.path is None:
            return
        try:
            write_checkpoint(self.path, trainer.state_dict())
        except (OSError, ConfigurationError) as error:
            error.result = trainer.result("interrupted")  # type: ignore[union-attr]
            raise


def _evaluate(evaluate: Evaluation, trainer: Trainer) -> bool:
    """Run the user's evaluation; whether it ends the run."""
    random_state = capture_random_state()
    with ExitStack() as stack:
        stack.callback(restore_random_state, random_state)
        if trainer.average is not None:
            stack.enter_context(trainer.average.swapped())
        for module in trainer.modules:
            stack.enter_context(evaluation_mode(module))
        found = evaluate(trainer.step)
    if isinstance(found, Mapping):
        trainer.evaluations.add(trainer.step, {k: _number(k, v) for k, v in found.items()})
        return False
    comparison = isinstance(found, np.bool_) or (
        isinstance(found, Tensor) and found.dtype == torch.bool and found.numel() == 1
    )
    if not (comparison or isinstance(found, bool | None)):
        raise ConfigurationError(
            f"evaluate gave {repr(found)[:80]}",
            "numbers by name, True to end the run, or None",
            'return {"kl": value}, for example',
        )
    return bool(found)


def _number(name: Any, value: Any) -> float:
    """A value of an evaluation."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"evaluate gave {repr(value)[:80]} for {name!r}",
            "a number",
            "return numbers or tensors of one element by name, and leave out what is unknown",
        ) from error


def _keep(error: Exception, trainer: Trainer, file: _File) -> None:
    """What was computed before an evaluation failed: a checkpoint, and the error's result."""
    file.write(trainer)
    if isinstance(error, EBMError):
        _explain(error, trainer, file, f"the evaluation after step {trainer.step}")
    error.result = trainer.result("interrupted")  # type: ignore[attr-defined]


def _explain(error: EBMError, trainer: Trainer, file: _File, when: str = "") -> None:
    """Add the step, and the last checkpoint, to the message."""
    error.given = f"{when or f'step {trainer.step + 1}'}: {error.given}"
    if file.path is not None and file.path.exists():
        error.remedy = f"{error.remedy}; {file.path} holds the last checkpoint"
    error.args = (error.given, error.wanted, error.remedy)
    error.result = trainer.result("diverged")


def _interrupt(trainer: Trainer, file: _File) -> KeyboardInterrupt:
    where = "" if file.path is None else f"; the checkpoint is in {file.path}"
    error = KeyboardInterrupt(f"interrupted after step {trainer.step}{where}")
    error.result = trainer.result("interrupted")  # type: ignore[attr-defined]
    return error


def _total_steps(n_steps: int | None, epochs: int | None, batches: Batches) -> int:
    if (n_steps is None) == (epochs is None):
        raise ConfigurationError(
            f"n_steps is {n_steps} and epochs is {epochs}", "one of them", "pass n_steps alone"
        )
    if n_steps is not None:
        return check_integer("n_steps", n_steps, at_least=1)
    if batches.steps_per_epoch is None:
        raise ConfigurationError(
            "epochs with data of no known length", "n_steps", "pass n_steps instead"
        )
    if batches.steps_per_epoch == 0:
        raise ConfigurationError(
            "the data hold no batches",
            "at least one",
            "lower the batch size of the DataLoader, or pass drop_last=False",
        )
    return check_integer("epochs", epochs, at_least=1) * batches.steps_per_epoch


def _bar(total: int, done: int, progress: bool | None) -> "tqdm[None]":
    return tqdm(
        total=total,
        initial=done,
        disable=None if progress is None else not progress,
        delay=BAR_DELAY if progress is None else 0.0,
        file=sys.stderr,
        unit="step",
        leave=False,
    )
