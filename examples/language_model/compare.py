"""Compare SALF, dropping stragglers and waiting for them: a language model on three unequal devices, on a real clock.

    PYTHONPATH=examples/flower python examples/language_model/compare.py --text FILE [--out DIR] [--seeds 3]

First a small GPT-2 is trained on what all speakers but the three clients say, for about three minutes. Then each method
trains a LoRA adapter for it on the three clients. Flower's simulation engine runs each client in a process of its own;
their times are real, and sleeping makes two of them slower. Every run leaves a file in DIR; runs that have one are not
repeated. The program prints a table and draws DIR/perplexity.svg.
"""

import argparse
import json
import math
import re
import statistics
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from local_deployment import LocalDeployment
from safetensors.torch import save_file
from speakers.task import DEVICES, HELD_OUT, base_model, random_rows, read_speakers

HERE = Path(__file__).resolve().parent
SLOWEST = max(DEVICES, key=lambda name: DEVICES[name])
METHODS = {"salf": "SALF", "drop": "dropping stragglers", "wait": "waiting for every device"}
STEPS = 2000


def pretrain(text: Path, base: Path) -> None:
    """Train the base model on what all others than the clients say, and save it."""
    speakers = read_speakers(text)
    others = torch.cat([speakers[name] for name in sorted(speakers) if name not in DEVICES])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = base_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
    )
    for step in range(STEPS):
        rows = random_rows(others, 12, torch.default_generator)
        optimizer.zero_grad()
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 249:
            print(f"base model: step {step + 1} of {STEPS}, loss {loss.item():.4f}", flush=True)
    state = model.state_dict()
    save_file({name: state[name] for name, _ in model.named_parameters()}, base)


def run(method: str, seed: int, options: argparse.Namespace, file: Path) -> None:
    """Run one method, and save what it printed after each round."""
    wait = 16 * 12 * max(DEVICES.values()) + 1.0  # seconds: 16 passes of four blocks, forwards and backwards
    round_seconds = (wait if method == "wait" else options.deadline) + 0.5
    with LocalDeployment(options.out / f"{method}-{seed}", [{}] * len(DEVICES), secure=False, simulated=True) as flower:
        log = flower.run(
            HERE,
            timeout=3600,
            method=method,
            seed=seed,
            text=options.text.resolve(),
            base=(options.out / "base.safetensors").resolve(),
            deadline_seconds=options.deadline,
            num_server_rounds=math.ceil(options.seconds / round_seconds),
        )
    (options.out / f"{method}-{seed}.log").write_text(log)
    records = [json.loads(line) for line in re.findall(r"RESULT (\{.*\})", log)]
    file.write_text(json.dumps({"method": method, "seed": seed, "records": records}, indent=1))


def at(records: list[dict], seconds: float, speakers: list[str]) -> float:
    """Return the mean perplexity over some speakers after so many seconds, between two rounds in proportion."""
    before = [record for record in records if record["seconds"] <= seconds][-1]
    after = next((record for record in records if record["seconds"] > seconds), before)
    span = after["seconds"] - before["seconds"]
    share = (seconds - before["seconds"]) / span if span else 0.0
    first, second = (statistics.fmean(record["perplexity"][name] for name in speakers) for record in (before, after))
    return first + share * (second - first)


def plot(results: dict[str, list[list[dict]]], until: float, file: Path) -> None:
    """Draw perplexity against seconds, for the slowest client's text and for all."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, layout="constrained")
    for panel, speakers, title in zip(
        panels, ([SLOWEST], [*DEVICES]), ("text of the slowest client", "text of all three clients"), strict=True
    ):
        times = [until * step / 60 for step in range(61)]
        for method, runs in results.items():
            curves = [[at(records, seconds, speakers) for seconds in times] for records in runs]
            [line] = panel.plot(
                times, [statistics.fmean(values) for values in zip(*curves, strict=True)], label=METHODS[method]
            )
            lows, highs = ([limit(values) for values in zip(*curves, strict=True)] for limit in (min, max))
            panel.fill_between(times, lows, highs, color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set(title=title, xlabel="seconds")
    panels[0].set_ylabel("perplexity per byte (held out)")
    panels[0].legend(frameon=False)
    figure.savefig(file)


def main() -> int:
    """Run what is missing, print the table, and draw the figure."""
    parser = argparse.ArgumentParser(description="SALF, dropping and waiting: a language model on unequal devices")
    parser.add_argument("--text", type=Path, required=True, help="a text with a line SPEAKER: before each speech")
    parser.add_argument("--out", type=Path, default=Path("language-model"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=240.0, help="about how long each run trains")
    parser.add_argument("--deadline", type=float, default=4.5, help="seconds, enough for two devices")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "base.safetensors").exists():
        pretrain(options.text, options.out / "base.safetensors")
    results: dict[str, list[list[dict]]] = {method: [] for method in METHODS}
    for seed in range(options.seeds):
        for method in METHODS:
            file, began = options.out / f"{method}-{seed}.json", time.monotonic()
            if not file.exists():
                run(method, seed, options, file)
                print(f"{method}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
            results[method].append(json.loads(file.read_text())["records"])
    until = min(records[-1]["seconds"] for runs in results.values() for records in runs)
    print(f"\nPerplexity per byte after {until:.0f} s, of the last {HELD_OUT} bytes of each speaker:\n")
    print("| | slowest client | all clients | rounds |\n|---|---|---|---|")
    for method, runs in results.items():
        cells = []
        for speakers in ([SLOWEST], [*DEVICES]):
            values = [at(records, until, speakers) for records in runs]
            cells.append(f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        rounds = statistics.fmean(sum(record["seconds"] <= until for record in records) - 1 for records in runs)
        print(f"| {METHODS[method]} | {' | '.join(cells)} | {rounds:.0f} |")
    plot(results, until, options.out / "perplexity.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
