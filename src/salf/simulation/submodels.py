"""Rounds in which clients train sub-models of several widths, which overlap in the global model."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from salf.aggregation import Aggregated, Aggregation
from salf.devices import Workload
from salf.engines import Loss, PlainEngine, Tasks, cross_entropy_of
from salf.errors import InvalidSetting
from salf.layers import measure_costs
from salf.methods import Submodels, SynchronousMethod
from salf.models import narrow, prefixes
from salf.simulation.federation import SimulatedFederation
from salf.simulation.server_state import ServerState
from salf.simulation.synchronous import CohortUpdate, RoundPlan, moved_parameters
from salf.values import Ints

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Submodel:
    """The parameters of one width, what computes their training, and what a client computes in a round."""

    parameters: dict[str, Tensor]
    engine: PlainEngine
    workload: Workload


class SubmodelTraining:
    """Every client trains the sub-model that the method gives it.

    Clients with the same width and the same classes are aggregated by the method's rule. The results of these groups
    are averaged element by element, see `SubmodelMean`.

    Args:
        federation: The set-up.
        method: The method.
        submodels: The widths of the sub-models, and how they train.

    Attributes:
        workloads: What a client computes, from the narrowest sub-model to the widest.

    Raises:
        InvalidSetting: The model cannot be narrowed, or the experiment names an engine other than the plain one.
    """

    def __init__(self, federation: SimulatedFederation, method: SynchronousMethod, submodels: Submodels) -> None:
        if federation.experiment.engine not in ("auto", "plain"):
            raise InvalidSetting(
                f"engine is '{federation.experiment.engine}', but clients of '{method.name}' train different models, "
                "one client after another; choose 'auto' or 'plain'"
            )
        self._federation, self._method, self._settings = federation, method, submodels
        # Clients send no BatchNorm statistics.
        bare = tuple(replace(layer, buffers=()) for layer in federation.layers)
        self._layers = replace(federation.layers, sequence=bare)
        self._submodels = [self._build(width) for width in reversed(submodels.widths)]
        self._head = [name for name, _ in federation.model.named_parameters()][-1].rpartition(".")[0]
        self._classes = self._find_classes()
        self.workloads = tuple(submodel.workload for submodel in self._submodels)

    def train(self, state: ServerState, plan: RoundPlan) -> CohortUpdate:
        """Train a cohort from the weights of a state, and aggregate what it sends."""
        tasks = self._federation.sampler.tasks(plan.cohort, plan.schedule.steps)
        mean = SubmodelMean(state.weights)
        accepted = np.ones(len(plan.cohort.clients), dtype=np.bool_)
        contributors = np.zeros(len(self._layers), dtype=np.int64)
        for places, submodel, classes in self._groups(plan):
            result, accepted[places], weight = self._train_group(submodel, state, tasks.select(places))
            contributors += result.contributors
            moved = {name: result.state[name] for name in moved_parameters(self._layers, result)}
            rows = self._on_device(classes)
            mean.add(moved, weight, {f"{self._head}.weight": rows, f"{self._head}.bias": rows})
        held = mean.held()
        stayed = tuple(layer.name for layer in self._layers if layer.parameters[0] not in held)
        result = Aggregated(mean.state(), tuple(contributors.tolist()), overflowed=stayed)
        return CohortUpdate(result, accepted, held=held)

    def _train_group(self, submodel: _Submodel, state: ServerState, tasks: Tasks) -> tuple[Aggregated, Bools, float]:
        """Return a group's aggregate, whose updates were accepted, and the total weight of those clients."""
        weights = prefixes(state.weights, submodel.parameters)
        momentum = self._federation.experiment.client.momentum
        running = Aggregation(weights, self._layers, self._method.aggregation_rule, momentum=momentum)
        accepted = submodel.engine.train_cohort(weights, tasks, running)
        weight = float(running.sums.weights(tasks.num_examples)[accepted].sum())
        return running.finish(), accepted, weight

    def _groups(self, plan: RoundPlan) -> Iterator[tuple[Ints, _Submodel, Bools]]:
        """Yield the groups of clients that send anything, in the order of their first clients.

        Yields:
            The clients' places in the cohort, their sub-model, and their classes, shape (outputs,).
        """
        given, classes = np.asarray(plan.schedule.workloads), self._classes[plan.cohort.clients]
        members: dict[tuple[int, bytes], list[int]] = {}
        for place in np.flatnonzero(plan.schedule.steps.any(axis=1)).tolist():
            members.setdefault((int(given[place]), classes[place].tobytes()), []).append(place)
        for (workload, _), places in members.items():
            yield np.array(places), self._submodels[workload], classes[places[0]]

    def _on_device(self, classes: Bools) -> Tensor:
        return torch.from_numpy(classes).to(self._federation.device)

    def _find_classes(self) -> Bools:
        """Return which classes count in each client's loss, shape (population, outputs): those of its examples."""
        partition, outputs = self._federation.partition, self._federation.model.get_parameter(f"{self._head}.weight")
        counted = np.full((len(partition), len(outputs)), not self._settings.mask_labels)
        owners = np.repeat(np.arange(len(partition)), partition.sizes)
        counted[owners, self._federation.dataset.labels.numpy()[partition.order]] = True
        return counted

    def _build(self, width: float) -> _Submodel:
        federation = self._federation
        model = narrow(federation.model, width, scaler=self._settings.scaler)
        costs = measure_costs(model, federation.dataset.inputs[:2].clone(), self._layers)
        on_device = copy.deepcopy(model).to(federation.device)
        loss_of = self._masked_loss_of if self._settings.mask_labels else cross_entropy_of
        training = replace(federation.training, model=on_device, layers=self._layers, costs=costs, loss_of=loss_of)
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        workload = Workload(costs, federation.workload.local_steps, whole=federation.workload.costs)
        return _Submodel(parameters, PlainEngine(training), workload)

    def _masked_loss_of(self, client: int) -> Loss:
        """Return the loss of a client, in which the scores of absent classes are 0."""
        absent = self._on_device(~self._classes[client])
        return lambda scores, labels: nn.functional.cross_entropy(scores.masked_fill(absent, 0.0), labels)


