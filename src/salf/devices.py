"""How long devices take: device models for the virtual clock. No torch, no clock, no state.

A device model draws, for the clients of one round, when each layer of each local step would be conveyed. What a
deadline makes of it is a matter of comparing times. All arrays over layers run from input to output; backpropagation
completes the last one first.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from scipy.special import ndtri

from salf import seeds, theory

Floats = npt.NDArray[np.float64]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class LayerCosts:
    """What one example costs: floating-point operations of the forward pass and of each layer's backward pass.

    `layer_bytes` is the size of what conveying each layer sends.
    """

    forward: float
    backward: tuple[float, ...]
    layer_bytes: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        """The number of layers, L."""
        return len(self.backward)


@dataclass(frozen=True)
class Job:
    """What a client is asked to do in one round: `local_steps` optimizer steps on a model of these costs.

    Backpropagation goes through the last `depth` layers (None: all); those before them are frozen. `whole` are the
    costs of the model that the federation trains, where the client is given a narrower one: device models state their
    times for that.
    """

    costs: LayerCosts
    local_steps: int
    depth: int | None = None
    whole: LayerCosts | None = None

    @property
    def trained(self) -> npt.NDArray[np.bool_]:
        """Which layers are trained, shape (layers,)."""
        layers = self.costs.num_layers
        return np.arange(layers) >= layers - (layers if self.depth is None else self.depth)

    @property
    def backward(self) -> Floats:
        """The operations of each layer's backward pass, none for a frozen one; shape (layers,)."""
        return np.asarray(self.costs.backward, dtype=np.float64) * self.trained

    @property
    def upload_bytes(self) -> Floats:
        """What conveying each layer sends, nothing for a frozen one; shape (layers,)."""
        return np.asarray(self.costs.layer_bytes, dtype=np.float64) * self.trained

    @property
    def shares(self) -> Floats:
        """Each layer's backward operations relative to those of the federation's model, shape (layers,)."""
        whole = np.asarray((self.whole or self.costs).backward, dtype=np.float64)
        return np.divide(self.backward, whole, out=self.trained.astype(np.float64), where=whole > 0)


