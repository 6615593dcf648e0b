"""The time-line of a typical round, drawn again with the random numbers of the run itself."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from salf.records import Activity, ClientLine, Span, TimeLine
from salf.simulation.server_state import ServerState
from salf.simulation.synchronous import RoundPlan, SynchronousRounds

_ROUNDS = 20  # the typical one is among them
_LINES = 24  # clients that are kept; the lines of more would be too thin to tell apart
_STEPS = 4  # local steps that are kept layer by layer; of more, only each client's last


def draw_timeline(rounds: SynchronousRounds, initial: ServerState, layers: Sequence[str], planned: int) -> TimeLine:
    """Draw the one of the first 20 rounds whose mean depth is nearest to that of them all.

    Args:
        rounds: The rounds of the run.
        initial: The state before the first of them.
        layers: The layers' names, input to output.
        planned: The number of rounds of the experiment.

    Returns:
        The time-line; it has no round if no round ever ends.
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
        lines=tuple(_ClientRound(typical, place).line() for place in _shown(typical)),
    )


def _plans(rounds: SynchronousRounds, state: ServerState, count: int) -> Iterator[RoundPlan]:
    """Yield the plans of `count` rounds after a state; they need no training, provided that no update is refused."""
    for _ in range(count):
        plan = rounds.plan(state)
        yield plan
        observed = state.observed.observe(plan.cohort.clients, plan.schedule.steps > 0)
        state = replace(state, round=plan.cohort.round, speeds=plan.speeds, observed=observed)


def _shown(plan: RoundPlan) -> list[int]:
    """Return the places of at most 24 clients, evenly spaced from the deepest to the shallowest."""
    depths = (plan.schedule.steps > 0).sum(axis=1)
    whole = plan.options[0].whole
    order = np.lexsort((np.arange(len(depths)), whole, -depths))
    return [int(order[place]) for place in np.linspace(0, len(order) - 1, min(_LINES, len(order))).astype(np.int64)]


class _ClientRound:
    """One client's round, in seconds from its start.

    Args:
        plan: The plan of the round.
        place: The client's place in the cohort.

    Attributes:
        client: The client's number.
        received: When the model arrives.
        forwarded: When each forward pass ends, shape (local steps,); None if it takes no time.
        ready: When each layer's gradient is complete, shape (local steps, layers).
        arrived: When it would reach the server, of the same shape.
        steps: How many steps of each layer count, shape (layers,).
        end: When the round ends.
    """

    def __init__(self, plan: RoundPlan, place: int) -> None:
        schedule = plan.schedule
        self.client = int(plan.cohort.clients[place])
        times = plan.options[0 if schedule.workloads is None else int(schedule.workloads[place])]
        self.received = 0.0 if times.received is None else float(times.received[place])
        self.forwarded = None if times.forwarded is None else times.forwarded[place]
        self.ready, self.arrived = times.ready[place], times.sent[place]
        self.steps, self.end = schedule.steps[place], schedule.seconds

    def line(self) -> ClientLine:
        """Return what the client does."""
        return ClientLine(self.client, int((self.steps > 0).sum()), tuple(self._spans()))

    def _spans(self) -> Iterator[Span]:
        """Yield what takes time and begins before the round ends, in order."""
        yield from self._span("receive", 0.0, self.received, counted=bool(self.steps.any()))
        begins = [self.received, *map(float, self.ready[:, 0])]  # backpropagation completes the first layer last
        begun = sum(begin < self.end for begin in begins[:-1])
        for step, begin in enumerate(begins[:begun]):
            yield from self._step(step, begin, detailed=len(self.ready) <= _STEPS or step == begun - 1)
        yield from self._sending()

    def _step(self, step: int, begin: float, *, detailed: bool) -> Iterator[Span]:
        """Yield the passes of a local step, the backward pass layer by layer if `detailed`."""
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
        """Yield the upload of what counts, which begins when the last of its gradients is complete."""
        kept = np.arange(len(self.ready))[:, None] < self.steps
        if kept.any():
            last = np.unravel_index(np.where(kept, self.ready, -np.inf).argmax(), kept.shape)
            yield from self._span("send", float(self.ready[last]), float(self.arrived[last]), counted=True)

    def _span(
        self, activity: Activity, start: float, end: float, *, counted: bool, layer: int | None = None
    ) -> Iterator[Span]:
        """Yield an activity, cut at the end of the round; nothing if it takes no time before that."""
        if start < min(end, self.end):
            yield Span(activity, start, min(end, self.end), counted, end > self.end, layer)
