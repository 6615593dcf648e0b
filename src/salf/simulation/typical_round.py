"""A typical round of an experiment, drawn anew with the random numbers of the run itself: who did what when."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from salf.records import Activity, ClientLine, Span, TimeLine
from salf.simulation.server_state import ServerState
from salf.simulation.synchronous import RoundPlan, SynchronousRounds
from salf.values import Floats

_ROUNDS = 20  # among which the typical one is looked for
_LINES = 24  # clients that are kept: more than that are too thin to be told apart
_STEPS = 4  # local steps that are kept layer by layer; of more, only each client's last


def draw_timeline(rounds: SynchronousRounds, initial: ServerState, layers: Sequence[str], planned: int) -> TimeLine:
    """Return the time-line of the round whose clients got, on average, as deep as those of the first 20 rounds.

    `initial` is the state before the first round, `layers` are the layers' names, input to output, `planned` is the
    number of rounds. The result has no round if no round ever ends.
    """
    plans = _plans(rounds, initial, min(planned, _ROUNDS))
    ending = [plan for plan in plans if math.isfinite(plan.schedule.seconds)]
    if not ending:
        return TimeLine(tuple(layers))
    depths = np.array([(plan.schedule.steps > 0).mean() for plan in ending])
    typical = ending[int(np.abs(depths - depths.mean()).argmin())]
    schedule, cohort = typical.schedule, typical.cohort
    return TimeLine(
        layers=tuple(layers),
        round=cohort.round,
        clients=len(cohort.clients),
        deadline_s=schedule.deadline_seconds,
        end_s=schedule.seconds,
        lines=tuple(_line(typical, place) for place in _shown(typical)),
    )


def _plans(rounds: SynchronousRounds, state: ServerState, count: int) -> Iterator[RoundPlan]:
    """Yield the plans of the first rounds, which follow from each other without training, if no update is refused."""
    for _ in range(count):
        plan = rounds.plan(state)
        yield plan
        observed = state.observed.observe(plan.cohort.clients, plan.schedule.steps > 0)
        state = replace(state, round=plan.cohort.round, speeds=plan.speeds, observed=observed)


def _shown(plan: RoundPlan) -> list[int]:
    """Return the places of the clients to show, from the deepest to the shallowest, evenly spaced if they are many."""
    depths = (plan.schedule.steps > 0).sum(axis=1)
    whole = plan.options[0].whole
    order = np.lexsort((np.arange(len(depths)), whole, -depths))
    return [int(order[place]) for place in np.linspace(0, len(order) - 1, min(_LINES, len(order))).astype(np.int64)]


def _line(plan: RoundPlan, place: int) -> ClientLine:
    day = _Day.of(plan, place)
    return ClientLine(int(plan.cohort.clients[place]), int((day.steps > 0).sum()), tuple(day.spans()))


@dataclass(frozen=True)
class _Day:
    """One client's round: `ready` and `conveyed`, shape (local steps, layers), as in `CompletionTimes`; `end` is the round's.

    `steps` counts the steps of each layer that enter the model.
    """

    received: float
    forwarded: Floats | None
    ready: Floats
    conveyed: Floats
    steps: npt.NDArray[np.int64]
    end: float

    @classmethod
    def of(cls, plan: RoundPlan, place: int) -> "_Day":
        schedule = plan.schedule
        times = plan.options[0 if schedule.workloads is None else int(schedule.workloads[place])]
        return cls(
            received=0.0 if times.received is None else float(times.received[place]),
            forwarded=None if times.forwarded is None else times.forwarded[place],
            ready=times.ready[place],
            conveyed=times.sent[place],
            steps=schedule.steps[place],
            end=schedule.seconds,
        )

    def spans(self) -> Iterator[Span]:
        """Return what the client did, in order, as far as it took time at all and began before the round was over."""
        yield from self._span("receive", 0.0, self.received, counted=bool(self.steps.any()))
        begins = [self.received, *map(float, self.ready[:, 0])]  # backpropagation completes the first layer last
        begun = sum(begin < self.end for begin in begins[:-1])
        for step, begin in enumerate(begins[:begun]):
            yield from self._step(step, begin, detailed=len(self.ready) <= _STEPS or step == begun - 1)
        yield from self._sending()

    def _step(self, step: int, begin: float, *, detailed: bool) -> Iterator[Span]:
        counted = self.steps > step
        forwarded = begin if self.forwarded is None else float(self.forwarded[step])
        yield from self._span("forward", begin, forwarded, counted=bool(counted.any()))
        completed = [forwarded, *map(float, self.ready[step, ::-1])]
        if not detailed:
            yield from self._span("backward", forwarded, completed[-1], counted=bool(counted.any()))
            return
        for layer, (start, end) in zip(reversed(range(len(counted))), pairwise(completed), strict=True):
            yield from self._span("backward", start, end, counted=bool(counted[layer]), layer=layer)

    def _sending(self) -> Iterator[Span]:
        """Return the sending of what counts: it begins when the last gradient of that is complete."""
        kept = np.arange(len(self.ready))[:, None] < self.steps
        if kept.any():
            last = np.unravel_index(np.where(kept, self.ready, -np.inf).argmax(), kept.shape)
            yield from self._span("send", float(self.ready[last]), float(self.conveyed[last]), counted=True)

    def _span(
        self, activity: Activity, start: float, end: float, *, counted: bool, layer: int | None = None
    ) -> Iterator[Span]:
        if start < min(end, self.end):
            yield Span(activity, start, min(end, self.end), counted, end > self.end, layer)
