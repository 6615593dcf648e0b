"""The client app, which runs on every device."""

from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import salf.flower
from salf.integrations.peft import load_adapter_state
from speakers.task import DEVICES, PASSES, batches, load_model, read_speakers, slow_down, train

app = ClientApp()


@app.train()
def train_model(message: Message, context: Context) -> Message:
    """Train the received adapter on what one speaker says: one step of 16 passes, or as many as the deadline allows."""
    torch.set_num_threads(1)
    config, settings = context.run_config, message.content["config"]
    speaker, seconds = [*DEVICES.items()][context.node_config["partition-id"]]
    text = read_speakers(Path(config["text"]))[speaker]
    model = load_model(Path(config["base"]), config["seed"])
    load_adapter_state(model, message.content["arrays"].to_torch_state_dict())
    slow_down(model, seconds)
    optimizer = torch.optim.SGD((value for value in model.parameters() if value.requires_grad), lr=settings["lr"])
    loader = batches(text, PASSES, seed=1000 * config["seed"] + settings["server-round"])

    with salf.flower.deadline(message, model, optimizer, accumulate=PASSES) as work:
        loss = train(model, optimizer, work.batches(loader))

    if config["method"] == "drop" and work.interrupted:
        raise TimeoutError("this device is too slow for the round, whose server drops stragglers")
    return salf.flower.reply(message, work, num_examples=len(text), metrics={"train_loss": loss})
