"""What the server does in a round, independent of the loop that drives it: open it, take replies, close it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from salf.aggregation import (
    Aggregated,
    Aggregation,
    Centre,
    ClippedLayers,
    RobustAggregation,
    Rule,
    Weigh,
    check_rule,
    check_weigh,
)
from salf.errors import InvalidSetting, check_positive, check_type, shown
from salf.flower.server.client_metrics import mean_metrics
from salf.flower.server.composition import AggregatedRound, check_composition, needs_whole_replies
from salf.flower.server.deadlines import RoundDeadline
from salf.flower.server.federation_record import FederationRecord, FederationState, count_refused
from salf.flower.server.training_round import TrainingRound, UpdateSum, UpdateValidator
from salf.flower.wire import PREFIX, CountedFrom, TrainInstructions, size_of
from salf.layers import Layers
from salf.participation import Chances, ObservedReach
from salf.simulation import ServerState
from salf.values import Floats


@dataclass(frozen=True)
class StrategyConfig:
    """The arguments of `SalfStrategy`, which describes them.

    Raises:
        InvalidSetting: An argument has a wrong type or value, or the strategy cannot be wrapped.
    """

    strategy: Strategy
    deadline: RoundDeadline
    layers: Layers
    rule: Rule
    weigh: Weigh
    robust: ClippedLayers | Centre | None
    grace_seconds: float
    counted_from: CountedFrom
    max_change: float
    whole_replies: bool
    poll_seconds: float

    def __post_init__(self) -> None:
        check_type("layers", self.layers, Layers, "salf.find_layers(model, example)")
        check_type("rule", self.rule, Rule, "a rule, such as salf.Corrected()")
        robust = (ClippedLayers, Centre, type(None))
        check_type("robust", self.robust, robust, "ClippedLayers(max_norm), Median() or TrimmedMean()")
        if self.counted_from not in ("message", "loop"):
            raise InvalidSetting(f"counted_from is {shown(self.counted_from)}; choose 'message' or 'loop'")
        check_positive("grace_seconds", self.grace_seconds)
        check_positive("max_change", self.max_change, finite=False)
        check_positive("poll_seconds", self.poll_seconds)
        check_weigh(self.weigh)
        check_composition(self.strategy, self.rule, self.robust, self.weigh)
        if isinstance(self.robust, Centre):
            check_rule(self.rule, self.robust, self.weigh)

    @property
    def needs_whole_replies(self) -> bool:
        """Whether a reply includes every array, those of unfinished layers unchanged."""
        return self.whole_replies or needs_whole_replies(self.strategy)

    @property
    def clipping(self) -> ClippedLayers | None:
        """The bound on the norm of each client's layers, if there is one."""
        return self.robust if isinstance(self.robust, ClippedLayers) else None


