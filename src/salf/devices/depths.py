"""The device models of the paper's experiments and analysis, and one of permanently slow devices; none has a link."""

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from salf import theory
from salf.devices.cohort import Cohort, stragglers_among
from salf.devices.workload import CompletionTimes, Devices, Workload
from salf.values import Floats, Fraction, Ints, Positive, validated


@validated
class UniformDepthDevices(Devices):
    """The depth model of the paper's experiments: some clients are stragglers, with a uniformly drawn depth.

    The paper has no clock; this model adds one. A client that is no straggler takes exactly `seconds` for its workload.
    A straggler of depth d finishes d of L layers in that time, at an even pace, and would need `seconds` · L/d for all.
    A straggler of depth 0 never answers; a method that waits for all clients gives it up after L · `seconds`.

    As in the paper, a straggler always misses the deadline. A straggler of depth L has every gradient by then, which is
    enough for a layer-wise method, but its workload is not complete. With `stragglers_miss=False` it is complete.

    `stragglers` is their share of all clients. `drawn="once"` fixes the stragglers for the run, `"round"` draws them in
    each round, and `"persistent"` fixes their depths as well. `lowest_depth` is the smallest depth drawn.
    """

    kind: Literal["uniform"] = "uniform"
    stragglers: Fraction = 0.9
    drawn: Literal["once", "round", "persistent"] = "once"
    lowest_depth: Annotated[int, Field(ge=0)] = 1
    stragglers_miss: bool = True
    seconds: Positive = 1.0

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Draw the times of the clients of a round; see the class."""
        layers = workload.costs.num_layers
        slow = self._stragglers(cohort)
        ready = self._ready(workload, self._depths(layers, cohort, slow))
        late = np.where(slow & self.stragglers_miss, np.nextafter(self.seconds, np.inf), 0.0)
        late *= workload.shares.sum() / layers
        ready, late = cohort.computing(ready), cohort.computing(late)
        return CompletionTimes(ready, ready, np.maximum(ready[:, -1, 0], late), give_up_seconds=self.seconds * layers)

    def typical_seconds(self, workload: Workload) -> float:
        """Return `seconds`."""
        return self.seconds

    def reach(self, workload: Workload, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return the chances; they are 0 or 1 for a client whose depth never changes."""
        layers = workload.costs.num_layers
        if self.drawn == "persistent":
            ready = self._ready(workload, self._depths(layers, cohort, self._stragglers(cohort)))[:, 0]
            return np.asarray(cohort.computing(ready) <= deadline_seconds, dtype=np.float64)
        depths = np.arange(min(self.lowest_depth, layers), layers + 1)
        ready = np.broadcast_to(self._ready(workload, depths)[:, 0], (len(cohort.clients), len(depths), layers))
        possible = np.asarray(cohort.computing(ready) <= deadline_seconds, dtype=np.float64)
        slow: Floats = possible.mean(axis=1)
        fast: Floats = possible[:, -1]  # a client that is no straggler completes all L layers
        if self.drawn == "round":
            return np.asarray((1 - self.stragglers) * fast + self.stragglers * slow, dtype=np.float64)
        return np.where(self._stragglers(cohort)[:, None], slow, fast)

    def _ready(self, workload: Workload, depths: Ints) -> Floats:
        """Return when clients of these depths complete each layer of each step, shape (clients, steps, layers)."""
        steps = workload.local_steps
        done = workload.shares[::-1].cumsum()[::-1]
        place = np.arange(steps)[:, None] * done[0] + done
        with np.errstate(divide="ignore"):
            return np.asarray(self.seconds * (place / (steps * depths[:, None, None])), dtype=np.float64)

    def _stragglers(self, cohort: Cohort) -> npt.NDArray[np.bool_]:
        return stragglers_among(cohort, self.stragglers, lasting=self.drawn != "round")

    def _depths(self, layers: int, cohort: Cohort, slow: npt.NDArray[np.bool_]) -> Ints:
        lowest = min(self.lowest_depth, layers)
        draws = cohort.uniforms("depth", 1, lasting=self.drawn == "persistent")[:, 0]
        return np.where(slow, lowest + (draws * (layers - lowest + 1)).astype(np.int64), layers)


@validated
class ExponentialLayers(Devices):
    """The model of the paper's analysis: each layer's backward pass takes an independent exponential time.

    The mean is `mean_layer_seconds` for every layer and client. Forward passes and sending take no time.
    """

    kind: Literal["exponential"] = "exponential"
    mean_layer_seconds: Positive = 1.0

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Draw the times of the clients of a round; see the class."""
        layers, steps = workload.costs.num_layers, workload.local_steps
        draws = -np.log(cohort.uniforms("layer-time", steps * layers)) * self.mean_layer_seconds
        draws *= np.tile(workload.shares[::-1], steps)
        ready = cohort.computing(draws.cumsum(axis=1).reshape(-1, steps, layers)[:, :, ::-1])
        return CompletionTimes(ready, ready, ready[:, -1, 0])

    def typical_seconds(self, workload: Workload) -> float:
        """Return the mean time of the workload."""
        return self.mean_layer_seconds * workload.costs.num_layers * workload.local_steps

    def reach(self, workload: Workload, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return the chances; the time of the d-th completion is Erlang-distributed."""
        fractions = np.ones(len(cohort.clients)) if cohort.batch_fraction is None else cohort.batch_fraction
        different, own = np.unique(fractions, return_inverse=True)
        means = (self.mean_layer_seconds * fraction for fraction in different)
        depths = [theory.ExponentialDepth(mean, deadline_seconds) for mean in means]
        layers = workload.costs.num_layers
        return np.array([theory.reach_probability(depth=depth, num_layers=layers) for depth in depths])[own]


@validated
class GradedSpeeds(Devices):
    """Permanently slow devices, from one that never answers to one that is just fast enough.

    Of U clients, client u = 0, 1, … has u/(U − 1) of the speed at which the workload takes `seconds`; all layers take
    equal times. A layer counts as complete in the middle of its time, so that after `seconds` client u has completed
    L · u/(U − 1) of L layers, rounded. A method that waits for all clients gives up client 0 after (U − 1) · `seconds`,
    when all others are done.

    With data divided by label order this is the experiment of docs/experiments.md on persistent stragglers.
    """

    kind: Literal["graded"] = "graded"
    seconds: Positive = 1.0

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Return the times of the clients of a round; see the class."""
        fastest = max(cohort.population - 1, 1)
        speed = (cohort.clients if cohort.population > 1 else cohort.clients + 1) / fastest
        done = workload.shares[::-1].cumsum()[::-1]
        place = np.arange(workload.local_steps)[:, None] * done[0] + done - workload.shares / 2
        whole = workload.local_steps * workload.costs.num_layers
        with np.errstate(divide="ignore"):
            ready = cohort.computing(self.seconds * place / (whole * speed[:, None, None]))
        return CompletionTimes(ready, ready, ready[:, -1].max(axis=1), give_up_seconds=self.seconds * fastest)

    def typical_seconds(self, workload: Workload) -> float:
        """Return `seconds`."""
        return self.seconds

    def reach(self, workload: Workload, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return the chances, which are 0 or 1."""
        return np.asarray(self.times(workload, cohort).ready[:, 0] <= deadline_seconds, dtype=np.float64)
