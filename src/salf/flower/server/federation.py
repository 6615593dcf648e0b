"""What the server does in a round, whoever drives it: open it, take replies, close it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from salf.aggregation import Aggregated, Aggregation, Centre, ClippedLayers, RobustAggregation
from salf.errors import InvalidSetting
from salf.flower.server.composition import release
from salf.flower.server.config import StrategyConfig
from salf.flower.server.metrics import mean_metrics
from salf.flower.server.record import FederationRecord, rejected
from salf.flower.server.server_state import FederationState
from salf.flower.server.training import Collector, TrainingRound, UpdateValidator
from salf.flower.wire import PREFIX, TrainInstructions
from salf.participation import Chances, ObservedReach
from salf.simulation import ServerState
from salf.values import Floats


class FlowerServer:
    """The server's side of a federation under `terms`: its state, and the training round that is open."""

    def __init__(self, terms: StrategyConfig) -> None:
        self.terms = terms
        self._state: FederationState | None = None
        self._training: TrainingRound | None = None
        self._asked: Message | None = None
        self._deadline_seconds = 0.0

    @property
    def state(self) -> FederationState:
        """What the rounds so far have left behind. Raises `InvalidSetting` before the first."""
        if self._state is None:
            raise InvalidSetting("no round has begun; call start, or configure_train for round 1")
        return self._state

    @property
    def training(self) -> TrainingRound:
        """The training round that is open. Raises `InvalidSetting` if none is."""
        if self._training is None:
            raise InvalidSetting("no round is open; call configure_train first")
        return self._training

    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Forget all rounds and begin with these weights. Raises `InvalidSetting` where they lack a layer."""
        layers = self.terms.layers
        missing = [name for layer in layers for name in (*layer.parameters, *layer.buffers) if name not in weights]
        if missing:
            raise InvalidSetting(
                f"initial_arrays lacks {', '.join(missing[:3])}, which the layers name; give the state dict of the "
                "model whose layers these are"
            )
        self.resume(FederationState(ServerState(0, 0.0, weights, ObservedReach(len(layers)))))

    def resume(self, state: FederationState) -> None:
        """Go on from a state."""
        self._state = state

    def next_deadline(self) -> float:
        """Return how many seconds the next round gives."""
        return self.terms.deadline.seconds(self.state.times)

    def open_round(
        self,
        number: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        seconds: float,
        left: Callable[[], float] | None = None,
    ) -> list[Message]:
        """Let the wrapped strategy choose nodes for a round of `seconds`; return their messages, which expire with it.

        `left` says how much of the round is left once they are chosen: waiting for nodes takes time.
        """
        chosen = list(self.terms.strategy.configure_train(number, arrays, config, grid))
        self.open_with(number, [message.metadata.dst_node_id for message in chosen], seconds)
        self._asked = chosen[0] if chosen else None
        remaining = seconds if left is None else left()
        whole = self.terms.asks_for_whole_replies
        order = TrainInstructions(number, remaining, self.terms.layers, self.terms.counted_from, whole=whole)
        return [self._with_order(message, order) for message in chosen]

    def open_with(self, number: int, nodes: Sequence[int], seconds: float) -> None:
        """Open a round in which these nodes are asked, perhaps none."""
        self._state, places = self.state.places([*nodes])
        terms, weights = self.terms, self.state.server.weights
        clipping = terms.robust if isinstance(terms.robust, ClippedLayers) else None
        admission = UpdateValidator(terms.layers, weights, terms.max_change, clipping)
        self._training = TrainingRound(number, nodes, admission, self._collector(places))
        self._asked, self._deadline_seconds = None, seconds

    def _collector(self, places: list[int]) -> Collector:
        terms, server = self.terms, self.state.server
        reach = server.observed.probability(places) if places else None
        if isinstance(terms.robust, Centre):
            return RobustAggregation(server.weights, terms.layers, terms.rule, terms.robust, reach=reach)
        return Aggregation(server.weights, terms.layers, terms.rule, reach=reach, clients=places, memory=server.memory)

    def _with_order(self, message: Message, order: TrainInstructions) -> Message:
        arrays, records = message.content.array_records, message.content.config_records
        if len(records) != 1 or len(arrays) != 1:
            raise InvalidSetting(
                f"{type(self.terms.strategy).__name__} sends {len(arrays)} array records and {len(records)} config "
                "records; a round's message holds one model and one configuration"
            )
        [(key, config)] = records.items()
        own = ConfigRecord(dict(config))  # each node has its own; strategies give all messages the same
        rate = self.state.upload_rates.get(message.metadata.dst_node_id)
        if rate is not None:
            size = sum(len(array.data) for array in next(iter(arrays.values())).values())
            # A rate that was observed on a bad day must not keep a node from ever training again.
            rate = max(rate, 2 * size / order.deadline_seconds)
        replace(order, upload_bytes_per_second=rate).write(own)
        content = message.content.copy()
        content[key] = own
        return Message(
            content,
            message.metadata.dst_node_id,
            message.metadata.message_type,
            ttl=order.deadline_seconds + self.terms.grace_seconds,
            group_id=str(order.round),
        )

    def close_round(self, seconds: float) -> tuple[FederationRecord, MetricRecord]:
        """End the open round, which lasted `seconds`; return its record and the clients' metrics."""
        training, before = self.training, self.state
        result = training.close()
        reported = [(row.metrics, row.num_examples) for row in training.rows if row.metrics is not None]
        metrics = mean_metrics(self.terms.strategy, reported)
        weights: Mapping[str, Tensor] = result.state
        if self._asked is not None and any(result.contributors):
            old, layers = before.server.weights, self.terms.layers
            weights, metrics = release(
                self.terms.strategy, training.number, self._asked, old, result.state, layers, metrics
            )
        _, places = before.places([row.node for row in training.rows])
        record = self._record(training, result, seconds, before.server.observed.probability(places))
        observed = before.server.observed.observe(places, training.reached())
        server = ServerState(training.number, record.time_s, weights, observed, result.memory)
        # From the loop's own time it does not follow when the reply was made; to the server it has no beginning.
        rates = training.upload_rates() if self.terms.counted_from == "message" else {}
        self._state = before.after(server, training.times(self._deadline_seconds), rates)
        self._training = self._asked = None
        return record, MetricRecord({**metrics, **_told(record)})

    def _record(self, training: TrainingRound, result: Aggregated, seconds: float, reach: Floats) -> FederationRecord:
        depths = training.reached().sum(axis=1)
        chances = Chances.of(reach, self.terms.rule.min_contributors)
        return FederationRecord(
            round=training.number,
            time_s=self.state.server.time_s + seconds,
            deadline_s=self._deadline_seconds,
            clients=len(training.rows),
            contributors=result.contributors,
            work_kept=None,
            bytes_down=len(training.rows) * sum(tensor.nbytes for tensor in self.state.server.weights.values()),
            bytes_up=sum(row.num_bytes for row in training.rows),
            rejected=rejected(training.reject_counts),
            engine="flower",
            seconds=seconds,
            depths=tuple(np.bincount(depths, minlength=len(self.terms.layers) + 1).tolist()),
            overshoot_s=training.overshoot(),
            missing=training.reject_counts["missing"],
            failed=training.reject_counts["failed"],
            late=training.reject_counts["late"],
            empty=chances.empty,
            reach=chances.mean,
            least_reach=chances.least,
        )


def _told(record: FederationRecord) -> dict[str, int | float | list[int] | list[float]]:
    """Return what Flower's metrics say of a round, beside the clients' own."""
    return {
        f"{PREFIX}contributors": list(record.contributors),
        f"{PREFIX}depths": list(record.depths),
        f"{PREFIX}deadline-s": record.deadline_s or 0.0,
        f"{PREFIX}seconds": record.seconds,
        f"{PREFIX}overshoot-s": record.overshoot_s or 0.0,
        f"{PREFIX}rejected": record.rejected,
        f"{PREFIX}missing": record.missing,
        f"{PREFIX}failed": record.failed,
        f"{PREFIX}late": record.late,
    }
