"""Measure punctuality and cost of a real deadline, on VGG11 and CIFAR-sized images.

For deadlines from 90 % to 10 % of a full training step, the script prints the duration of blocks relative to their
deadline, and their depth. Then it prints the cost of watching a loop that is never interrupted. Run it on an idle
machine:

    python benchmarks/deadline.py [--device cuda] [--batch 2048]
"""

import argparse
import time
from collections.abc import Callable
from statistics import fmean, median, quantiles
from typing import TypeVar

import torch
from torch import nn

import salf
from salf.engines import find_device, title_of, wait_for
from salf.models import Vgg, build

_BLOCKS = 100


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--batch", type=int, default=16, help="examples per step (default 16)")
    arguments = parser.parse_args()
    device, rows = find_device(arguments.device), arguments.batch
    model = build(Vgg(), (3, 32, 32), 10, seed=0).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(rows, 3, 32, 32).to(device), torch.randint(0, 10, (rows,)).to(device)
    layers = salf.find_layers(model, images)

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def block(steps: int, seconds: float) -> salf.Work:
        with salf.deadline(model, optimizer, seconds, layers=layers) as work:
            train(steps)
        return work

    train(3)
    full = median(_timed(lambda: train(1), device)[0] for _ in range(20))
    for _ in range(3):
        block(1, 1000.0).update(rows)
    print(f"{title_of(device)}, batch {rows}, {torch.get_num_threads()} threads")
    print(f"full step {1000 * full:.1f} ms, {len(layers)} layers, {_BLOCKS} blocks")
    print("deadline  median  95th percentile  on time (≤ 1.05×)  mean depth")
    for tenth in range(9, 0, -1):
        seconds = full * tenth / 10
        ratios, depths = [], []
        for _ in range(_BLOCKS):
            work = block(3, seconds)
            work.update(rows)
            ratios.append(work.seconds / seconds)
            depths.append(work.depth)
        on_time = fmean(ratio <= 1.05 for ratio in ratios)
        late = quantiles(ratios, n=20)[-1]
        print(f"{tenth:>6}0 %  {median(ratios):6.3f}  {late:15.3f}  {on_time:17.0%}  {fmean(depths):10.1f}")
    print("steps per block  time under a deadline that is never reached / time without (median of pairs)")
    for steps in (1, 5, 20):
        ratios = []
        for _ in range(60 // steps + 3):
            ordinary, _ = _timed(lambda: train(steps), device)  # noqa: B023 - called at once
            watched, work = _timed(lambda: block(steps, 1000.0), device)  # noqa: B023
            work.update(rows)
            ratios.append(watched / ordinary)
        print(f"{steps:>15}  {median(ratios):.3f}")


T = TypeVar("T")


def _timed(act: Callable[[], T], device: torch.device) -> tuple[float, T]:
    wait_for(device)
    start = time.perf_counter()
    result = act()
    wait_for(device)
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
