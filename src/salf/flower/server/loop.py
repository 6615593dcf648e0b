"""The rounds of a federation, one after another: train, evaluate, note, checkpoint."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import Result

from salf.errors import RunFolderError
from salf.flower.server.exchange import Exchange, NotEnoughNodes, PatientGrid
from salf.flower.server.federation import FlowerServer
from salf.flower.server.metrics import usable_evaluations
from salf.flower.server.record import FederationRecord
from salf.flower.server.server_state import FederationFolder
from salf.flower.server.training import log
from salf.flower.wire import from_record, to_record
from salf.participation import StarvationMonitor, describe_starvation

_REMEDY = (
    "let these nodes train on smaller batches, choose a longer deadline, or the rule salf.Memory() or, where they get "
    "there now and then, salf.InverseProbability()"
)
Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass
class Loop:
    """Plays the rounds of a federation over an exchange; nothing in it waits longer than a round may last.

    `evaluate` is called with the model before the first round and after each; `timeout` limits the evaluation by the
    nodes, in seconds, which gets as long as the round at most.
    """

    federation: FlowerServer
    exchange: Exchange
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate: Evaluate | None
    timeout: float
    folder: FederationFolder | None
    _unanswered: tuple[str, ...] = field(default=(), init=False)
    _hunger: StarvationMonitor = field(init=False)

    def __post_init__(self) -> None:
        self._hunger = StarvationMonitor(self.federation.terms.layers.names)

    def play(self, initial: ArrayRecord, num_rounds: int) -> Result:
        """Play the rounds up to `num_rounds`, after those that the folder holds; return all results."""
        with nullcontext() if self.folder is None else self.folder.held():
            return self._play(initial, num_rounds)

    def _play(self, initial: ArrayRecord, num_rounds: int) -> Result:
        result, arrays = self._restore(initial), initial
        done = self.federation.state.server.round
        if done == 0 and self.evaluate is not None:
            self._note(result.evaluate_metrics_serverapp, 0, self.evaluate(0, arrays))
        if done:
            result.arrays = arrays = self._weights()
            log.info("Going on after round %d", done)
        for number in range(done + 1, num_rounds + 1):
            log.info("[ROUND %d/%d]", number, num_rounds)
            limit, record = self._train(number, arrays, result)
            self._warn_of_starvation(number, record.clients)
            result.arrays = arrays = self._weights()
            self._evaluate(number, arrays, result, limit)
            if self.folder is not None:
                self.folder.save(self.federation.state, result, self.federation.terms.strategy, record)
        return result

    def _weights(self) -> ArrayRecord:
        """Return the global model as it is sent, which from now on is the only copy of it."""
        state = self.federation.state
        arrays = to_record(state.server.weights)
        self.federation.resume(replace(state, server=replace(state.server, weights=from_record(arrays))))
        return arrays

    def _restore(self, initial: ArrayRecord) -> Result:
        weights = from_record(initial)
        self.federation.begin(weights)
        known = None if self.folder is None else self.folder.load(self.federation.terms.strategy)
        if known is None or self.folder is None:
            return Result(arrays=initial)
        state, result = known
        shapes = [
            {name: (tensor.shape, tensor.dtype) for name, tensor in each.items()}
            for each in (weights, state.server.weights)
        ]
        if shapes[0] != shapes[1] or state.server.observed.num_layers != len(self.federation.terms.layers):
            raise RunFolderError(
                f"{self.folder.path} holds the rounds of another model, or of other layers; choose another folder"
            )
        # A checkpoint has no order of its own, but some strategies go by that of the arrays.
        ordered = {name: state.server.weights[name] for name in weights}
        self.federation.resume(replace(state, server=replace(state.server, weights=ordered)))
        return result

    def _train(self, number: int, arrays: ArrayRecord, result: Result) -> tuple[float, FederationRecord]:
        """Play one training round; return how long it may last, and its record."""
        federation, exchange = self.federation, self.exchange
        began, seconds = exchange.clock(), federation.next_deadline()
        limit = seconds + federation.terms.grace_seconds
        try:
            messages = federation.open_round(
                number,
                arrays,
                self.train_config,
                PatientGrid(exchange, began + seconds),
                seconds,
                left=lambda: max(began + seconds - exchange.clock(), 0.001),
            )
        except NotEnoughNodes as reason:
            log.warning("round %d: nobody could be asked: %s", number, reason)
            federation.open_with(number, [], seconds)
            messages = []
        sent = exchange.push(messages)
        federation.training.sent(sent)
        size = sum(len(array.data) for array in arrays.values())
        answered = set()
        for reply in exchange.replies(sent, began + limit, size):
            answered.add(reply.metadata.reply_to_message_id)
            federation.training.take(reply, exchange.clock() - began)
        for reply in exchange.sweep(self._unanswered, size):
            federation.training.late(reply)
        self._unanswered = tuple(identity for identity in sent if identity not in answered)
        record, metrics = federation.close_round(exchange.clock() - began)
        log.info("\t└──> %s", record.to_json())
        self._note(result.train_metrics_clientapp, number, metrics)
        return limit, record

    def _warn_of_starvation(self, number: int, asked: int) -> None:
        """Say which layers hardly anybody conveys, or always the same nodes, once that has become clear."""
        state = self.federation.state
        found = self._hunger.newly_starving(number, state.server.observed, asked)
        if found:
            named = [replace(one, absent=tuple(sorted(state.nodes[place] for place in one.absent))) for one in found]
            log.warning("round %d: %s", number, describe_starvation(named, _REMEDY))

    def _evaluate(self, number: int, arrays: ArrayRecord, result: Result, limit: float) -> None:
        """Let the nodes evaluate the model as the wrapped strategy wants it, then the server."""
        strategy, exchange = self.federation.terms.strategy, self.exchange
        limit = min(limit, self.timeout)
        until = exchange.clock() + limit
        try:
            grid = PatientGrid(exchange, until)
            messages = list(strategy.configure_evaluate(number, arrays, self.evaluate_config, grid))
        except NotEnoughNodes as reason:
            log.warning("round %d: nobody could be asked to evaluate: %s", number, reason)
            messages = []
        for message in messages:
            message.metadata.ttl, message.metadata.group_id = limit, str(number)
        sent = exchange.push(messages)
        replies: dict[str, Message] = {}
        for reply in exchange.replies(sent, until, reply_bytes=1):
            replies.setdefault(reply.metadata.reply_to_message_id, reply)
        if replies:
            asked = [reply for identity, reply in replies.items() if identity in sent]
            evaluated = strategy.aggregate_evaluate(number, usable_evaluations(strategy, asked))
            self._note(result.evaluate_metrics_clientapp, number, evaluated)
        if self.evaluate is not None:
            self._note(result.evaluate_metrics_serverapp, number, self.evaluate(number, arrays))

    def _note(self, metrics: dict[int, MetricRecord], number: int, record: MetricRecord | None) -> None:
        if record is not None:
            metrics[number] = record