@dataclass(frozen=True)
class Times:
    """When each layer of each local step is finished, in seconds from the start of the round.

    `ready` and `conveyed` have shape (clients, local steps, layers): when the layer's gradient is complete, and when
    it would have reached the server had the client stopped there. `whole`, of shape (clients,), is when a client has
    conveyed its whole job. Infinite means never. `give_up_seconds` is how long somebody who waits for everyone waits
    for those.

    `received`, of shape (clients,), is when the model has arrived, `forwarded`, of shape (clients, local steps), when
    each step's forward pass is done; None where the device model gives no time to them. They are for drawing only.
    """

    ready: Floats
    conveyed: Floats
    whole: Floats
    give_up_seconds: float = np.inf
    received: Floats | None = None
    forwarded: Floats | None = None

    def steps_by(self, seconds: float) -> npt.NDArray[np.int64]:
        """Count the steps of each layer that are conveyed within `seconds`, shape (clients, layers)."""
        return np.asarray((self.conveyed <= seconds).sum(axis=1), dtype=np.int64)

    def steps_ready_by(self, seconds: float) -> npt.NDArray[np.int64]:
        """Count the steps of each layer whose gradient is complete within `seconds`, shape (clients, layers)."""
        return np.asarray((self.ready <= seconds).sum(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class Cohort:
    """The clients of one round: their numbers, out of `population`, and the address of their random draws.

    `effort`, of shape (clients,), is the share of its batch that each computes on; None: all of it. `company` are the
    cohorts together with which is drawn for this one, which changes nothing but the time that it takes.
    """

    clients: npt.NDArray[np.int64]
    population: int
    round: int
    seed: int
    effort: Floats | None = None
    company: "Company | None" = None

    def uniforms(self, purpose: str, count: int, *, lasting: bool = False) -> Floats:
        """Draw `count` uniform numbers per client, the same in every round if `lasting`; shape (clients, count)."""
        if self.company is not None:
            return self.company.uniforms(purpose, count, lasting=lasting)[self.company.places(self.round)]
        return seeds.uniforms(self.seed, purpose, 0 if lasting else self.round, self.clients, count)

    def normals(self, purpose: str, *, lasting: bool = False) -> Floats:
        """Draw one standard normal number per client, the same in every round if `lasting`; shape (clients,)."""
        return np.asarray(ndtri(self.uniforms(purpose, 1, lasting=lasting)[:, 0]), dtype=np.float64)

    def computing(self, times: Floats) -> Floats:
        """Shorten times of computing on whole batches, whose first axis is that of the clients, to the share given."""
        if self.effort is None:
            return times
        return np.asarray(times * self.effort.reshape(-1, *[1] * (times.ndim - 1)), dtype=np.float64)


class Company:
    """Cohorts of several rounds, for all of which is drawn at once: a small draw takes hardly less time than a large.

    `cohorts` are the given ones, with this as their company; `clients` are those of one after the other.
    """

    def __init__(self, cohorts: Sequence[Cohort]) -> None:
        self.cohorts = [replace(cohort, company=self) for cohort in cohorts]
        self.clients = np.concatenate([cohort.clients for cohort in cohorts])
        sizes = [len(cohort.clients) for cohort in cohorts]
        ends = np.cumsum(sizes).tolist()
        self._places = {
            cohort.round: slice(end - size, end) for cohort, size, end in zip(cohorts, sizes, ends, strict=True)
        }
        self._seed = cohorts[0].seed
        self._rounds = np.repeat([cohort.round for cohort in cohorts], sizes)
        self._drawn: dict[tuple[str, int, bool], Floats] = {}

    def places(self, round: int) -> slice:
        """Return where in `clients` those of a round are."""
        return self._places[round]

    def uniforms(self, purpose: str, count: int, *, lasting: bool = False) -> Floats:
        """Return what `Cohort.uniforms` is to return, for all clients."""
        key = purpose, count, lasting
        if key not in self._drawn:
            rounds = 0 if lasting else self._rounds
            self._drawn[key] = seeds.uniforms(self._seed, purpose, rounds, self.clients, count)
        return self._drawn[key]


@validated(frozen=True, kw_only=True, config=_STRICT)
class Devices(ABC):
    """A model of how long the devices of a federation take."""

    @abstractmethod
    def times(self, job: Job, cohort: Cohort) -> Times:
        """Draw when the clients of a round finish what."""

    @abstractmethod
    def typical_seconds(self, job: Job) -> float:
        """Return how long an ordinary device takes for the whole job: the deadline where none is given."""

    def reach(self, job: Job, cohort: Cohort, deadline_seconds: float) -> Floats | None:  # noqa: ARG002
        """Return the true chance of each client to reach each layer, shape (clients, layers).

        None where it has no closed form and must be observed.
        """
        return None


@validated(frozen=True, kw_only=True, config=_STRICT)
class UniformDepth(Devices):
    """The depth model of the paper's experiments: some clients are stragglers, of a depth drawn uniformly.

    The paper has no clock. It is put on one like this: whoever is not a straggler takes exactly `seconds` for the
    whole job; a straggler of depth d gets through d of L layers' share of it in that time, evenly, so that it would
    need `seconds` · L/d in all. A straggler of depth 0 never answers, and who waits for everyone skips it after
    L · `seconds`.

    As in the paper, a straggler never makes the deadline: one of depth L has every gradient by then, which is all
    that a layer-wise method asks for, but is not done with its job. With `stragglers_miss=False` it counts as done.

    `stragglers` is their share of all clients. `drawn="once"` fixes who they are for the run, `"round"` draws anew in
    each round; with `"persistent"` their depth stays the same for ever, too. `lowest_depth` is the least depth drawn.
    """

    kind: Literal["uniform"] = "uniform"
    stragglers: Fraction = 0.9
    drawn: Literal["once", "round", "persistent"] = "once"
    lowest_depth: Annotated[int, Field(ge=0)] = 1
    stragglers_miss: bool = True
    seconds: Positive = 1.0

    def times(self, job: Job, cohort: Cohort) -> Times:
        """Draw when the clients of a round finish what; see the class."""
        layers = job.costs.num_layers
        straggling = self._straggling(cohort)
        ready = self._ready(job, self._depths(layers, cohort))
        late = np.where(straggling & self.stragglers_miss, np.nextafter(self.seconds, np.inf), 0.0)
        late *= job.shares.sum() / layers
        ready, late = cohort.computing(ready), cohort.computing(late)
        return Times(ready, ready, np.maximum(ready[:, -1, 0], late), give_up_seconds=self.seconds * layers)

    def typical_seconds(self, job: Job) -> float:  # noqa: ARG002
        """Return `seconds`."""
        return self.seconds

    def reach(self, job: Job, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return the chances: 0 or 1 for a client whose depth is always the same."""
        layers = job.costs.num_layers
        if self.drawn == "persistent":
            return self._reached(job, self._depths(layers, cohort), deadline_seconds)
        possible = self._reached(job, np.arange(min(self.lowest_depth, layers), layers + 1), deadline_seconds)
        slow: Floats = possible.mean(axis=0)
        fast: Floats = possible[-1]  # whoever is no straggler gets L layers deep
        if self.drawn == "round":
            return np.tile((1 - self.stragglers) * fast + self.stragglers * slow, (len(cohort.clients), 1))
        return np.where(self._straggling(cohort)[:, None], slow, fast)

    def _ready(self, job: Job, depths: npt.NDArray[np.int64]) -> Floats:
        """Return when clients of these depths complete each layer of each step, shape (clients, steps, layers)."""
        steps = job.local_steps
        done = job.shares[::-1].cumsum()[::-1]
        place = np.arange(steps)[:, None] * done[0] + done
        with np.errstate(divide="ignore"):
            return np.asarray(self.seconds * (place / (steps * depths[:, None, None])), dtype=np.float64)

    def _reached(self, job: Job, depths: npt.NDArray[np.int64], deadline_seconds: float) -> Floats:
        """Say, as 1 or 0, which layers clients of these depths complete at least once, shape (clients, layers)."""
        return np.asarray(self._ready(job, depths)[:, 0] <= deadline_seconds, dtype=np.float64)

    def _straggling(self, cohort: Cohort) -> npt.NDArray[np.bool_]:
        return _straggling(cohort, self.stragglers, lasting=self.drawn != "round")

    def _depths(self, layers: int, cohort: Cohort) -> npt.NDArray[np.int64]:
        lowest = min(self.lowest_depth, layers)
        draws = cohort.uniforms("depth", 1, lasting=self.drawn == "persistent")[:, 0]
        return np.where(self._straggling(cohort), lowest + (draws * (layers - lowest + 1)).astype(np.int64), layers)


@validated(frozen=True, kw_only=True, config=_STRICT)
class GradedSpeeds(Devices):
    """Devices that are slow for ever, from one that never answers to one that is just fast enough.

    Of U clients, client u = 0, 1, … has u/(U − 1) of the speed at which the whole job takes `seconds`, all its layers
    alike. A layer counts as complete at the middle of its time, so that by then client u has completed L · u/(U − 1) of
    L layers, rounded. Whoever waits for everyone gives up client 0 after (U − 1) · `seconds`, when all others are done.

    With data divided by label order this is the experiment of docs/experiments.md on persistent stragglers.
    """

    kind: Literal["graded"] = "graded"
    seconds: Positive = 1.0

    def times(self, job: Job, cohort: Cohort) -> Times:
        """Say when the clients of a round finish what; see the class."""
        fastest = max(cohort.population - 1, 1)
        speed = (cohort.clients if cohort.population > 1 else cohort.clients + 1) / fastest
        done = job.shares[::-1].cumsum()[::-1]
        place = np.arange(job.local_steps)[:, None] * done[0] + done - job.shares / 2
        whole = job.local_steps * job.costs.num_layers
        with np.errstate(divide="ignore"):
            ready = cohort.computing(self.seconds * place / (whole * speed[:, None, None]))
        return Times(ready, ready, ready[:, -1].max(axis=1), give_up_seconds=self.seconds * fastest)

    def typical_seconds(self, job: Job) -> float:  # noqa: ARG002
        """Return `seconds`."""
        return self.seconds

    def reach(self, job: Job, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return the chances: 0 or 1, as nothing is left to chance."""
        return np.asarray(self.times(job, cohort).ready[:, 0] <= deadline_seconds, dtype=np.float64)


@validated(frozen=True, kw_only=True, config=_STRICT)
class ExponentialLayers(Devices):
    """The model of the paper's analysis: each layer's backward pass takes an independent exponential time.

    Its mean is `mean_layer_seconds`, for every layer and client; forward passes and sending take no time.
    """

    kind: Literal["exponential"] = "exponential"
    mean_layer_seconds: Positive = 1.0

    def times(self, job: Job, cohort: Cohort) -> Times:
        """Draw when the clients of a round finish what; see the class."""
        layers, steps = job.costs.num_layers, job.local_steps
        draws = -np.log(cohort.uniforms("layer-time", steps * layers)) * self.mean_layer_seconds
        draws *= np.tile(job.shares[::-1], steps)
        ready = cohort.computing(draws.cumsum(axis=1).reshape(-1, steps, layers)[:, :, ::-1])
        return Times(ready, ready, ready[:, -1, 0])

    def typical_seconds(self, job: Job) -> float:
        """Return the mean time of the whole job."""
        return self.mean_layer_seconds * job.costs.num_layers * job.local_steps

    def reach(self, job: Job, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return the chances: the d-th completion is Erlang-distributed."""
        depth = theory.ExponentialDepth(self.mean_layer_seconds, deadline_seconds)
        chances = theory.reach_probability(depth=depth, num_layers=job.costs.num_layers)
        return np.tile(chances, (len(cohort.clients), 1))


@validated(frozen=True, kw_only=True, config=_STRICT)
class Physical(Devices):
    """Devices with a speed, a link and an on-off switch.

    A round of a client is: wait until it is on, receive the model, then per local step one forward pass and the
    backward pass layer by layer, and send what is finished. A step takes the median device `step_seconds`, divided
    among the forward pass and the layers by their floating-point operations. Speeds are log-normal over clients with
    deviation `speed_sigma` of the logarithm (0.8: p90/p10 ≈ 7; 1.0: ≈ 12.5) and stay with the client, unless
    `drawn="round"`; a client's own rounds vary by a log-normal factor of coefficient of variation `jitter`. Links are
    log-normal around `bandwidth_bits_per_second`, with `bandwidth_ratio` = p90/p10, the same both ways. `stragglers` of
    the clients are slower by the factor `slowdown` besides.

    `availability="on-off"` switches devices on for exponential times of median `on_seconds` and off for ones of median
    `off_seconds`, drawn afresh in each round; a device that goes off in the middle goes on where it was, and after 16
    spells stays on. With the medians measured on phones a device is on 22 % of the time; that the median phone is on
    5.5 % of the time, as was measured too, takes phones of unlike habits, or `off_seconds` = 2371.

    Defaults are published measurements: the median of three phone classes on a small CNN (588 ms a batch), and mobile
    links (42 Mb/s).
    """

    kind: Literal["physical"] = "physical"
    step_seconds: Positive = 0.588
    speed_sigma: Annotated[float, Field(ge=0)] = 0.8
    drawn: Literal["once", "round"] = "once"
    jitter: Annotated[float, Field(ge=0)] = 0.1
    bandwidth_bits_per_second: Positive = 42e6
    bandwidth_ratio: Annotated[float, Field(ge=1)] = 1.3
    stragglers: Fraction = 0.0
    slowdown: Annotated[float, Field(ge=1)] = 5.0
    availability: Literal["always", "on-off"] = "always"
    on_seconds: Positive = 138.0
    off_seconds: Positive = 476.0

    def times(self, job: Job, cohort: Cohort) -> Times:
        """Draw when the clients of a round finish what; see the class."""
        own_sigma = self._jitter_sigma
        slow = self._slowness(cohort) * np.exp(own_sigma * cohort.normals("jitter") - own_sigma**2 / 2)
        link = self._links(cohort)
        received = self._download_bytes(job) / link[:, None, None]
        ready = received + cohort.computing(slow[:, None, None] * self._computing(job))
        forwarded = received + cohort.computing(slow[:, None, None] * self._forward(job))
        conveyed = ready + _conveyed_bytes(job) / link[:, None, None]
        if self.availability == "on-off":
            ready, conveyed = self._on_the_wall(ready, cohort), self._on_the_wall(conveyed, cohort)
            received, forwarded = self._on_the_wall(received, cohort), self._on_the_wall(forwarded, cohort)
        return Times(ready, conveyed, conveyed[:, -1, 0], received=received[:, 0, 0], forwarded=forwarded[:, :, 0])

    def reach(self, job: Job, cohort: Cohort, deadline_seconds: float) -> Floats | None:
        """Return the chances: log-normal times, of a client's own rounds or of one among all. None for "on-off"."""
        if self.availability == "on-off":
            return None
        computing = self._computing(job)[0] * math.exp(-(self._jitter_sigma**2) / 2)
        transfer = (self._download_bytes(job) + _conveyed_bytes(job)[0]) / self._bytes_per_second
        if self.drawn == "once":
            return theory.log_normal_reach(
                computing_seconds=cohort.computing(self._slowness(cohort)[:, None] * computing),
                transfer_seconds=self._bytes_per_second / self._links(cohort)[:, None] * transfer,
                speed_sigma=self._jitter_sigma,
                link_sigma=0.0,
                deadline_seconds=deadline_seconds,
            )
        usual, slowed = (
            theory.log_normal_reach(
                computing_seconds=cohort.computing(np.tile(factor * computing, (len(cohort.clients), 1))),
                transfer_seconds=transfer,
                speed_sigma=math.hypot(self.speed_sigma, self._jitter_sigma),
                link_sigma=self._link_sigma,
                deadline_seconds=deadline_seconds,
            )
            for factor in (1.0, self.slowdown)
        )
        return np.asarray((1 - self.stragglers) * usual + self.stragglers * slowed, dtype=np.float64)

    def typical_seconds(self, job: Job) -> float:
        """Return the time of the whole job on the median device over the median link, switched on."""
        transfer = (self._download_bytes(job) + sum(job.costs.layer_bytes)) / self._bytes_per_second
        return transfer + float(self._computing(job).max())

    def _slowness(self, cohort: Cohort) -> Floats:
        """Return by which factor each client computes slower than the median one, but for its jitter."""
        lasting = self.drawn == "once"
        slow = np.exp(self.speed_sigma * cohort.normals("speed", lasting=lasting))
        if self.stragglers:
            slow = np.where(_straggling(cohort, self.stragglers, lasting=lasting), slow * self.slowdown, slow)
        return np.asarray(slow, dtype=np.float64)

    def _links(self, cohort: Cohort) -> Floats:
        """Return each client's bytes per second."""
        normals = cohort.normals("bandwidth", lasting=self.drawn == "once")
        return np.asarray(self._bytes_per_second * np.exp(self._link_sigma * normals), dtype=np.float64)

    @property
    def _jitter_sigma(self) -> float:
        return math.sqrt(math.log1p(self.jitter**2))

    @property
    def _link_sigma(self) -> float:
        return math.log(self.bandwidth_ratio) / (2 * _P90)

    @property
    def _bytes_per_second(self) -> float:
        return self.bandwidth_bits_per_second / 8

    def _download_bytes(self, job: Job) -> int:
        return sum(job.costs.layer_bytes)

    def _computing(self, job: Job) -> Floats:
        """Return when the median device completes each layer of each step, shape (local steps, layers)."""
        return self._in_steps(job, job.costs.forward + job.backward[::-1].cumsum()[::-1])

    def _forward(self, job: Job) -> Floats:
        """Return when the median device completes the forward pass of each step, shape (local steps, 1)."""
        return self._in_steps(job, np.array([job.costs.forward]))

    def _in_steps(self, job: Job, done: Floats) -> Floats:
        """Return when the median device has done that many operations of each step, shape (local steps, operations)."""
        whole = job.whole or job.costs
        all_layers = np.asarray(whole.backward)[::-1].cumsum()[-1]
        step = (job.costs.forward + job.backward[::-1].cumsum()[-1]) / (whole.forward + all_layers)
        share = done / (whole.forward + all_layers)
        return np.asarray(self.step_seconds * (np.arange(job.local_steps)[:, None] * step + share), dtype=np.float64)

    def _on_the_wall(self, busy: Floats, cohort: Cohort) -> Floats:
        """Stretch times of being busy by the times for which the device is off."""
        spells = 16  # more than a device goes through in any sensible round; after that it stays on
        draws = -np.log(cohort.uniforms("availability", 2 * spells + 1)) / math.log(2)
        on, off = draws[:, :spells] * self.on_seconds, draws[:, spells:-1] * self.off_seconds
        starts_off = np.exp(-draws[:, -1] * math.log(2)) < self.off_seconds / (self.on_seconds + self.off_seconds)
        off[:, 0] = np.where(starts_off, off[:, 0], 0.0)  # the wait before the first spell of being on
        begins = np.concatenate([np.zeros((len(on), 1)), on.cumsum(axis=1)[:, :-1]], axis=1)
        stretched = busy.copy()
        for spell in range(spells):
            stretched += np.where(busy > begins[:, spell, None, None], off[:, spell, None, None], 0.0)
        return stretched


AnyDevices = Annotated[UniformDepth | GradedSpeeds | ExponentialLayers | Physical, Field(discriminator="kind")]

_P90 = 1.2815515655446004  # the 90th percentile of the standard normal distribution


def _straggling(cohort: Cohort, share: float, *, lasting: bool) -> npt.NDArray[np.bool_]:
    """Say who straggles: this very share of the population for the run, or each client by chance in each round."""
    if not lasting:
        return cohort.uniforms("straggler", 1)[:, 0] < share
    return _marked(cohort.seed, cohort.population, math.floor(share * cohort.population + 0.5))[cohort.clients]


@lru_cache(maxsize=8)
def _marked(seed: int, population: int, count: int) -> npt.NDArray[np.bool_]:
    """Choose `count` of the population once for the run."""
    mask = np.zeros(population, dtype=np.bool_)
    mask[seeds.stream(seed, "straggler").permutation(population)[:count]] = True
    return mask


def _conveyed_bytes(job: Job) -> Floats:
    """Return what is sent by a client that stops at each layer of each step, shape (local steps, layers)."""
    sizes = job.upload_bytes
    conveyed = np.full((job.local_steps, len(sizes)), sizes.sum())
    conveyed[0] = sizes[::-1].cumsum()[::-1]
    return conveyed
