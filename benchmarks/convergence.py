"""Compare the convergence bound with ridge regressions whose optimum is known.

Each of twenty clients fits a linear model to its own data, with one step of stochastic gradient descent on one example
per round. The weights are cut into eight layers, and a client sends as many as its exponential layer times allow. The
mean distance from the optimum is compared with the bound of `salf.theory` and with the same rounds without a deadline.
The script prints the figures of docs/theory.md and draws its picture:

    python benchmarks/convergence.py docs/images/convergence.svg
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from salf import theory
from salf.report import save_figure

Array = npt.NDArray[np.float64]

CLIENTS, LAYERS, WIDTH, EXAMPLES = 20, 8, 2, 200
RIDGE = 0.1
DEADLINE = theory.ExponentialDepth(mean_layer_seconds=1.0, deadline_seconds=4.13)  # layer 1 is empty in 30 % of rounds


@dataclass(frozen=True)
class Ridge:
    """One ridge regression per client.

    Attributes:
        inputs: Shape (clients, examples, weights).
        targets: Shape (clients, examples).
    """

    inputs: Array
    targets: Array

    @classmethod
    def draw(cls, seed: int) -> "Ridge":
        """Draw normal inputs, and targets of linear models that differ between clients."""
        generator = np.random.default_rng(seed)
        inputs = generator.normal(size=(CLIENTS, EXAMPLES, LAYERS * WIDTH))
        models = 1 + 0.5 * generator.normal(size=(CLIENTS, LAYERS * WIDTH))
        noise = 0.5 * generator.normal(size=(CLIENTS, EXAMPLES))
        return cls(inputs, np.einsum("uid,ud->ui", inputs, models) + noise)

    @property
    def curvatures(self) -> Array:
        """The Hessian of each client's loss, shape (clients, weights, weights)."""
        products: Array = np.einsum("uid,uie->ude", self.inputs, self.inputs)
        return products / EXAMPLES + RIDGE * np.eye(LAYERS * WIDTH)

    def minimum(self, client: int | None = None) -> Array:
        """Return the optimum of one client's loss, or of the mean loss."""
        slopes = np.einsum("uid,ui->ud", self.inputs, self.targets) / EXAMPLES
        if client is None:
            return np.linalg.solve(self.curvatures.mean(axis=0), slopes.mean(axis=0))
        return np.linalg.solve(self.curvatures[client], slopes[client])

    def losses(self, weights: Array) -> Array:
        """Return each client's loss, shape (clients,)."""
        squares: Array = (self.inputs @ weights - self.targets) ** 2
        return np.asarray(squares.mean(axis=1) / 2 + RIDGE / 2 * float(weights @ weights), dtype=np.float64)

    def second_moments(self, weights: Array) -> Array:
        """Return the exact E‖g_u‖² of one random example, shape (clients,)."""
        gradients = self.inputs * (self.inputs @ weights - self.targets)[..., None] + RIDGE * weights
        return np.asarray((gradients**2).sum(axis=2).mean(axis=1), dtype=np.float64)

    def constants(self, start: Array) -> theory.Constants:
        """Return the constants; gradients are largest at the start."""
        eigenvalues = np.linalg.eigvalsh(self.curvatures)
        apart = float(np.mean([self.losses(self.minimum(client))[client] for client in range(CLIENTS)]))
        largest = float(self.second_moments(start).max())
        return theory.Constants(
            smoothness=float(eigenvalues.max()),
            strong_convexity=float(eigenvalues.min()),
            gradient_variance=largest,  # a variance is at most the second moment
            second_moment=largest,
            heterogeneity=float(self.losses(self.minimum()).mean()) - apart,
            num_clients=CLIENTS,
        )


@dataclass(frozen=True)
class Measured:
    """Mean ‖w_t − w*‖² over seeds before the first round and after each, and its bounds.

    Attributes:
        layered: With the deadline.
        waiting: Without a deadline.
        bound: The bound on `layered`.
        bound_waiting: The bound on `waiting`.
        moment: The largest measured E‖g‖², relative to G².
    """

    layered: Array
    waiting: Array
    bound: Array
    bound_waiting: Array
    moment: float

    @property
    def slope(self) -> float:
        """The log-log slope of the error over the last two decades, by least squares."""
        last = len(self.layered) - 1
        places = np.unique(np.geomspace(last / 100, last, 200).astype(int))
        return float(np.polyfit(np.log(places), np.log(self.layered[places]), 1)[0])

    def ratio(self, start: int, end: int) -> float:
        """Return the mean error with the deadline over that without, in rounds start … end."""
        return float(self.layered[start:end].mean() / self.waiting[start:end].mean())


