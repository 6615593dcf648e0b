"""The rounds of a federation, one after another: train, evaluate, record, save."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from salf.errors import RunFolderError
from salf.flower.server.client_metrics import usable_evaluations
from salf.flower.server.exchange import Exchange, NotEnoughNodes, PatientGrid
from salf.flower.server.federation_folder import FederationFolder
from salf.flower.server.federation_record import FederationRecord, log
from salf.flower.server.flower_server import FlowerServer
from salf.flower.wire import from_record, size_of, to_record
from salf.participation import StarvationMonitor, describe_starvation

_REMEDY = (
    "let these nodes train on smaller batches, choose a longer deadline, or the rule salf.Memory(); if they finish the "
    "layers now and then, salf.InverseProbability() helps too"
)
Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass
class RoundLoop:
    """The loop of `SalfStrategy.start`; no step of it lasts longer than the round allows.

    Args:
        server: The server of the federation.
        exchange: What delivers messages and replies.
        train_config: The user's settings for training.
        evaluate_config: The user's settings for the evaluation by the nodes.
        evaluate: A function that evaluates the model before the first round and after each; None for no evaluation.
        timeout: The limit on the evaluation by the nodes in seconds, which is also limited to the length of a round.
        folder: Where to save each round; None to save nothing.
    """

    server: FlowerServer
    exchange: Exchange
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate: Evaluate | None
    timeout: float
    folder: FederationFolder | None
    _unanswered: tuple[str, ...] = field(default=(), init=False)
    _monitor: StarvationMonitor = field(init=False)

    def __post_init__(self) -> None:
        self._monitor = StarvationMonitor(self.server.config.layers.names)

    def run(self, initial: ArrayRecord, num_rounds: int) -> Result:
        """Run all rounds that the folder does not hold yet, and return the results of all rounds.

        Args:
            initial: The model before the first round.
            num_rounds: The number of the last round.

        Raises:
            RunFolderError: The folder cannot be used, or belongs to another run.
        """
        with nullcontext() if self.folder is None else self.folder.held():
            return self._run(initial, num_rounds)

    def _run(self, initial: ArrayRecord, num_rounds: int) -> Result:
        result, arrays = self._restore(initial), initial
        done = self.server.state.server.round
        if done:
            result.arrays = arrays = self._global_model()
            log.info("Resuming after round %d", done)
        elif self.evaluate is not None:
            _store(result.evaluate_metrics_serverapp, 0, self.evaluate(0, arrays))
        for number in range(done + 1, num_rounds + 1):
            log.info("[ROUND %d/%d]", number, num_rounds)
            limit, record = self._train(number, arrays, result)
            self._warn_of_starvation(number, record.clients)
            result.arrays = arrays = self._global_model()
            self._evaluate(number, arrays, result, limit)
            if self.folder is not None:
                self.folder.save(self.server.state, result, self.server.config.strategy, record)
        return result

    def _global_model(self) -> ArrayRecord:
        """Return the global model as it is sent, and make the server use the same memory."""
        arrays = to_record(self.server.state.server.weights)
        state = self.server.state
        self.server.resume(replace(state, server=replace(state.server, weights=from_record(arrays))))
        return arrays

    def _restore(self, initial: ArrayRecord) -> Result:
        """Begin the run, or continue the one in the folder; return the results so far."""
        weights = from_record(initial)
        self.server.begin(weights)
        saved = None if self.folder is None else self.folder.load(self.server.config.strategy)
        if saved is None or self.folder is None:
            return Result(arrays=initial)
        state, result = saved
        known = state.server.weights
        shapes, known_shapes = ({name: (t.shape, t.dtype) for name, t in each.items()} for each in (weights, known))
        if shapes != known_shapes or state.server.observed.num_layers != len(self.server.config.layers):
            raise RunFolderError(
                f"{self.folder.path} holds the rounds of another model, or of other layers; choose another folder"
            )
        # A checkpoint has no order of its own, but some strategies depend on the order of the arrays.
        ordered = {name: known[name] for name in weights}
        self.server.resume(replace(state, server=replace(state.server, weights=ordered)))
        return result

    def _train(self, number: int, arrays: ArrayRecord, result: Result) -> tuple[float, FederationRecord]:
        """Run one training round; return its longest length in seconds, and its record."""
        server, exchange = self.server, self.exchange
        began, seconds = exchange.clock(), server.next_deadline()
        limit = seconds + server.config.grace_seconds
        sent = exchange.push(self._open_round(number, arrays, began, seconds))
        server.training.sent(sent)
        size, answered = size_of(arrays), set()
        for reply in exchange.replies(sent, began + limit, size):
            answered.add(reply.metadata.reply_to_message_id)
            server.training.take(reply, exchange.clock() - began)
        for reply in exchange.sweep(self._unanswered, size):
            server.training.late(reply)
        self._unanswered = tuple(identity for identity in sent if identity not in answered)
        record, metrics = server.close_round(exchange.clock() - began)
        log.info("\t└──> %s", record.to_json())
        _store(result.train_metrics_clientapp, number, metrics)
        return limit, record

    def _open_round(self, number: int, arrays: ArrayRecord, began: float, seconds: float) -> list[Message]:
        """Open a round and return its messages; without enough nodes the round has no client."""
        until = began + seconds
        grid = cast("Grid", PatientGrid(self.exchange, until))

        def remaining() -> float:
            return max(until - self.exchange.clock(), 0.001)

        try:
            return self.server.open_round(number, arrays, self.train_config, grid, seconds, remaining)
        except NotEnoughNodes as reason:
            log.warning("round %d: too few nodes to train: %s", number, reason)
            self.server.open_with(number, [], seconds)
            return []

    def _warn_of_starvation(self, number: int, sampled: int) -> None:
        """Log the layers that hardly any client finishes, or always the same nodes, once this is certain."""
        state = self.server.state
        found = self._monitor.newly_starving(number, state.server.observed, sampled)
        if found:
            named = [replace(one, absent=tuple(sorted(state.nodes[index] for index in one.absent))) for one in found]
            log.warning("round %d: %s", number, describe_starvation(named, _REMEDY))

    def _evaluate(self, number: int, arrays: ArrayRecord, result: Result, limit: float) -> None:
        """Let the nodes evaluate the model if the wrapped strategy wants that, then the server."""
        strategy, exchange = self.server.config.strategy, self.exchange
        limit = min(limit, self.timeout)
        until = exchange.clock() + limit
        sent = exchange.push(self._evaluation_messages(number, arrays, limit, until))
        replies: dict[str, Message] = {}
        for reply in exchange.replies(sent, until, reply_bytes=1):
            replies.setdefault(reply.metadata.reply_to_message_id, reply)
        if replies:
            expected = [reply for identity, reply in replies.items() if identity in sent]
            evaluated = strategy.aggregate_evaluate(number, usable_evaluations(strategy, expected))
            _store(result.evaluate_metrics_clientapp, number, evaluated)
        if self.evaluate is not None:
            _store(result.evaluate_metrics_serverapp, number, self.evaluate(number, arrays))

    def _evaluation_messages(self, number: int, arrays: ArrayRecord, limit: float, until: float) -> list[Message]:
        """Return the messages of an evaluation by the nodes, which expire with it; none without enough nodes."""
        strategy, grid = self.server.config.strategy, cast("Grid", PatientGrid(self.exchange, until))
        try:
            messages = list(strategy.configure_evaluate(number, arrays, self.evaluate_config, grid))
        except NotEnoughNodes as reason:
            log.warning("round %d: too few nodes to evaluate: %s", number, reason)
            return []
        for message in messages:
            message.metadata.ttl, message.metadata.group_id = limit, str(number)
        return messages


def _store(metrics: dict[int, MetricRecord], number: int, record: MetricRecord | None) -> None:
    if record is not None:
        metrics[number] = record
