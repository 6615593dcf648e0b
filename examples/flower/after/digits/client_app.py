"""The client app, which runs on every node."""

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader

import salf.flower
from digits.task import Net, load_data, slow_down, test, train

app = ClientApp()


@app.train()
def train_model(message: Message, context: Context) -> Message:
    """Train the received model on the node's own data."""
    model, device = load_model(message)
    slow_down(model, context.node_config.get("seconds-per-layer", 0.0))
    trainloader, _ = load_own_data(context)
    epochs, lr = context.run_config["local-epochs"], message.content["config"]["lr"]

    with salf.flower.deadline(message, model) as work:
        train_loss = train(model, work.batches(trainloader), epochs, lr, device)

    return salf.flower.reply(message, work, num_examples=len(trainloader.dataset), metrics={"train_loss": train_loss})


@app.evaluate()
def evaluate_model(message: Message, context: Context) -> Message:
    """Evaluate the received model on the digits that the node does not train on."""
    model, device = load_model(message)
    _, testloader = load_own_data(context)
    loss, accuracy = test(model, testloader, device)
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(testloader.dataset)}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def load_model(message: Message) -> tuple[Net, torch.device]:
    """Return the received model, and the device that it is on."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model.to(device), device


def load_own_data(context: Context) -> tuple[DataLoader, DataLoader]:
    """Return the node's own digits, to train on and to evaluate with."""
    partition, partitions = context.node_config["partition-id"], context.node_config["num-partitions"]
    return load_data(partition, partitions, context.run_config["batch-size"], by_digit=context.run_config["by-digit"])
