"""The server's one line: a strategy that wraps any other, and loses no work of the slow nodes."""

from collections.abc import Iterable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from salf.aggregation import Centre, ClippedLayers, Corrected, Rule, Weigh
from salf.errors import InvalidSetting
from salf.flower.server.client_metrics import usable_evaluations
from salf.flower.server.deadlines import Fixed, RoundDeadline
from salf.flower.server.exchange import Exchange
from salf.flower.server.federation_folder import FederationFolder
from salf.flower.server.federation_record import log
from salf.flower.server.flower_server import FlowerServer, StrategyConfig
from salf.flower.server.round_loop import Evaluate, RoundLoop
from salf.flower.wire import CountedFrom, from_record, to_record
from salf.layers import Layers


class SalfStrategy(Strategy):
    """Straggler-aware layer-wise federated learning around a Flower strategy.

    The wrapped strategy samples the nodes and configures rounds and evaluations as before. The layer-wise `rule` over
    partial replies replaces its mean over whole replies. A round ends when all sampled clients have replied, or
    `grace_seconds` after the deadline.

    Args:
        strategy: The strategy to wrap, such as `FedAvg()`.
        deadline: The deadline of each round: seconds, or `Fixed`, `DeadlineSchedule`, `Quantile` or `Adaptive`.
        layers: The layers of the model, from `salf.find_layers(model, example)`.
        rule: The aggregation rule; by default `salf.Corrected()`.
        weigh: With "examples", a client weighs in each layer by the examples that it reports for the layer, as in
            `salf.aggregate`; replies that report none are refused. The server cannot verify these numbers.
        robust: A protection against hostile clients: `ClippedLayers`, `Median` or `TrimmedMean`.
        grace_seconds: How long after the deadline replies may still arrive.
        counted_from: When a client's deadline starts. With "message", the time before its loop (starting a process,
            loading data) counts, and the clocks of nodes and server must agree. With "loop", each loop gets the whole
            deadline.
        max_change: Refuse an update in which a layer changes by more than this many times its weights, in the root mean
            square.
        whole_replies: Whether replies include the arrays of unfinished layers, for mods that compare a reply with the
            message. It is set automatically if the wrapped strategy needs it.
        folder: Where to save records and a checkpoint of every round; `start` resumes from it.
        poll_seconds: The time between two polls for replies.

    Raises:
        InvalidSetting: An argument is wrong, or the strategy cannot be wrapped; the message gives the reason.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> from salf import find_layers
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> strategy = SalfStrategy(FedAvg(), deadline=20.0, layers=find_layers(model))
    >>> strategy.config.deadline
    Fixed(deadline_seconds=20.0)
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        deadline: RoundDeadline | float,
        layers: Layers,
        rule: Rule | None = None,
        weigh: Weigh = "clients",
        robust: ClippedLayers | Centre | None = None,
        grace_seconds: float = 5.0,
        counted_from: CountedFrom = "message",
        max_change: float = 10.0,
        whole_replies: bool = False,
        folder: Path | str | None = None,
        poll_seconds: float = 0.25,
    ) -> None:
        deadline = deadline if isinstance(deadline, RoundDeadline) else Fixed(deadline)
        rule = Corrected() if rule is None else rule
        self.config = StrategyConfig(
            strategy,
            deadline,
            layers,
            rule,
            weigh,
            robust,
            grace_seconds,
            counted_from,
            max_change,
            whole_replies,
            poll_seconds,
        )
        self._folder = None if folder is None else FederationFolder(Path(folder))
        self._server = FlowerServer(self.config)
        self._deadline_seconds = 0.0

    def summary(self) -> None:
        """Log the deadline, the rule and the wrapped strategy."""
        config = self.config
        log.info("\t├──> SALF: %s, %s, %d layers", config.deadline, config.rule, len(config.layers))
        config.strategy.summary()

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
        """Run all rounds that the folder does not hold yet, and return the results of all rounds.

        Args:
            grid: The grid of Flower's server app.
            initial_arrays: The model before the first round.
            num_rounds: The number of the last round.
            timeout: The limit on the evaluation by the nodes in seconds. It also lasts at most as long as a round.
            train_config: The user's settings for training.
            evaluate_config: The user's settings for the evaluation by the nodes.
            evaluate_fn: A function that evaluates the model on the server.

        Raises:
            RunFolderError: The folder cannot be used, or belongs to another run.
        """
        log.info("Starting %s strategy:", type(self).__name__)
        self.summary()
        exchange = Exchange(grid, self.config.poll_seconds)
        configs = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        loop = RoundLoop(self._server, exchange, *configs, evaluate_fn, timeout, self._folder)
        return loop.run(initial_arrays, num_rounds)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy sample the nodes, and add the deadline to each message."""
        if server_round == 1:
            self._server.begin(from_record(arrays))
        self._deadline_seconds = self._server.next_deadline()
        return self._server.open_round(server_round, arrays, config, grid, self._deadline_seconds)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate all replies of a round at once, for a loop other than `start`.

        Args:
            server_round: The round that `configure_train` opened.
            replies: The replies, in any order.

        Raises:
            InvalidSetting: Another round is open, or none.
        """
        training = self._server.training
        if training.number != server_round:
            raise InvalidSetting(
                f"server_round is {server_round}, but round {training.number} is open; call configure_train first"
            )
        sampled = {row.node for row in training.rows}
        arrived = [(reply.metadata.reply_to_message_id, reply.metadata.src_node_id, reply) for reply in replies]
        training.sent({identity: node for identity, node, _ in arrived if node in sampled})
        for _, _, reply in arrived:
            training.take(reply, None)
        _, metrics = self._server.close_round(self._deadline_seconds)
        return to_record(self._server.state.server.weights), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy configure the evaluation."""
        return self.config.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Let the wrapped strategy average the evaluations that it can average; the others are logged."""
        return self.config.strategy.aggregate_evaluate(server_round, usable_evaluations(self.config.strategy, replies))
