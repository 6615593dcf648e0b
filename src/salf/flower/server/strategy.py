"""The server's one line: a strategy that wraps any other, and loses no work of the slow nodes."""

from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from salf.aggregation import Centre, ClippedLayers, Corrected, Rule
from salf.errors import InvalidSetting
from salf.flower.server.config import StrategyConfig
from salf.flower.server.deadlines import Fixed, RoundDeadline
from salf.flower.server.exchange import Exchange
from salf.flower.server.federation import FlowerServer
from salf.flower.server.loop import Evaluate, Loop
from salf.flower.server.metrics import usable_evaluations
from salf.flower.server.server_state import FederationFolder
from salf.flower.server.training import log
from salf.flower.wire import CountedFrom, from_record, to_record
from salf.layers import Layers


class SalfStrategy(Strategy):
    """Straggler-aware layer-wise federated learning around a Flower strategy.

    `strategy` samples the nodes, configures and evaluates as it always did; its mean over whole replies is replaced by
    the layer-wise `rule` over partial ones (by default `salf.Corrected()`). Each round has a `deadline`: seconds, or
    one of `Fixed`, `DeadlineSchedule`, `Quantile` and `Adaptive`. It ends as soon as everyone has replied, or `grace_seconds`
    after the deadline, in which the replies travel. `layers` are the model's, as `salf.find_layers` gives them.

    `counted_from="message"` counts what a node spends before its loop (starting a process, loading data) against its
    deadline; its clock must agree with the server's. `"loop"` gives each loop the whole deadline, whenever it begins.
    `robust` bounds what a hostile client can do: `ClippedLayers`, `Median` or `TrimmedMean`. `max_change` refuses an
    update whose layers change by more than so many times their weights. `whole_replies` asks for every array in every
    reply, for mods that compare it with the message; it is set by itself where a wrapped strategy needs it.

    With a `folder` every round is checkpointed, and `start` goes on after the rounds that it holds. Replies are looked
    for every `poll_seconds`. Raises `InvalidSetting` for what cannot work, with the reason.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        deadline: RoundDeadline | float,
        layers: Layers,
        rule: Rule | None = None,
        robust: ClippedLayers | Centre | None = None,
        grace_seconds: float = 5.0,
        counted_from: CountedFrom = "message",
        max_change: float = 10.0,
        whole_replies: bool = False,
        folder: Path | str | None = None,
        poll_seconds: float = 0.25,
    ) -> None:
        self.terms = StrategyConfig(
            strategy,
            deadline if isinstance(deadline, RoundDeadline) else Fixed(deadline),
            layers,
            Corrected() if rule is None else rule,
            robust,
            grace_seconds,
            counted_from,
            max_change,
            whole_replies,
            poll_seconds,
        )
        self._folder = None if folder is None else FederationFolder(Path(folder))
        self._federation = FlowerServer(self.terms)
        self._given_seconds = 0.0

    def summary(self) -> None:
        """Log what the strategy is made of."""
        terms = self.terms
        log.info("\t├──> SALF: %s, %s, %d layers", terms.deadline, terms.rule, len(terms.layers))
        terms.strategy.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Evaluate | None = None,
    ) -> Result:
        """Play the rounds up to `num_rounds` and return their results, as every Flower strategy does.

        A training round ends by its own deadline, and the evaluation by the nodes after as long a time again, or after
        `timeout` seconds if that is less. Rounds that the folder holds are not played again.
        """
        log.info("Starting %s strategy:", type(self).__name__)
        self.summary()
        loop = Loop(
            self._federation,
            Exchange(grid, self.terms.poll_seconds),
            ConfigRecord() if train_config is None else train_config,
            ConfigRecord() if evaluate_config is None else evaluate_config,
            evaluate_fn,
            timeout,
            self._folder,
        )
        return loop.play(initial_arrays, num_rounds)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy choose the nodes, and add each one's deadline to its message."""
        if server_round == 1:
            self._federation.begin(from_record(arrays))
        self._given_seconds = self._federation.next_deadline()
        return self._federation.open_round(server_round, arrays, config, grid, self._given_seconds)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate all replies of a round at once, for a loop other than `start`."""
        training = self._federation.training
        if training.number != server_round:
            raise InvalidSetting(f"round {training.number} is open, not round {server_round}")
        asked = {row.node for row in training.rows}
        arrived = [(reply.metadata.reply_to_message_id, reply.metadata.src_node_id, reply) for reply in replies]
        training.sent({identity: node for identity, node, _ in arrived if node in asked})
        for _, _, reply in arrived:
            training.take(reply, None)
        _, metrics = self._federation.close_round(self._given_seconds)
        return to_record(self._federation.state.server.weights), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy configure the evaluation."""
        return self.terms.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Let the wrapped strategy average the evaluations that can be averaged; the others are logged."""
        return self.terms.strategy.aggregate_evaluate(server_round, usable_evaluations(self.terms.strategy, replies))
