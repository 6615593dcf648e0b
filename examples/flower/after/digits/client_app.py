"""The client app, which runs on every node."""

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import salf.flower
from digits.task import Net, load_data, slow_down, train

app = ClientApp()


@app.train()
def train_model(message: Message, context: Context) -> Message:
    """Train the received model on the node's own data."""
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    slow_down(model, context.node_config.get("seconds-per-layer", 0.0))
    partition, partitions = context.node_config["partition-id"], context.node_config["num-partitions"]
    by_digit = context.run_config["by-digit"]
    loader = load_data(partition, partitions, context.run_config["batch-size"], by_digit=by_digit)
    optimizer = torch.optim.SGD(model.parameters(), lr=message.content["config"]["lr"])

    with salf.flower.deadline(message, model, optimizer) as work:
        train(model, optimizer, loader, context.run_config["local-epochs"])

    return salf.flower.reply(message, work, num_examples=len(loader.dataset))
