"""What chance decides about a round: its clients, the time that they take, and their batches."""

from dataclasses import dataclass, field, replace

import numpy as np

from salf import seeds
from salf.data import Partition
from salf.devices import Cohort, CohortBatch, CompletionTimes, Workload
from salf.engines import Tasks
from salf.experiment import Experiment
from salf.simulation.compatibility import draw_times
from salf.values import Floats, Ints

_PILOTS, _PILOT_ROUNDS = 32, 2**31  # how many rounds are drawn to measure speeds, and where their numbers begin
_CLIENTS_AHEAD = 512  # the draws of so many clients are made at once, of several rounds if a round has fewer


@dataclass
class _DrawnAhead:
    """The cohorts of several rounds, and what has been drawn for all of them at once."""

    cohort_batch: CohortBatch
    examples: Ints | None = None
    times: dict[Workload, CompletionTimes] = field(default_factory=dict)


class Sampler:
    """Draws cohorts, completion times and batches.

    A small draw takes hardly less time than a large one, so the draws of `rounds_ahead` rounds are made together and
    kept until the next ones are needed. Each has an address (seed, purpose, round, client), hence drawing ahead changes
    no value.

    Args:
        experiment: Its devices, clients and seed.
        partition: Which training examples each client holds.
        workload: What a client computes in a round.
        smallest_batch: The fewest examples of a reduced batch: 2 for a model that normalizes over the batch, else 1.

    Attributes:
        cohort_size: The number of clients in a round.
        rounds_ahead: The number of rounds whose draws are made together.
    """

    def __init__(
        self, experiment: Experiment, partition: Partition, workload: Workload, *, smallest_batch: int = 1
    ) -> None:
        self._experiment, self._partition, self._workload = experiment, partition, workload
        self._smallest_batch = smallest_batch
        self.cohort_size = experiment.client.cohort or experiment.data.clients
        self.rounds_ahead = max(1, _CLIENTS_AHEAD // self.cohort_size)
        self._cohorts: dict[int, Cohort] = {}
        self._ahead: _DrawnAhead | None = None

    def draw_cohort(self, round: int) -> Cohort:
        """Draw the clients of a round, counted from 1, together with those of the rounds around it."""
        if self.rounds_ahead == 1:
            return self.draw_single_cohort(round)
        if round not in self._cohorts:
            first = round - (round - 1) % self.rounds_ahead
            alone = [self.draw_single_cohort(first + later) for later in range(self.rounds_ahead)]
            self._cohorts = {cohort.round: cohort for cohort in CohortBatch(alone).cohorts}
        return self._cohorts[round]

    def draw_single_cohort(self, round: int) -> Cohort:
        """Draw the clients of one round without drawing ahead."""
        population, seed = self._experiment.data.clients, self._experiment.seed
        if self._experiment.client.cohort is None:
            return Cohort(np.arange(population), population, round, seed)
        drawn = seeds.stream(seed, "cohort", round).choice(population, self.cohort_size, replace=False)
        return Cohort(np.sort(drawn), population, round, seed)

    def times(self, workload: Workload, cohort: Cohort) -> CompletionTimes:
        """Draw when the clients of a cohort finish each layer of each local step of a workload."""
        devices, cohort_batch = self._experiment.devices, cohort.cohort_batch
        if cohort_batch is None or cohort.batch_fraction is not None:
            return draw_times(devices, workload, cohort)
        known = self._ahead_of(cohort_batch).times
        if workload not in known:
            known[workload] = draw_times(devices, workload, cohort_batch.everyone)
        return known[workload].of(cohort_batch.places(cohort.round))

    def mean_speeds(self) -> Floats:
        """Measure the speeds of the first round's clients, in workloads per second, shape (clients,).

        They are means over 32 rounds that the run never gets to.
        """
        first, devices = self.draw_cohort(1), self._experiment.devices
        pilots = (replace(first, round=_PILOT_ROUNDS + number, cohort_batch=None) for number in range(_PILOTS))
        speeds: Floats = np.mean([1 / draw_times(devices, self._workload, pilot).whole for pilot in pilots], axis=0)
        return speeds

    def to_whole_examples(self, clients: Ints, batch_fraction: Floats) -> Floats:
        """Round fractions of a batch to whole examples, but never below the smallest batch.

        Args:
            clients: The clients' numbers, shape (clients,).
            batch_fraction: The fraction of its batch that each is given, shape (clients,).
        """
        given = np.minimum(self._partition.sizes[clients], self._experiment.client.batch_size)
        least = np.minimum(given, self._smallest_batch)
        return np.asarray(np.maximum(least, np.rint(given * batch_fraction)) / given, dtype=np.float64)

    def tasks(self, cohort: Cohort, steps: Ints, proximal: float = 0.0) -> Tasks:
        """Draw the batches of a cohort, each client's from its own examples.

        Args:
            cohort: The clients; with its `batch_fraction`, batches are smaller.
            steps: How many local steps of each layer each client computes, shape (clients, layers).
            proximal: μ of the proximal term in the clients' loss.

        Returns:
            The tasks. A client with fewer examples than a batch needs uses all of them in each step.
        """
        client = self._experiment.client
        sizes = self._partition.sizes[cohort.clients]
        given = np.minimum(sizes, client.batch_size)
        if cohort.batch_fraction is not None:
            given = np.rint(given * cohort.batch_fraction).astype(np.int64)
        chosen, shape = self._examples(cohort), (-1, client.local_steps, client.batch_size)
        full = bool((given == client.batch_size).all())
        batches = chosen.reshape(shape) if full else _cut_batches(chosen, given, shape)
        return Tasks(cohort.clients, steps, batches, sizes, cohort.seed, cohort.round, proximal, full)

    def _examples(self, cohort: Cohort) -> Ints:
        """Return the examples of each client in the order in which it uses them, for batches of full size."""
        cohort_batch = cohort.cohort_batch
        if cohort_batch is None:
            return self._draw_examples(cohort)
        ahead = self._ahead_of(cohort_batch)
        if ahead.examples is None:
            ahead.examples = self._draw_examples(cohort_batch.everyone)
        return ahead.examples[cohort_batch.places(cohort.round)]

    def _draw_examples(self, cohort: Cohort) -> Ints:
        """Draw examples of each client's own, as indices of the data set, shape (clients, examples)."""
        client, partition = self._experiment.client, self._partition
        uniforms = cohort.uniforms("batch", client.batch_size * client.local_steps)
        drawn = seeds.permuted(uniforms, partition.sizes[cohort.clients])
        return np.asarray(partition.order[partition.offsets[cohort.clients][:, None] + drawn])

    def _ahead_of(self, cohort_batch: CohortBatch) -> _DrawnAhead:
        """Return what has been drawn for these cohorts; what was drawn for others is dropped."""
        if self._ahead is None or self._ahead.cohort_batch is not cohort_batch:
            self._ahead = _DrawnAhead(cohort_batch)
        return self._ahead


def _cut_batches(chosen: Ints, given: Ints, shape: tuple[int, int, int]) -> Ints:
    """Cut examples into batches, with −1 at the end of those that are not full.

    Args:
        chosen: The examples of each client, shape (clients, examples).
        given: The batch size of each client, shape (clients,).
        shape: (clients, local steps, full batch size) of the result; its first entry is not used.
    """
    _, steps, size = shape
    batches = np.full((len(given), steps, size), -1, dtype=np.int64)
    for batch in set(given.tolist()):
        same = given == batch
        batches[same, :, :batch] = chosen[same, : batch * steps].reshape(-1, steps, batch)
    return batches
