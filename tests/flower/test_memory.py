"""The server's memory does not grow with the number of clients."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from flower_cases import MemoryGrid, a_loop, a_model, initial, inner, sending, wrapped
from flwr.app import Message

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "flower_aggregation.py"


def test_replies_of_a_large_model_take_four_times_its_memory_at_most() -> None:
    """Eight replies of eleven million parameters; kept together they would take eight times the model."""
    done = subprocess.run([sys.executable, str(PROGRAM), "salf", "8"], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] <= 4 * found["model"]


class CountingGrid(MemoryGrid):
    """Notes how many replies are fetched at once."""

    def __init__(self) -> None:
        super().__init__({node: sending(3, after=0.0) for node in range(1, 9)})
        self.together: list[int] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        identities = list(message_ids)
        self.together.append(len(identities))
        return super().pull_messages(identities)


def test_large_replies_are_fetched_a_few_at_a_time() -> None:
    model, layers = a_model()
    grid = CountingGrid()
    loop = a_loop(grid, wrapped(inner(8), layers))
    loop.run(initial(model), 1)
    assert max(grid.together) == 8  # of a small model
    grid.together.clear()
    list(loop.exchange.sweep(tuple(f"message-{place}" for place in range(8)), reply_bytes=2**24))
    assert grid.together == [2, 2, 2, 2]
