"""Compare adaptive deadlines with a constant deadline of the same total time.

Twenty clients train the paper's CNN on MNIST, divided at random, with one step of batch 16 per round. Each layer takes
an exponential time of 1 s on average. `adel` and `salf` have the same total time and the same number of rounds, 300 and
then 600. The script prints the figures of docs/theory.md and draws its picture of accuracy over virtual time:

    python benchmarks/adaptive.py DATA_ROOT docs/images/adaptive.svg
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from salf import Experiment, RoundRecord, run_experiment
from salf.data import Dataset, load
from salf.report import plot_accuracy, save_figure

Array = npt.NDArray[np.float64]

SEEDS, TOTAL_SECONDS = 5, 600.0
SETTINGS: dict[str, object] = {"data.clients": 20, "devices.kind": "exponential", "evaluate.every": 10}
CHANCE = 0.1  # the accuracy of an untrained network, at time 0


@dataclass(frozen=True)
class Schedule:
    """A method, and the number of rounds that share the total time."""

    method: str
    rounds: int

    @property
    def name(self) -> str:
        """Its name in the plot."""
        kind = "adaptive deadlines" if self.method == "adel" else f"constant deadline of {self.each:g} s"
        return f"{kind}, {self.rounds} rounds"

    @property
    def each(self) -> float:
        """The mean deadline in seconds."""
        return TOTAL_SECONDS / self.rounds

    def settings(self, root: str) -> dict[str, object]:
        """Return the changes to the preset mnist-cnn."""
        deadline = {"method.total_seconds": TOTAL_SECONDS} if self.method == "adel" else {"method.deadline": self.each}
        return {**SETTINGS, "data.root": root, "method.name": self.method, **deadline, "rounds": self.rounds}


SCHEDULES = tuple(Schedule(method, rounds) for rounds in (300, 600) for method in ("salf", "adel"))


def mean_accuracy(records: Sequence[RoundRecord], seconds: float = TOTAL_SECONDS) -> float:
    """Return the mean accuracy over `seconds` of virtual time.

    It is interpolated linearly between tests and constant after the last one.
    """
    tested = [(record.time_s, record.accuracy) for record in records if record.accuracy is not None]
    times, values = np.array([(0.0, CHANCE), *tested]).T
    within = np.append(times[times < seconds], seconds)
    return float(np.trapezoid(np.interp(within, times, values), within)) / seconds


def interval(differences: Array) -> tuple[float, float]:
    """Return the mean of paired differences and half its 95 % confidence interval."""
    spread = float(differences.std(ddof=1)) / np.sqrt(len(differences))
    return float(differences.mean()), float(student.ppf(0.975, len(differences) - 1)) * spread


def measure(root: str, dataset: Dataset) -> dict[str, list[tuple[RoundRecord, ...]]]:
    """Run every schedule with every seed; return the records by schedule."""
    found: dict[str, list[tuple[RoundRecord, ...]]] = {schedule.name: [] for schedule in SCHEDULES}
    for seed in range(SEEDS):
        for schedule in SCHEDULES:
            experiment = Experiment.load("mnist-cnn", seed=seed, **schedule.settings(root))
            found[schedule.name].append(run_experiment(experiment, dataset=dataset).records)
    return found


def report(runs: Mapping[str, Sequence[Sequence[RoundRecord]]]) -> None:
    """Print the figures of docs/theory.md."""
    areas = {name: np.array([mean_accuracy(records) for records in each]) for name, each in runs.items()}
    for name, values in areas.items():
        ends = np.array([records[-1].accuracy for records in runs[name]], dtype=np.float64)
        last = [records[-1].time_s for records in runs[name]]
        print(
            f"{name}: mean accuracy over time {100 * values.mean():.2f} % ± {100 * values.std(ddof=1):.2f}, "
            f"at the end {100 * ends.mean():.2f} % ± {100 * ends.std(ddof=1):.2f}, after {np.mean(last):.1f} s"
        )
    for constant, adaptive in zip(SCHEDULES[::2], SCHEDULES[1::2], strict=True):
        mean, half = interval(areas[adaptive.name] - areas[constant.name])
        print(
            f"{constant.rounds} rounds, adaptive minus constant: {100 * mean:+.2f} points, "
            f"95 % confidence interval {100 * (mean - half):.2f} … {100 * (mean + half):.2f}"
        )
    best = max(SCHEDULES[::2], key=lambda schedule: areas[schedule.name].mean())
    mean, half = interval(areas[SCHEDULES[1].name] - areas[best.name])
    print(f"{SCHEDULES[1].name} minus {best.name}: {100 * mean:+.2f} points ± {100 * half:.2f}")


def main(root: str, plots: Sequence[str]) -> None:
    """Run all schedules, print the figures, and draw them into the given files."""
    runs = measure(root, load("mnist", root))
    report(runs)
    for path in plots:
        title = f"MNIST, CNN, 20 clients, exponential layer times: {TOTAL_SECONDS:g} s, {SEEDS} seeds"
        save_figure(plot_accuracy(runs, title), Path(path))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
