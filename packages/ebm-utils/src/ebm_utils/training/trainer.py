"""`Trainer`: the state of a training run, one step of it, and how to save and restore it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ebm_core import ConfigurationError, NumericalError
from ebm_core.energy import CallableEnergy
from ebm_core.validation import check_finite_loss, check_positive
from ebm_utils.training.averaging import ParameterAverage
from ebm_utils.training.batches import Batches
from ebm_utils.training.random_state import capture_random_state, restore_random_state
from ebm_utils.training.result import FitResult, Record, Stopped

Loss = Callable[..., Tensor]
"""What is minimised: called with a batch, gives a scalar; ``metrics``, if it has them, is kept."""

Parameters = nn.Module | Iterable[nn.Parameter]
MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]

REMEDY = "lower the learning rate or the sampler's step size, clip gradients, and check the data"


class Trainer:
    """A run of `fit`, whose arguments it has.

    Attributes:
        step: Number of steps made.
        record: Loss, learning rate, gradient norm and metrics of the steps.
        evaluations: What the evaluation gave.
    """

    def __init__(
        self,
        loss: Loss,
        batches: Batches,
        parameters: Parameters | None,
        optimizer: Optimizer | MakeOptimizer | None,
        learning_rate: float,
        max_gradient_norm: float | None,
        ema_decay: float | None,
    ) -> None:
        if not callable(loss) or isinstance(loss, type):
            raise ConfigurationError(
                f"loss is {loss!r:.80}", "a callable batch -> scalar", "pass an instance of a loss"
            )
        self.loss, self.batches = loss, batches
        self.modules = _modules(loss, parameters)
        self.parameters = _trained(loss, parameters, optimizer)
        self.optimizer = _optimizer(optimizer, self.parameters, learning_rate)
        self.schedule: LRScheduler | None = None
        self.max_gradient_norm = (
            None
            if max_gradient_norm is None
            else check_positive("max_gradient_norm", max_gradient_norm)
        )
        self.average = None if ema_decay is None else ParameterAverage(self.parameters, ema_decay)
        self.step = 0
        self.record, self.evaluations = Record(), Record()

    def batch(self) -> tuple[Any, ...]:
        """The batch of the next step, on the parameters' device."""
        device = self.parameters[0].device
        return tuple(
            part.to(device) if isinstance(part, Tensor) else part
            for part in self.batches.batch(self.step)
        )

    def advance(self, batch: tuple[Any, ...]) -> dict[str, float]:
        """Make one step; its values, by name.

        Args:
            batch: What `batch` gave.

        Raises:
            NumericalError: If loss or gradient are not finite; the parameters have not been changed
                then.
        """
        self.optimizer.zero_grad()
        loss: Any = self.loss(*batch)
        if not isinstance(loss, Tensor):
            raise ConfigurationError(
                f"the loss gave a {type(loss).__name__}", "a scalar tensor", "return the loss alone"
            )
        check_finite_loss(loss, remedy=REMEDY)
        if not loss.requires_grad:
            raise ConfigurationError(
                "the loss does not depend on any parameter that requires a gradient",
                "a loss that can be differentiated",
                "remove detach(), no_grad and .item() from it, and check requires_grad",
            )
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(self._gradient_norm())
        values = {
            "loss": float(loss.detach()),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "gradient_norm": norm,
        }
        if not norm < float("inf"):
            raise NumericalError(
                f"the norm of the gradient is {norm}, the loss {values['loss']:.6g}",
                "a finite gradient",
                REMEDY,
            )
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        if self.average is not None:
            self.average.update()
        self.step += 1
        metrics: Mapping[str, Any] = getattr(self.loss, "metrics", {})
        return {**values, **{name: float(value) for name, value in metrics.items()}}

    def result(self, stopped: Stopped) -> FitResult:
        """What has come of it so far."""
        return FitResult(
            step=self.step,
            steps=self.record.steps,
            history=self.record.values,
            evaluation_steps=self.evaluations.steps,
            evaluations=self.evaluations.values,
            average=self.average,
            stopped=stopped,
            loss=self.loss,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "step": self.step,
            "signature": self._signature(),
            "modules": [module.state_dict() for module in self.modules],
            "parameters": [p.detach() for p in self._loose()],
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "batches": self.batches.state_dict(),
            "record": self.record.state_dict(),
            "evaluations": self.evaluations.state_dict(),
            "random_state": capture_random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called.

        Raises:
            ConfigurationError: If it is the state of a run with other data, parts or parameters.
        """
        for name, ours in self._signature().items():
            theirs = state["signature"].get(name)
            if theirs != ours:
                raise ConfigurationError(
                    f"{name} is {ours!r}",
                    f"{theirs!r}, as in the run that is resumed",
                    "resume with the arguments that the run began with, or start a new one with "
                    "another checkpoint",
                )
        try:
            for module, saved in zip(self.modules, state["modules"], strict=True):
                module.load_state_dict(saved)
            with torch.no_grad():
                for parameter, value in zip(self._loose(), state["parameters"], strict=True):
                    parameter.copy_(value)
            self.optimizer.load_state_dict(state["optimizer"])
            _restore_dtypes(self.optimizer, state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"the checkpoint does not fit: {error}",
                "the state of this loss and this optimizer",
                "build both as they were built for the run that is resumed",
            ) from error
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.record.load_state_dict(state["record"])
        self.evaluations.load_state_dict(state["evaluations"])
        self.step = state["step"]
        self.batches.resume(self.step, state["batches"])
        restore_random_state(state["random_state"])  # last: making batches again draws numbers

    def _gradient_norm(self) -> Tensor:
        if self.max_gradient_norm is not None:
            return nn.utils.clip_grad_norm_(self.parameters, self.max_gradient_norm)
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def _loose(self) -> list[nn.Parameter]:
        """Trained parameters of which no module knows."""
        known = {id(p) for module in self.modules for p in module.parameters()}
        return [p for p in self.parameters if id(p) not in known]

    def _signature(self) -> dict[str, Any]:
        schedule = None if self.schedule is None else type(self.schedule).__name__
        return {
            "loss": type(self.loss).__name__,
            "optimizer": type(self.optimizer).__name__,
            "schedule": schedule,
            "ema_decay": None if self.average is None else self.average.decay,
            **self.batches.signature(),
        }


def _modules(loss: Loss, parameters: Parameters | None) -> list[nn.Module]:
    """What has a state of its own, each once."""
    modules: list[nn.Module] = [loss] if isinstance(loss, nn.Module) else []
    if isinstance(parameters, nn.Module) and not any(
        parameters is part for module in modules for part in module.modules()
    ):
        modules.append(parameters)
    return modules


def _trained(
    loss: Loss, parameters: Parameters | None, optimizer: Optimizer | MakeOptimizer | None
) -> list[nn.Parameter]:
    if isinstance(optimizer, Optimizer):
        if parameters is not None and not isinstance(parameters, nn.Module):
            raise ConfigurationError(
                "parameters together with an optimizer that has its own",
                "one of them",
                "pass the optimizer alone",
            )
        return [p for group in optimizer.param_groups for p in group["params"]]
    if parameters is None:
        _check_energy(loss)
        parameters = loss.parameters() if isinstance(loss, nn.Module) else ()
    elif isinstance(parameters, nn.Module):
        parameters = parameters.parameters()
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        raise ConfigurationError(
            f"the loss, a {type(loss).__name__}, has no parameters to train",
            "parameters that require gradients",
            "pass parameters=network, or make the loss of the network itself: of a function, only "
            "modules that are named are known, as_energy(f, network)",
        )
    return trained


def _check_energy(loss: Loss) -> None:
    """Refuse a function whose parameters nobody knows, beside which the loss has others."""
    energy = getattr(loss, "energy", None)
    if isinstance(energy, CallableEnergy) and next(energy.parameters(), None) is None:
        raise ConfigurationError(
            f"the energy of the {type(loss).__name__} is a function without parameters",
            "one whose parameters are known",
            "name its modules, as_energy(f, network), or pass what is trained as parameters",
        )


def _restore_dtypes(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Give state its own dtype again; torch casts it to the parameter's."""
    numbers = [n for group in saved["param_groups"] for n in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        ours = optimizer.state[parameter]
        for name, value in saved["state"].get(number, {}).items():
            if isinstance(value, Tensor) and value.dtype != ours[name].dtype:
                ours[name] = value.to(ours[name].device)


def _optimizer(
    optimizer: Optimizer | MakeOptimizer | None,
    parameters: list[nn.Parameter],
    learning_rate: float,
) -> Optimizer:
    if optimizer is None:
        rate = check_positive("learning_rate", learning_rate)
        return torch.optim.Adam(parameters, lr=rate)
    made = optimizer if isinstance(optimizer, Optimizer) else optimizer(parameters)
    if not isinstance(made, Optimizer):
        raise ConfigurationError(
            f"optimizer is {optimizer!r:.80}",
            "an optimizer of torch.optim, or a callable parameters -> optimizer",
            "pass optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), for example",
        )
    return made
