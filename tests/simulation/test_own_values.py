"""What own methods and device models return is checked before it is simulated."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from salf import InvalidSetting, simulate
from salf.devices import CompletionTimes, UniformDepthDevices
from salf.experiment import Experiment
from salf.methods import FedBuff, RoundSchedule, Salf

TINY = Experiment.load("digits", rounds=1, **{"data.clients": 4})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda schedule: None, "the result of method.schedule is of type NoneType"),
        (lambda schedule: replace(schedule, steps=schedule.steps[1:]), "steps has shape"),
        (lambda schedule: replace(schedule, finished=schedule.finished[:, 1:]), "finished has shape"),
        (lambda schedule: replace(schedule, seconds=-1.0), "seconds has values that are negative or NaN"),
        (lambda schedule: replace(schedule, seconds=np.ones(2)), "seconds has shape"),
        (lambda schedule: replace(schedule, seconds=np.inf), "round 1"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(change: Callable[[RoundSchedule], Any], problem: str) -> None:
    class Own(Salf):
        def schedule(self, options: Any, usual_seconds: float) -> Any:
            return change(super().schedule(options, usual_seconds))

    with pytest.raises(InvalidSetting, match=problem):
        list(simulate(TINY, method=Own()))


@pytest.mark.parametrize("method", [Salf(), FedBuff()])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda times: None, "the result of devices.times is of type NoneType"),
        (lambda times: replace(times, whole=times.whole[1:]), "whole has shape"),
        (lambda times: replace(times, sent=times.sent[..., 1:]), "sent has shape"),
        (lambda times: replace(times, ready=times.ready * np.nan), "ready has values that are negative or NaN"),
        (lambda times: replace(times, whole=-times.whole), "whole has values that are negative or NaN"),
    ],
)
def test_times_that_do_not_fit_are_refused(
    method: Salf | FedBuff, change: Callable[[CompletionTimes], Any], problem: str
) -> None:
    class Own(UniformDepthDevices):
        def times(self, workload: Any, cohort: Any) -> Any:
            return change(super().times(workload, cohort))

    with pytest.raises(InvalidSetting, match=problem):
        list(simulate(replace(TINY, devices=Own()), method=method))


def test_a_round_without_an_end_is_refused_where_nothing_would_end_it() -> None:
    class Own(UniformDepthDevices):
        def typical_seconds(self, workload: Any) -> float:
            return np.inf

    with pytest.raises(InvalidSetting, match="the round of method 'fedbuff' is inf; choose a finite number"):
        list(simulate(replace(TINY, devices=Own()), method=FedBuff()))
