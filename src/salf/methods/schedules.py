"""When a round ends, and which steps of which layer count in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from salf.devices import CompletionTimes
from salf.values import Ints


@dataclass(frozen=True)
class RoundSchedule:
    """What a method makes of the times of one round.

    `steps` and `finished`, of shape (clients, layers), count the optimizer steps of each layer that enter the model and
    those whose gradients the clients had completed when the round ended. The round lasts `seconds`; `deadline_seconds`
    is None where there was none. `workloads`, of shape (clients,), says which of the method's jobs each client was given;
    None where there is but one.
    """

    steps: Ints
    finished: Ints
    seconds: float
    deadline_seconds: float | None
    workloads: Ints | None = None


def until_deadline(times: CompletionTimes, seconds: float) -> RoundSchedule:
    """Let each client do what it can by a deadline; a round in which everyone finishes early ends early."""
    return RoundSchedule(
        steps=times.steps_by(seconds),
        finished=times.steps_ready_by(seconds),
        seconds=min(seconds, float(times.whole.max())),
        deadline_seconds=seconds,
    )


def whole_steps_by(times: CompletionTimes, seconds: float) -> RoundSchedule:
    """Let each client convey the steps that it has finished through all layers by a deadline."""
    partial = until_deadline(times, seconds)
    steps = np.broadcast_to(partial.steps.min(axis=1, keepdims=True), partial.steps.shape)
    return RoundSchedule(steps.copy(), partial.finished, partial.seconds, seconds)


def largest_jobs_by(options: Sequence[CompletionTimes], seconds: float) -> RoundSchedule:
    """Give each client the largest job that it has conveyed whole by a deadline, and nobody part of one.

    `options` are the times of the jobs from the smallest to the largest. A client that is too slow even for the
    smallest is given that, and conveys nothing.
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
    """Wait for the first `count` clients that answer at all; of those who answer together the first in order."""
    answering = np.isfinite(times.whole)
    first = np.zeros_like(answering)
    first[np.argsort(times.whole, kind="stable")[:count]] = True
    counted = first & answering
    seconds = float(np.where(answering, times.whole, times.give_up_seconds)[first].max())
    return RoundSchedule(
        steps=times.steps_ready_by(np.inf) * counted[:, None],
        finished=times.steps_ready_by(seconds),
        seconds=seconds,
        deadline_seconds=None,
    )