class SubmodelMean:
    """The new global state, from the results of groups of clients with one sub-model each.

    A sub-model holds the first rows, columns, … of a parameter: a prefix in every dimension. Each element becomes
    Σ_g A_g w_g / Σ_g A_g over the groups g that hold it, with w_g its mean in the group and A_g the sum of the weights
    of the group's clients. This is its mean over all clients that hold it (HeteroFL, arXiv 2010.01264). An element that
    no group holds stays.

    Sums have double precision, so the mean of a single group in single precision stays exact to the last bit.

    Args:
        state: The global state dict before the round.

    >>> mean = SubmodelMean({"w": torch.zeros(3)})
    >>> mean.add({"w": torch.tensor([1.0, 1.0])}, weight=3.0)
    >>> mean.add({"w": torch.tensor([5.0])}, weight=1.0)
    >>> mean.state()["w"].tolist(), mean.held()["w"].tolist()
    ([2.0, 1.0, 0.0], [True, True, False])
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, part: Mapping[str, Tensor], weight: float, rows: Mapping[str, Tensor] | None = None) -> None:
        """Add the result of a group.

        Args:
            part: The group's mean of each parameter that it has trained.
            weight: The total weight of its clients, greater than 0.
            rows: Which rows of a parameter the group holds, as booleans, by parameter; all of them where it is missing.
        """
        for name, values in part.items():
            weights = torch.full_like(values, weight, dtype=torch.float64)
            if rows is not None and name in rows:
                weights[~rows[name]] = 0.0
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(self._state[name], dtype=torch.float64)
                self._weights[name] = torch.zeros_like(self._sums[name])
            region = tuple(map(slice, values.shape))
            self._sums[name][region] += weights * values
            self._weights[name][region] += weights

    def state(self) -> dict[str, Tensor]:
        """Return the new global state dict; elements that no group holds are copies of the old ones."""
        new = {name: old.clone() for name, old in self._state.items()}
        for name, held in self.held().items():
            new[name][held] = (self._sums[name][held] / self._weights[name][held]).to(new[name].dtype)
        return new

    def held(self) -> dict[str, Tensor]:
        """Return which elements some group holds, as booleans, for each parameter that was added."""
        return {name: weights > 0 for name, weights in self._weights.items()}