def measure(rounds: int, seeds: int) -> Measured:
    """Run all seeds at once, on the same examples with and without the deadline."""
    problem = Ridge.draw(0)
    best, start = problem.minimum(), np.zeros(LAYERS * WIDTH)
    constants = problem.constants(start)
    reach = theory.reach_probability(depth=DEADLINE, num_layers=LAYERS)
    empty = theory.empty_probability(reach=reach, num_clients=CLIENTS)
    steps = theory.decaying_steps(constants=constants, rounds=rounds)
    generator = np.random.default_rng(1)
    layered, waiting = np.tile(start, (seeds, 1)), np.tile(start, (seeds, 1))
    errors = np.empty((2, rounds + 1))
    errors[:, 0] = float(best @ best)
    moment = 0.0
    for t, step in enumerate(steps):
        chosen = generator.integers(EXAMPLES, size=(seeds, CLIENTS))
        reached = _reached(generator, seeds)
        gradients = _gradients(problem, layered, chosen)
        moment = max(moment, float((gradients**2).sum(axis=2).mean()))
        layered = layered - step * _corrected(gradients, reached, empty)
        waiting = waiting - step * _gradients(problem, waiting, chosen).mean(axis=1)
        errors[:, t + 1] = [float(((each - best) ** 2).sum(axis=1).mean()) for each in (layered, waiting)]
    bounds = [
        theory.bound(constants=constants, initial_error=errors[0, 0], rounds=rounds, empty=chances)
        for chances in (empty, None)
    ]
    return Measured(errors[0], errors[1], bounds[0], bounds[1], moment / constants.second_moment)


def _reached(generator: np.random.Generator, seeds: int) -> npt.NDArray[np.bool_]:
    """Draw whether clients reach layers, shape (seeds, clients, layers)."""
    times = generator.exponential(DEADLINE.mean_layer_seconds, size=(seeds, CLIENTS, LAYERS)).cumsum(axis=2)
    return (times <= DEADLINE.deadline_seconds)[:, :, ::-1]


def _gradients(problem: Ridge, weights: Array, chosen: npt.NDArray[np.int64]) -> Array:
    """Return each client's gradient on its chosen example, shape (seeds, clients, weights)."""
    inputs = problem.inputs[np.arange(CLIENTS), chosen]
    misses = np.einsum("sud,sd->su", inputs, weights) - problem.targets[np.arange(CLIENTS), chosen]
    return np.asarray(inputs * misses[..., None] + RIDGE * weights[:, None], dtype=np.float64)


def _corrected(gradients: Array, reached: npt.NDArray[np.bool_], empty: Array) -> Array:
    """Return the corrected mean over each layer's contributors, shape (seeds, weights)."""
    seeds = len(gradients)
    layers = gradients.reshape(seeds, CLIENTS, LAYERS, WIDTH)
    sums = np.einsum("suld,sul->sld", layers, reached.astype(np.float64))
    counts = np.maximum(reached.sum(axis=1), 1)
    return np.asarray(sums / (counts * (1 - empty))[..., None], dtype=np.float64).reshape(seeds, -1)


def draw(measured: Measured) -> Figure:
    """Draw errors and bounds, and below them the ratio of the errors."""
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    rounds = np.unique(np.geomspace(1, len(measured.layered), 500).astype(int))  # as many as the picture resolves
    for values, label, colour, line in (
        (measured.bound, "bound, with the deadline", "#D55E00", "--"),
        (measured.bound_waiting, "bound, without a deadline", "#0072B2", "--"),
        (measured.layered, "measured, with the deadline (SALF)", "#D55E00", "-"),
        (measured.waiting, "measured, without a deadline", "#0072B2", "-"),
    ):
        upper.loglog(rounds, values[rounds - 1], label=label, color=colour, linestyle=line)
    tail = rounds[rounds >= rounds[-1] / 100]
    upper.loglog(tail, 0.5 * measured.waiting[-1] * rounds[-1] / tail, label="slope −1", color="#555555", linestyle=":")
    upper.set(ylabel="mean ‖w − w*‖²")
    upper.legend(frameon=False, loc="lower left")
    lower.semilogx(rounds, (measured.layered / measured.waiting)[rounds - 1], color="#000000")
    lower.set(xlabel="round t", ylabel="ratio of the errors", ylim=(0, None))
    for axes in (upper, lower):
        _tidy(axes)
    return figure


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Measure 200 seeds over 10 000 rounds, print the figures, and draw them."""
    measured = measure(rounds=10_000, seeds=200)
    reach = theory.reach_probability(depth=DEADLINE, num_layers=LAYERS)
    print("p_l:", *theory.empty_probability(reach=reach, num_clients=CLIENTS).round(4))
    print(f"log-log slope over the last two decades: {measured.slope:.3f}")
    print(f"bound / measured, least over all rounds: {(measured.bound / measured.layered).min():.3g}")
    print(f"bound / measured after the last round: {measured.bound[-1] / measured.layered[-1]:.3g}")
    print(f"largest measured E‖g‖² / G²: {measured.moment:.3f}")
    for start, end in ((100, 300), (300, 1000), (1000, 3000), (3000, 10_001)):
        print(f"error with / without the deadline, rounds {start} … {end - 1}: {measured.ratio(start, end):.3f}")
    for path in sys.argv[1:]:
        save_figure(draw(measured), Path(path))


if __name__ == "__main__":
    main()
