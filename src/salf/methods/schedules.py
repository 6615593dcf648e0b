"""When a round ends, and how many steps of each layer count."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from salf.devices import CompletionTimes
from salf.values import Ints


@dataclass(frozen=True)
class RoundSchedule:
    """What a method decides about one round, given the times of its clients.

    Attributes:
        steps: How many optimizer steps of each layer enter the model, shape (clients, layers).
        finished: How many steps had a complete gradient when the round ended, shape (clients, layers).
        seconds: How long the round lasts.
        deadline_seconds: The deadline; None if there was none.
        workloads: The index of each client's workload among the method's, shape (clients,); None if there is one.
    """

    steps: Ints
    finished: Ints
    seconds: float
    deadline_seconds: float | None
    workloads: Ints | None = None


def until_deadline(times: CompletionTimes, seconds: float) -> RoundSchedule:
    """Count all layers sent by a deadline. The round ends earlier if all clients finish earlier.

    >>> import numpy as np
    >>> ready = np.array([[[3.0, 2.0, 1.0]]])  # one client, one step, layers from input to output
    >>> until_deadline(CompletionTimes(ready, ready, np.array([3.0])), seconds=2.5).steps
    array([[0, 1, 1]])
    """
    ends = min(seconds, float(times.whole.max()))
    return RoundSchedule(times.steps_by(seconds), times.steps_ready_by(seconds), ends, deadline_seconds=seconds)


def whole_steps_by(times: CompletionTimes, seconds: float) -> RoundSchedule:
    """Count the steps that clients have finished through all layers by a deadline."""
    partial = until_deadline(times, seconds)
    whole = partial.steps.min(axis=1, keepdims=True)
    return replace(partial, steps=np.broadcast_to(whole, partial.steps.shape).copy())


def largest_workloads_by(options: Sequence[CompletionTimes], seconds: float) -> RoundSchedule:
    """Give each client the largest workload that it finishes by a deadline; count whole workloads only.

    A client that is too slow for the smallest workload gets that one, and sends nothing.

    Args:
        options: The clients' times for each workload, from the smallest to the largest.
        seconds: The deadline.
    """
    in_time = np.stack([times.whole for times in options]) <= seconds
    given = np.where(in_time.any(axis=0), len(options) - 1 - in_time[::-1].argmax(axis=0), 0)
    clients = np.arange(len(given))
    whole = np.stack([times.whole for times in options])[given, clients]
    finished = np.stack([times.steps_ready_by(seconds) for times in options])[given, clients]
    steps = np.zeros_like(finished)
    steps[whole <= seconds] = options[0].ready.shape[1]
    return RoundSchedule(steps, finished, min(seconds, float(whole.max())), seconds, given)


def wait_for_first(times: CompletionTimes, count: int) -> RoundSchedule:
    """Wait for the first `count` clients that finish; at equal times, those with lower indices are first."""
    answering = np.isfinite(times.whole)
    first = np.zeros_like(answering)
    first[np.argsort(times.whole, kind="stable")[:count]] = True
    steps = times.steps_ready_by(np.inf) * (first & answering)[:, None]
    seconds = float(np.where(answering, times.whole, times.give_up_seconds)[first].max())
    return RoundSchedule(steps, times.steps_ready_by(seconds), seconds, deadline_seconds=None)
