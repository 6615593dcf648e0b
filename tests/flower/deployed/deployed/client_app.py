"""A node that conveys as many layers as its settings say, after as many seconds."""

import time

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from deployed.task import update_of
from salf.flower.wire import ClientReport, TrainInstructions, write_reply

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Convey the last layers."""
    order = TrainInstructions.read(message)
    time.sleep(float(context.node_config.get("seconds", 0.0)))
    received = message.content.array_records["arrays"]
    node, depth = int(context.node_config["partition-id"]), int(context.node_config["depth"])
    update = update_of(depth, node, order.round, order.layers, received.to_torch_state_dict())
    elapsed = time.time() - message.metadata.created_at
    told = ClientReport(
        order.round, elapsed, max(0.0, elapsed - order.deadline_seconds), interrupted=depth < len(order.layers)
    )
    arrays, record = write_reply(update, told, order.layers, received, {}, whole=False)
    return Message(RecordDict({"arrays": arrays, "metrics": record}), reply_to=message)
