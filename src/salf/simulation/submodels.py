"""Rounds in which clients train sub-models of several widths, which overlap in the global model."""

import copy
from collections.abc import Iterator
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
from salf.simulation.sampler import Sampler
from salf.simulation.server_state import ServerState
from salf.simulation.submodel_mean import SubmodelMean
from salf.simulation.synchronous import CohortUpdate, RoundPlan, moved_parameters
from salf.values import Ints

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Submodel:
    """The parameters of one width, what computes their training, and what a client computes in a round."""

    parameters: dict[str, Tensor]
    engine: PlainEngine
    workload: Workload


@dataclass(frozen=True)
class _Group:
    """Clients, by their places in the cohort, that train the same sub-model on the same classes, shape (outputs,)."""

    places: Ints
    submodel: _Submodel
    classes: Bools


class SubmodelTraining:
    """Every client trains the sub-model that the method gives it.

    Clients with the same width and the same classes are aggregated by the method's rule. The results of these groups
    are averaged element by element, see `SubmodelMean`.

    Args:
        federation: The set-up.
        sampler: Draws the batches.
        method: The method.
        submodels: The widths of the sub-models, and how they train.

    Attributes:
        workloads: What a client computes, from the narrowest sub-model to the widest.

    Raises:
        InvalidSetting: The model cannot be narrowed, or the experiment names an engine other than the plain one.
    """

    def __init__(
        self, federation: SimulatedFederation, sampler: Sampler, method: SynchronousMethod, submodels: Submodels
    ) -> None:
        if federation.experiment.engine not in ("auto", "plain"):
            name, engine = federation.experiment.method.name, federation.experiment.engine
            raise InvalidSetting(
                f"engine is '{engine}', but clients of '{name}' train different models, one client after another; "
                "choose 'auto' or 'plain'"
            )
        self._federation, self._sampler, self._method, self._settings = federation, sampler, method, submodels
        # Clients send no BatchNorm statistics.
        bare = tuple(replace(layer, buffers=()) for layer in federation.layers)
        self._layers = replace(federation.layers, sequence=bare)
        self._submodels = [self._build(width) for width in reversed(submodels.widths)]
        self._head = [name for name, _ in federation.model.named_parameters()][-1].rpartition(".")[0]
        self._classes = self._find_classes()
        self.workloads = tuple(submodel.workload for submodel in self._submodels)

    def train(self, state: ServerState, plan: RoundPlan) -> CohortUpdate:
        """Train a cohort from the weights of a state, and aggregate what it sends."""
        tasks = self._sampler.tasks(plan.cohort, plan.schedule.steps)
        mean = SubmodelMean(state.weights)
        accepted = np.ones(len(plan.cohort.clients), dtype=np.bool_)
        contributors = np.zeros(len(self._layers), dtype=np.int64)
        for group in self._groups(plan):
            result, accepted[group.places], weight = self._train_group(group, state, tasks.select(group.places))
            contributors += result.contributors
            moved = {name: result.state[name] for name in moved_parameters(self._layers, result)}
            mean.add(moved, weight, self._rows(group.classes))
        held = mean.held()
        stayed = tuple(layer.name for layer in self._layers if layer.parameters[0] not in held)
        result = Aggregated(mean.state(), tuple(contributors.tolist()), overflowed=stayed)
        return CohortUpdate(result, accepted, held=held)

    def _train_group(self, group: _Group, state: ServerState, tasks: Tasks) -> tuple[Aggregated, Bools, float]:
        """Return a group's aggregate, whose updates were accepted, and the total weight of those clients."""
        weights = prefixes(state.weights, group.submodel.parameters)
        momentum = self._federation.experiment.client.momentum
        running = Aggregation(weights, self._layers, self._method.aggregation_rule, momentum=momentum)
        accepted = group.submodel.engine.train_cohort(weights, tasks, running)
        weight = float(running.sums.weights(tasks.num_examples)[accepted].sum())
        return running.finish(), accepted, weight

    def _groups(self, plan: RoundPlan) -> Iterator[_Group]:
        """Yield the groups of clients that send anything, in the order of their first clients."""
        given, classes = np.asarray(plan.schedule.workloads), self._classes[plan.cohort.clients]
        members: dict[tuple[int, bytes], list[int]] = {}
        for place in np.flatnonzero(plan.schedule.steps.any(axis=1)).tolist():
            members.setdefault((int(given[place]), classes[place].tobytes()), []).append(place)
        for (workload, _), places in members.items():
            yield _Group(np.array(places), self._submodels[workload], classes[places[0]])

    def _rows(self, classes: Bools) -> dict[str, Tensor]:
        """Return which rows of the last layer belong to some classes."""
        return {f"{self._head}.{name}": self._on_device(classes) for name in ("weight", "bias")}

    def _on_device(self, classes: Bools) -> Tensor:
        return torch.from_numpy(classes).to(self._federation.device)

    def _find_classes(self) -> Bools:
        """Return which classes count in each client's loss, shape (population, outputs): those of its examples."""
        partition, outputs = self._federation.partition, self._federation.model.get_parameter(f"{self._head}.weight")
        if not self._settings.mask_labels:
            return np.ones((len(partition), len(outputs)), dtype=np.bool_)
        held = np.zeros((len(partition), len(outputs)), dtype=np.bool_)
        owners = np.repeat(np.arange(len(partition)), partition.sizes)
        held[owners, self._federation.dataset.labels.numpy()[partition.order]] = True
        return held

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

        def loss(scores: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(scores.masked_fill(absent, 0.0), labels)

        return loss
