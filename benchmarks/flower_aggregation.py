"""Measure the memory and time of aggregating a hundred replies on Flower: salf, and Flower's own FedAvg.

    python benchmarks/flower_aggregation.py
    python benchmarks/flower_aggregation.py salf 20     # one of the two, on fewer replies, as JSON

Each of the two runs in its own process. The process holds the global model, makes replies of 11 million parameters one
by one, and aggregates them. The time includes freeing the replies, but not making them. The peak is that of the
resident memory beyond the memory of the process before its first array.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from salf.aggregation import Aggregation, Corrected
from salf.flower.server.training_round import TrainingRound, UpdateValidator
from salf.flower.wire import from_record
from salf.layers import Layers, find_layers

REPLIES = 100 if len(sys.argv) < 3 else int(sys.argv[2])
TaskIdentity._run_id = TaskIdentity._node_id = TaskIdentity._task_id = 1


def a_model() -> tuple[nn.Module, Layers]:
    """Return a chain of linear layers with eleven million parameters."""
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(10)], nn.Linear(1024, 512))
    return model, find_layers(model)


def replies(layers: Layers, messages: list[Message], record: ArrayRecord) -> Iterator[Message]:
    """Yield one whole reply to each message, made on demand."""
    steps = [1] * len(layers)
    report = {"salf-round": 1, "salf-elapsed-s": 1.0, "salf-overshoot-s": 0.0, "salf-interrupted": 0}
    metrics: dict[str, Any] = {"num-examples": 10, "salf-steps": steps, **report}
    for index, message in enumerate(messages):
        arrays = {name: Array(array.numpy() + np.float32(1e-4 * (index + 1))) for name, array in record.items()}
        records: dict[str, Any] = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)}
        del arrays
        yield Message(RecordDict(records), reply_to=message)


def resident_bytes() -> int:
    """Return the highest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", status)[0])


def measure(way: str) -> dict[str, float]:
    """Aggregate by salf or by Flower; return the seconds, the peak memory and the size of the model in bytes."""
    torch.set_num_threads(1)
    idle = resident_bytes()
    model, layers = a_model()
    record = ArrayRecord(model.state_dict())
    size = sum(len(array.data) for array in record.values())
    del model
    content = RecordDict({"arrays": record, "config": ConfigRecord()})
    messages = [Message(content, dst_node_id=node, message_type="train") for node in range(1, REPLIES + 1)]
    for index, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = str(index)
    aggregate = aggregate_by_salf if way == "salf" else aggregate_by_flower
    seconds = aggregate(layers, messages, record)
    return {"seconds": seconds, "peak": resident_bytes() - idle, "model": size}


def aggregate_by_salf(layers: Layers, messages: list[Message], record: ArrayRecord) -> float:
    """Add each reply when it arrives; return the seconds."""
    state = from_record(record)
    update_sum = Aggregation(state, layers, Corrected())
    training = TrainingRound(1, list(range(1, REPLIES + 1)), UpdateValidator(layers, state, 10.0), update_sum)
    training.sent({str(index): index + 1 for index in range(REPLIES)})
    seconds = 0.0
    for reply in replies(layers, messages, record):
        began = time.perf_counter()
        training.take(reply, 1.0)
        del reply
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    assert training.close().contributors == (REPLIES,) * len(layers)
    return seconds + time.perf_counter() - began


def aggregate_by_flower(layers: Layers, messages: list[Message], record: ArrayRecord) -> float:
    """Average all replies at the end, as FedAvg does; return the seconds."""
    contents = [reply.content for reply in replies(layers, messages, record)]
    began = time.perf_counter()
    aggregate_arrayrecords(contents, FedAvg().weighted_by_key)
    contents.clear()  # salf frees each reply as soon as it is added
    return time.perf_counter() - began


def run(way: str) -> dict[str, float]:
    """Measure in a new process."""
    done = subprocess.run([sys.executable, __file__, way], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure salf and Flower in turn, three times, and print the best results."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    found: dict[str, list[dict[str, float]]] = {"salf": [], "flower": []}
    for _ in range(3):
        for way, results in found.items():
            results.append(run(way))
    for way, results in found.items():
        peak = min(result["peak"] for result in results) / results[0]["model"]
        print(f"{way}: {min(result['seconds'] for result in results):.2f} s, peak {peak:.2f} × the model")
    ratio = min(r["seconds"] for r in found["salf"]) / min(r["seconds"] for r in found["flower"])
    print(f"time, salf / FedAvg: {ratio:.2f}")


if __name__ == "__main__":
    main()
