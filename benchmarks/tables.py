"""Run the presets of the paper's experiments and print the tables of docs/experiments.md.

    python benchmarks/tables.py DATA_ROOT OUT [PRESET ...]

Each preset has three seeds. OUT keeps the runs, and a later call resumes them. Without presets, the script runs all of
the paper's table, about a quarter of an hour on two cores, and the same set-up on the digits, some minutes.
"""

import json
import subprocess
import sys
from pathlib import Path

_PAPER = [
    f"mnist-{model}{division}{share}"
    for model in ("cnn", "mlp")
    for division in ("", "-shards")
    for share in ("", "-60", "-30")
]
_METHODS = "fedavg,salf,drop"
_CNN = ["rounds=500", "client.lr=0.1", "evaluate.every=500"]
_MLP = [*_CNN, "model.name=mlp", "model.hidden=[32, 16]"]
_DIGITS = {
    "CNN, IID": ("digits-iid", _CNN),
    "CNN, two label shards": ("digits", _CNN),
    "MLP, IID": ("digits-iid", _MLP),
    "MLP, two label shards": ("digits", _MLP),
}


def main(root: str, out: Path, presets: list[str]) -> None:
    """Run missing experiments and print the tables."""
    _print_paper(root, out, presets or _PAPER)
    if not presets:
        print()
        _print_digits(out)


def _print_paper(root: str, out: Path, presets: list[str]) -> None:
    """Print a line per preset."""
    print("| preset | fedavg | salf | drop | salf with the rule `everyone` |")
    print("|---|---|---|---|---|")
    for preset in presets:
        found = _compare(preset, out / preset, _METHODS, [f"data.root={root}"])
        everyone = _compare(preset, out / f"{preset}-everyone", "salf", [f"data.root={root}", "method.rule=everyone"])
        cells = [*(found[method] for method in _METHODS.split(",")), everyone["salf"]]
        print(f"| `{preset}` | {' | '.join(cells)} |", flush=True)


def _print_digits(out: Path) -> None:
    """Print a line per network and division of the digits, with four seeds."""
    print("| digits | fedavg | salf | drop |\n|---|---|---|---|")
    for name, (preset, settings) in _DIGITS.items():
        folder = out / name.replace(", ", "-").replace(" ", "-")
        found = _compare(preset, folder, _METHODS, settings, seeds=4)
        print(f"| {name} | {' | '.join(found.values())} |", flush=True)


def _compare(preset: str, out: Path, methods: str, settings: list[str], *, seeds: int = 3) -> dict[str, str]:
    """Return each method's final accuracy as text."""
    command = [sys.executable, "-m", "salf", "compare", preset, "--methods", methods, "--seeds", str(seeds), "--json"]
    sets = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(  # noqa: S603 - the words are ours
        [*command, *sets, "--out", str(out), "--resume"], check=True, capture_output=True, text=True
    )
    methods_found = json.loads(done.stdout)["methods"]
    return {row["method"]: f"{100 * row['accuracy']:.1f} ± {100 * row['deviation']:.1f}" for row in methods_found}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
