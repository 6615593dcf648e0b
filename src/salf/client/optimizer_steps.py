"""The steps of a loop's optimizers: which layers they change, what to keep before that, and how long they take."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from salf.client.forecast import TimeForecast
from salf.client.time_budget import TimeBudget
from salf.client.torch_events import StepArguments
from salf.client.work import BlockRecord
from salf.errors import InvalidSetting
from salf.layers import Layers


def needs_closure(optimizer: Optimizer) -> bool:
    """Say whether the optimizer cannot step without a closure, which it may then call several times."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


class OptimizerSteps:
    """Watches the steps of all optimizers that hold parameters of a model.

    A step that begins within another one belongs to it: a wrapper steps the optimizer that it contains.

    Attributes:
        seen: The optimizers that have stepped.
        seconds: How long the last step took, with the copies before it.
        is_in_closure: Whether a step is in progress that runs the backward pass itself, by a closure.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        layers: Layers,
        sizes: Mapping[str, int],
        record: BlockRecord,
        forecast: TimeForecast,
        budget: TimeBudget,
    ) -> None:
        """Watch one block.

        Args:
            parameters: The parameters of the layers, by name.
            layers: All layers.
            sizes: Bytes of the layers whose times matter, by name.
            record: What keeps the initial weights.
            forecast: What learns how long steps take.
            budget: The clock, and whether it is read now.
        """
        self._parameters, self._layers, self._sizes = parameters, layers, sizes
        self._record, self._forecast, self._budget = record, forecast, budget
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._owner = {name: layer.name for layer in layers for name in layer.parameters}
        self.seen: dict[int, Optimizer] = {}
        self.seconds, self._since = 0.0, 0.0
        self.is_in_closure = False
        self._open: list[Optimizer] = []  # the steps in progress, each within the one before it
        self._changed: set[str] = set()

    def forget_unfinished(self) -> None:
        """Forget a step that an exception has ended, since the loop goes on."""
        if not self.is_in_closure:
            self._open.clear()

    def before(
        self,
        optimizer: Optimizer,
        arguments: tuple[object, ...],
        named: Mapping[str, object],
        prepare: Callable[[], None],
    ) -> StepArguments | None:
        """Keep what the step will change, unless it is part of another one; return other arguments for it, if needed.

        Args:
            optimizer: The optimizer.
            arguments: The arguments of its `step`, itself included.
            named: The named arguments.
            prepare: Runs before that.
        """
        self._open.append(optimizer)
        if len(self._open) > 1:
            return None
        names = self._held(optimizer)
        closure: Any = named.get("closure", arguments[1] if len(arguments) > 1 else None)
        self.is_in_closure = closure is not None and bool(names)
        if self.is_in_closure and needs_closure(optimizer):
            self._open.clear()
            self.is_in_closure = False
            raise InvalidSetting(
                f"{type(optimizer).__name__}.step(closure) may run several backward passes itself; "
                "use an optimizer that steps without a closure under a deadline"
            )
        prepare()
        self._changed = {
            self._owner[name]
            for name in names
            if self._parameters[name].grad is not None or (self.is_in_closure and self._parameters[name].requires_grad)
        }
        before = self._budget.now_if_precise()
        kept = (name for layer in self._layers if layer.name in self._changed for name in layer.parameters)
        copied = self._record.keep_initial(kept)
        self.begin()
        self.seconds = self._since - before
        if copied and self._budget.is_precise:
            self._forecast.copy.add(copied, self.seconds)
        watched = {**named, "closure": partial(self._run_closure, closure)}
        return ((arguments[0],), watched) if self.is_in_closure else None

    def _run_closure(self, closure: Callable[[], object]) -> object:
        """Run the closure of a step; if it fails, the step is over, and the loop may go on."""
        try:
            return closure()
        except BaseException:
            self._open.clear()
            self.is_in_closure = False
            raise

    def begin(self) -> None:
        """Note that the weights change from now on: after the copies, or after the backward pass of a closure."""
        self._since = self._budget.now_if_precise()

    def after(self, optimizer: Optimizer) -> set[str]:
        """Return the names of the layers that the step has changed; none if it is part of another one."""
        if self._open and self._open.pop() is not optimizer:
            self._open.clear()
        # A GradScaler tells a fused optimizer by `found_inf` to skip the step.
        if self._open or getattr(optimizer, "found_inf", False):
            return set()
        stepped = self._changed
        if self.is_in_closure:  # before it, no gradient was there
            stepped = {self._owner[name] for name in self._held(optimizer) if self._parameters[name].grad is not None}
            self.is_in_closure = False
        size = sum(self._sizes.get(name, 0) for name in stepped)
        if self._budget.is_precise and size:
            took = self._budget.stopwatch.now() - self._since
            self.seconds += took
            self._forecast.step.add(size, took)
        if stepped:
            self.seen[id(optimizer)] = optimizer
        return stepped

    def _held(self, optimizer: Optimizer) -> list[str]:
        held = (self._names.get(id(value)) for group in optimizer.param_groups for value in group["params"])
        return [name for name in held if name is not None]
