"""A node that sends as many layers as its settings say, after as many seconds."""

import time

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from deployed.task import update_of
from salf.flower.wire import ClientReport, TrainInstructions, write_reply

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Send the last layers."""
    instructions = TrainInstructions.read(message)
    time.sleep(float(context.node_config.get("seconds", 0.0)))
    received = message.content.array_records["arrays"]
    node, depth = int(context.node_config["partition-id"]), int(context.node_config["depth"])
    update = update_of(depth, node, instructions.round, instructions.layers, received.to_torch_state_dict())
    elapsed = time.time() - message.metadata.created_at
    report = ClientReport(
        instructions.round,
        elapsed,
        max(0.0, elapsed - instructions.deadline_seconds),
        interrupted=depth < len(instructions.layers),
    )
    arrays, record = write_reply(update, report, instructions.layers, received, {}, whole=False)
    return Message(RecordDict({"arrays": arrays, "metrics": record}), reply_to=message)
