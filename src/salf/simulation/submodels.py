"""Rounds of HeteroFL: clients train sub-models of several widths, which overlap in the global model."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from salf import seeds
from salf.aggregation import Aggregated, Aggregation
from salf.devices import Workload
from salf.engines import Loss, PlainEngine, Training, cross_entropy_of
from salf.errors import InvalidSetting
from salf.layers import measure_costs
from salf.methods import Submodels, SynchronousMethod
from salf.models import narrow, prefixes
from salf.simulation.federation import SimulatedFederation
from salf.simulation.server_state import ServerState
from salf.simulation.static_batchnorm import statistics
from salf.simulation.submodel_mean import Overlap
from salf.simulation.synchronous import RoundPlan, Trained

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Submodel:
    """The model of one width, and what computes its training."""

    parameters: dict[str, Tensor]
    engine: PlainEngine
    workload: Workload


@dataclass(frozen=True)
class _Group:
    """Clients, by their places in the cohort, that train the same sub-model on the same classes."""

    places: npt.NDArray[np.int64]
    submodel: _Submodel
    classes: Bools


class SubmodelTraining:
    """Every client trains the sub-model that the method gives it; `workloads` go from the narrowest to the widest.

    Clients of one width that hold the same classes are aggregated as of every method; their results are averaged
    element by element (`Overlap`). Raises `InvalidSetting` for a model that cannot be narrowed and for an engine other
    than the plain one.
    """

    def __init__(self, federation: SimulatedFederation, method: SynchronousMethod, submodels: Submodels) -> None:
        if federation.experiment.engine not in ("auto", "plain"):
            raise InvalidSetting(
                f"engine is '{federation.experiment.engine}', but clients of 'heterofl' train unlike models, which are "
                "computed one after another; choose 'auto' or 'plain'"
            )
        self._federation, self._method, self._settings = federation, method, submodels
        self._model = copy.deepcopy(federation.model).to(federation.device)
        # BatchNorm's statistics are not the clients' matter.
        self._layers = replace(
            federation.layers, sequence=tuple(replace(layer, buffers=()) for layer in federation.layers)
        )
        self._submodels = [self._build(width) for width in reversed(submodels.widths)]
        self._head = [name for name, _ in federation.model.named_parameters()][-1].rpartition(".")[0]
        self._classes = self._classes_held()
        self.workloads = tuple(submodel.workload for submodel in self._submodels)

    def train(self, state: ServerState, plan: RoundPlan) -> Trained:
        """Let the cohort train, and aggregate what it conveys."""
        federation, cohort = self._federation, plan.cohort
        tasks = federation.tasks(cohort, plan.schedule.steps)
        overlap = Overlap(state.weights)
        accepted = np.ones(len(cohort.clients), dtype=np.bool_)
        contributors = np.zeros(len(self._layers), dtype=np.int64)
        for group in self._groups(plan):
            weights = prefixes(state.weights, group.submodel.parameters)
            running = Aggregation(
                weights,
                self._layers,
                self._method.aggregation_rule,
                momentum=federation.experiment.client.momentum,
            )
            own = tasks.select(group.places)
            accepted[group.places] = group.submodel.engine.train_cohort(weights, own, running)
            total = running.sums.weights(own.num_examples)[accepted[group.places]].sum()
            result = running.finish()
            contributors += result.contributors
            overlap.add(self._moved(result), float(total), self._rows(group.classes))
        held = overlap.held()
        stayed = tuple(layer.name for layer in self._layers if layer.parameters[0] not in held)
        result = Aggregated(overlap.state(), tuple(contributors.tolist()), overflowed=stayed)
        return Trained(result, accepted, held=held)

    def complete(self, round: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the global state, before a test with BatchNorm's statistics over the clients' training examples."""
        federation = self._federation
        if not federation.is_tested(round):
            return weights
        order = seeds.stream(federation.experiment.seed, "statistics").permutation(len(federation.inputs))
        return weights | statistics(self._model, weights, federation.inputs, self._there(order))

    def _groups(self, plan: RoundPlan) -> Iterator[_Group]:
        """Yield the groups of clients that convey something, in the order of their first clients."""
        given, classes = np.asarray(plan.schedule.workloads), self._classes[plan.cohort.clients]
        members: dict[tuple[int, bytes], list[int]] = {}
        for place in np.flatnonzero(plan.schedule.steps.any(axis=1)).tolist():
            members.setdefault((int(given[place]), classes[place].tobytes()), []).append(place)
        for (workload, _), places in members.items():
            yield _Group(np.array(places), self._submodels[workload], classes[places[0]])

    def _moved(self, result: Aggregated) -> dict[str, Tensor]:
        """Return the parameters to which a group has something to say."""
        return {
            name: result.state[name]
            for layer, count in zip(self._layers, result.contributors, strict=True)
            if count and layer.name not in result.overflowed
            for name in layer.parameters
        }

    def _rows(self, classes: Bools) -> dict[str, Tensor]:
        """Return which rows of the last layer belong to some classes."""
        return {f"{self._head}.{name}": self._there(classes) for name in ("weight", "bias")}

    def _there(self, array: npt.NDArray[Any]) -> Tensor:
        """Return an array on the device that computes."""
        return torch.from_numpy(array).to(self._federation.device)

    def _classes_held(self) -> Bools:
        """Say which classes have a say in whose loss, shape (population, outputs): those it holds examples of."""
        federation = self._federation
        partition, outputs = federation.partition, federation.model.get_parameter(f"{self._head}.weight").shape[0]
        if not self._settings.mask_labels:
            return np.ones((len(partition), outputs), dtype=np.bool_)
        held = np.zeros((len(partition), outputs), dtype=np.bool_)
        owners = np.repeat(np.arange(len(partition)), partition.sizes)
        held[owners, federation.dataset.labels.numpy()[partition.order]] = True
        return held

    def _build(self, width: float) -> _Submodel:
        federation = self._federation
        model = narrow(federation.model, width, scaler=self._settings.scaler)
        costs = measure_costs(model, federation.dataset.inputs[:2].clone(), self._layers)
        client = federation.experiment.client
        training = Training(
            copy.deepcopy(model).to(federation.device),
            self._layers,
            costs,
            federation.inputs,
            federation.labels,
            client,
            client.batch_size,
            client.local_steps,
            self._masked_loss_of if self._settings.mask_labels else cross_entropy_of,
        )
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        return _Submodel(
            parameters,
            PlainEngine(training),
            Workload(costs, federation.workload.local_steps, whole=federation.workload.costs),
        )

    def _masked_loss_of(self, client: int) -> Loss:
        absent = self._there(~self._classes[client])

        def loss(scores: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(scores.masked_fill(absent, 0.0), labels)

        return loss
