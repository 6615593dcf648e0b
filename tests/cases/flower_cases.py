"""A grid in memory with a simulated clock, and clients that send what a test wants."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", RAY_USAGE_STATS_ENABLED="0")

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

from salf.flower.server.exchange import Exchange
from salf.flower.server.federation_folder import FederationFolder
from salf.flower.server.flower_server import FlowerServer
from salf.flower.server.round_loop import Evaluate, RoundLoop
from salf.flower.server.strategy import SalfStrategy
from salf.flower.wire import ClientReport, TrainInstructions, write_reply
from salf.layers import Layers, find_layers
from salf.update import Update

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # messages can be made only in a run

# What a node does with a message: its replies, each with the seconds after which it comes.
Node = Callable[[Message], Iterable[tuple[float, Message]]]


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += max(seconds, 1e-6)


@dataclass
class MemoryGrid(Grid):
    """Delivers messages at once, and replies when their time has come."""

    nodes: dict[int, Node]
    clock: Clock = field(default_factory=Clock)
    sent: list[Message] = field(default_factory=list)
    pulls: int = 0
    _due: dict[str, list[tuple[float, Message]]] = field(default_factory=dict)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identities = []
        for message in messages:
            identity = f"message-{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = identity
            self.sent.append(message)
            identities.append(identity)
            node = self.nodes.get(message.metadata.dst_node_id, _silent)
            self._due[identity] = [(self.clock() + after, reply) for after, reply in node(message)]
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.pulls += 1
        arrived = []
        for identity in message_ids:
            waiting = self._due.get(identity, [])
            arrived += [reply for due, reply in waiting if due <= self.clock()]
            self._due[identity] = [(due, reply) for due, reply in waiting if due > self.clock()]
        return arrived

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> object:  # type: ignore[override]
        raise NotImplementedError

    def create_message(self, *arguments: object, **named: object) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        identities = list(self.push_messages(messages))
        self.clock.sleep(timeout or 0.0)
        return self.pull_messages(identities)


def _silent(_: Message) -> Iterable[tuple[float, Message]]:
    return ()


class Net(nn.Module):
    """Three layers, one with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(inputs))))  # type: ignore[no-any-return]


def a_model() -> tuple[Net, Layers]:
    torch.manual_seed(3)
    model = Net()
    return model, find_layers(model, torch.zeros(2, 4))


def update_of(depth: int, layers: Layers, state: Mapping[str, Tensor], seed: int = 0, examples: int = 10) -> Update:
    """Return an honest update of the last `depth` layers."""
    generator = torch.Generator().manual_seed(seed)
    sent = layers[len(layers) - depth :] if depth else ()
    deltas = {n: torch.randn(state[n].shape, generator=generator) * 0.1 for layer in sent for n in layer.parameters}
    buffers = {name: state[name] + 1 for layer in sent for name in layer.buffers}
    return Update(deltas, {layer.name: 1 for layer in sent}, examples, buffers)


def answer(
    message: Message, update: Update, report: ClientReport | None = None, metrics: Mapping[str, float] | None = None
) -> Message:
    """Return the reply that carries an update."""
    instructions = TrainInstructions.read(message)
    if report is None:
        report = ClientReport(instructions.round, 1.0, 0.0, interrupted=False)
    received = message.content.array_records["arrays"]
    arrays, record = write_reply(update, report, instructions.layers, received, metrics or {}, whole=instructions.whole)
    return Message(RecordDict({"arrays": arrays, "metrics": record}), reply_to=message)


def stock_answer(message: Message, arrays: ArrayRecord, **metrics: float) -> Message:
    """Return the reply of a client that does not use salf."""
    record = MetricRecord({"num-examples": 10, **metrics})
    return Message(RecordDict({"arrays": arrays, "metrics": record}), reply_to=message)


def sending(depth: int, after: float = 1.0, seed: int = 0, examples: int = 10) -> Node:
    """Return a node that always sends the last `depth` layers, some seconds after the message."""

    def node(message: Message) -> Iterable[tuple[float, Message]]:
        instructions = TrainInstructions.read(message)
        state = message.content.array_records["arrays"].to_torch_state_dict()
        yield after, answer(message, update_of(depth, instructions.layers, state, seed, examples))

    return node


def inner(nodes: int, **options: object) -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, **options)  # type: ignore[arg-type]


def a_loop(
    grid: MemoryGrid,
    strategy: SalfStrategy,
    *,
    folder: FederationFolder | None = None,
    evaluate: Evaluate | None = None,
    config: ConfigRecord | None = None,
) -> RoundLoop:
    """Return the loop of `strategy.start`, on the grid's clock."""
    exchange = Exchange(grid, 0.25, grid.clock, grid.clock.sleep)
    configs = config or ConfigRecord(), ConfigRecord()
    return RoundLoop(FlowerServer(strategy.config), exchange, *configs, evaluate, 3600, folder)


def initial(model: nn.Module) -> ArrayRecord:
    return ArrayRecord(model.state_dict())


def wrapped(strategy: Strategy, layers: Layers, deadline: float = 10.0, **options: object) -> SalfStrategy:
    return SalfStrategy(strategy, deadline=deadline, layers=layers, **options)  # type: ignore[arg-type]