class FlowerServer:
    """The server of a federation: its state, and the training round that is open.

    Args:
        config: What the owner of the federation decided.
    """

    def __init__(self, config: StrategyConfig) -> None:
        self.config = config
        self._state: FederationState | None = None
        self._training: TrainingRound | None = None
        self._message: Message | None = None
        self._deadline_seconds = 0.0

    @property
    def state(self) -> FederationState:
        """The state after the last round. Raises `InvalidSetting` before the first."""
        if self._state is None:
            raise InvalidSetting("no round has begun; call start, or configure_train for round 1")
        return self._state

    @property
    def training(self) -> TrainingRound:
        """The training round that is open. Raises `InvalidSetting` if there is none."""
        if self._training is None:
            raise InvalidSetting("no round is open; call configure_train first")
        return self._training

    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Start a new run with a global model. Raises `InvalidSetting` if the model lacks a layer."""
        layers = self.config.layers
        missing = [name for layer in layers for name in (*layer.parameters, *layer.buffers) if name not in weights]
        if missing:
            raise InvalidSetting(
                f"initial_arrays lacks {', '.join(missing[:3])}, which the layers name; pass the state dict of the "
                "model whose layers these are"
            )
        self.resume(FederationState(ServerState(0, 0.0, weights, ObservedReach(len(layers)))))

    def resume(self, state: FederationState) -> None:
        """Continue from a state."""
        self._state = state

    def next_deadline(self) -> float:
        """Return the deadline of the next round in seconds."""
        return self.config.deadline.seconds(self.state.times)

    def open_round(
        self,
        number: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        seconds: float,
        remaining: Callable[[], float] | None = None,
    ) -> list[Message]:
        """Open a round, and return the messages to the nodes that the wrapped strategy samples.

        Args:
            number: The round's number, from 1.
            arrays: The global model.
            config: The user's settings for the clients.
            grid: The grid on which the strategy looks for nodes.
            seconds: The deadline of the round.
            remaining: Returns how much of the deadline remains after the sampling, which may wait for nodes.
        """
        messages = list(self.config.strategy.configure_train(number, arrays, config, grid))
        self.open_with(number, [message.metadata.dst_node_id for message in messages], seconds)
        self._message = messages[0] if messages else None
        left = seconds if remaining is None else remaining()
        layers, counted_from = self.config.layers, self.config.counted_from
        instructions = TrainInstructions(number, left, layers, counted_from, whole=self.config.needs_whole_replies)
        return [self._with_instructions(message, instructions) for message in messages]

    def open_with(self, number: int, nodes: Sequence[int], seconds: float) -> None:
        """Open a round with given nodes, possibly none.

        Args:
            number: The round's number, from 1.
            nodes: The ids of the sampled nodes.
            seconds: The deadline of the round.
        """
        self._state, positions = self.state.with_positions(nodes)
        config, weights = self.config, self.state.server.weights
        validator = UpdateValidator(config.layers, weights, config.max_change, config.clipping)
        self._training = TrainingRound(number, nodes, validator, self._update_sum(positions))
        self._message, self._deadline_seconds = None, seconds

    def _update_sum(self, positions: list[int]) -> UpdateSum:
        """Return an empty sum for the clients at some positions in the state's nodes."""
        server, layers, rule, weigh = self.state.server, self.config.layers, self.config.rule, self.config.weigh
        reach = server.observed.probability(positions) if positions else None
        if isinstance(self.config.robust, Centre):
            return RobustAggregation(server.weights, layers, rule, self.config.robust, reach=reach)
        known = server.memory
        return Aggregation(server.weights, layers, rule, reach=reach, clients=positions, memory=known, weigh=weigh)

    def _with_instructions(self, message: Message, instructions: TrainInstructions) -> Message:
        """Return the strategy's message with a node's own instructions, expiring with the round."""
        arrays, records = message.content.array_records, message.content.config_records
        if len(records) != 1 or len(arrays) != 1:
            raise InvalidSetting(
                f"{type(self.config.strategy).__name__} sends {len(arrays)} array records and {len(records)} config "
                "records in a message; use a strategy that sends one model and one configuration"
            )
        [(key, config)] = records.items()
        own = ConfigRecord(dict(config))  # a strategy gives all messages the same one
        rate = self.state.upload_rates.get(message.metadata.dst_node_id)
        if rate is not None:
            # A low rate that was observed once must not keep a node from training in all further rounds.
            rate = max(rate, 2 * size_of(next(iter(arrays.values()))) / instructions.deadline_seconds)
        replace(instructions, upload_bytes_per_second=rate).write(own)
        content = message.content.copy()
        content[key] = own
        metadata = message.metadata
        expires = instructions.deadline_seconds + self.config.grace_seconds
        group = str(instructions.round)
        return Message(content, metadata.dst_node_id, metadata.message_type, ttl=expires, group_id=group)

    def close_round(self, seconds: float) -> tuple[FederationRecord, MetricRecord]:
        """End the open round, and return its record and its metrics.

        Args:
            seconds: How long the round lasted.
        """
        training, before = self.training, self.state
        result = training.close()
        weights, metrics = self._after_strategy(training, result)
        _, positions = before.with_positions(row.node for row in training.rows)
        record = self._record(training, result, seconds, before.server.observed.probability(positions))
        observed = before.server.observed.observe(positions, training.reached())
        server = ServerState(training.number, record.time_s, weights, observed, result.memory)
        # A time that starts with the loop does not say when the reply was sent.
        rates = training.upload_rates() if self.config.counted_from == "message" else {}
        self._state = before.after(server, training.times(self._deadline_seconds), rates)
        self._training = self._message = None
        return record, MetricRecord({**metrics, **_round_metrics(record)})

    def _after_strategy(self, training: TrainingRound, result: Aggregated) -> tuple[Mapping[str, Tensor], MetricRecord]:
        """Let the wrapped strategy do its part; return the new global model and the clients' metrics."""
        strategy = self.config.strategy
        # A client that has trained no layer may report the mean loss of no batch.
        reported = [
            (row.metrics, row.num_examples)
            for row in training.rows
            if row.metrics is not None and row.reached is not None and row.reached.any()
        ]
        metrics = mean_metrics(strategy, reported)
        if self._message is None or not any(result.contributors):
            return result.state, metrics
        before = self.state.server.weights
        aggregated = AggregatedRound(training.number, self._message, before, result.state, self.config.layers, metrics)
        return aggregated.finish(strategy)

    def _record(self, training: TrainingRound, result: Aggregated, seconds: float, reach: Floats) -> FederationRecord:
        """Return the record of a round.

        Args:
            training: The round.
            result: The layer-wise mean.
            seconds: How long the round lasted.
            reach: How likely each client was to finish each layer, shape (clients, layers).
        """
        depths = training.reached().sum(axis=1)
        chances = Chances.of(reach, self.config.rule.min_contributors)
        return FederationRecord(
            round=training.number,
            time_s=self.state.server.time_s + seconds,
            deadline_s=self._deadline_seconds,
            clients=len(training.rows),
            contributors=result.contributors,
            work_kept=None,
            bytes_down=len(training.rows) * sum(tensor.nbytes for tensor in self.state.server.weights.values()),
            bytes_up=sum(row.num_bytes for row in training.rows),
            rejected=count_refused(training.reject_counts),
            engine="flower",
            seconds=seconds,
            depths=tuple(np.bincount(depths, minlength=len(self.config.layers) + 1).tolist()),
            overshoot_s=training.overshoot(),
            missing=training.reject_counts["missing"],
            failed=training.reject_counts["failed"],
            late=training.reject_counts["late"],
            empty=chances.empty,
            reach=chances.mean,
            least_reach=chances.least,
        )


def _round_metrics(record: FederationRecord) -> dict[str, int | float | list[int] | list[float]]:
    """Return the metrics of a round that Flower shows beside the clients' own."""
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
