"""Memory and time of aggregating a hundred replies on Flower as they arrive, beside Flower's own FedAvg.

    python benchmarks/flower_aggregation.py
    python benchmarks/flower_aggregation.py salf 20     # one of the two, on fewer replies, as JSON

Each way runs in a process of its own, which holds the global model, makes replies of 11 million parameters one by one
and aggregates them. Making the replies is not timed, freeing them is. The peak of the resident memory counts from
before the first array.
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

from salf.aggregation.aggregation import Aggregation
from salf.aggregation.rules import Corrected
from salf.flower.server.training import TrainingRound, UpdateValidator
from salf.flower.wire.arrays import from_record
from salf.layers.find import Layers, find_layers

REPLIES = 100 if len(sys.argv) < 3 else int(sys.argv[2])
TaskIdentity._run_id = TaskIdentity._node_id = TaskIdentity._task_id = 1


def a_model() -> tuple[nn.Module, Layers]:
    """Return a chain of linear layers with eleven million parameters."""
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(10)], nn.Linear(1024, 512))
    return model, find_layers(model)


def replies(layers: Layers, asked: list[Message], record: ArrayRecord) -> Iterator[Message]:
    """Yield one whole reply to each message, made when it is asked for."""
    steps = [1] * len(layers)
    told = {"salf-round": 1, "salf-elapsed-s": 1.0, "salf-overshoot-s": 0.0, "salf-interrupted": 0}
    metrics: dict[str, Any] = {"num-examples": 10, "salf-steps": steps, **told}
    for place, message in enumerate(asked):
        arrays = {name: Array(array.numpy() + np.float32(1e-4 * (place + 1))) for name, array in record.items()}
        records: dict[str, Any] = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)}
        del arrays
        yield Message(RecordDict(records), reply_to=message)


def resident_bytes() -> int:
    """Return the highest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", status)[0])


def measure(way: str) -> dict[str, float]:
    """Aggregate by salf or by Flower, or do nothing ("idle"); return the seconds and the peak memory in bytes."""
    if way == "idle":
        return {"peak": resident_bytes()}
    torch.set_num_threads(1)
    model, layers = a_model()
    record = ArrayRecord(model.state_dict())
    size = sum(len(array.data) for array in record.values())
    del model
    content = RecordDict({"arrays": record, "config": ConfigRecord()})
    asked = [Message(content, dst_node_id=node, message_type="train") for node in range(1, REPLIES + 1)]
    for place, message in enumerate(asked):
        message.metadata.__dict__["_message_id"] = str(place)
    seconds = 0.0
    if way == "salf":
        state = from_record(record)
        running = Aggregation(state, layers, Corrected())
        training = TrainingRound(1, list(range(1, REPLIES + 1)), UpdateValidator(layers, state, 10.0), running)
        training.sent({str(place): place + 1 for place in range(REPLIES)})
        for reply in replies(layers, asked, record):
            began = time.perf_counter()
            training.take(reply, 1.0)
            del reply
            seconds += time.perf_counter() - began
        began = time.perf_counter()
        assert training.close().contributors == (REPLIES,) * len(layers)
        seconds += time.perf_counter() - began
    else:
        contents = [reply.content for reply in replies(layers, asked, record)]
        began = time.perf_counter()
        aggregate_arrayrecords(contents, FedAvg().weighted_by_key)
        contents.clear()  # salf frees each reply as soon as it is added
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak": resident_bytes(), "model": size}


def run(way: str) -> dict[str, float]:
    """Measure in a process of its own."""
    done = subprocess.run([sys.executable, __file__, way], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure both ways in turn, three times, and print what came out."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    idle = run("idle")["peak"]
    found: dict[str, list[dict[str, float]]] = {"salf": [], "flower": []}
    for _ in range(3):
        for way, results in found.items():
            results.append(run(way))
    for way, results in found.items():
        peak = min(result["peak"] - idle for result in results) / results[0]["model"]
        print(f"{way}: {min(result['seconds'] for result in results):.2f} s, peak {peak:.2f} × the model")
    ratio = min(r["seconds"] for r in found["salf"]) / min(r["seconds"] for r in found["flower"])
    print(f"time, salf / FedAvg: {ratio:.2f}")


if __name__ == "__main__":
    main()
