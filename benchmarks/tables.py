"""Runs the presets of the paper's experiments with three seeds each, and prints the tables of docs/experiments.md.

    python benchmarks/tables.py DATA_ROOT OUT [PRESET ...]

Runs are kept in OUT and gone on with where an earlier call was stopped. Without presets all those of the paper's table
are run, which takes about a quarter of an hour on two cores.
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


def main(root: str, out: Path, presets: list[str]) -> None:
    """Run what is missing, and print a line per preset."""
    print("| preset | fedavg | salf | drop | salf with the rule `everyone` |")
    print("|---|---|---|---|---|")
    for preset in presets or _PAPER:
        found = _compare(preset, root, out / preset, _METHODS, [])
        everyone = _compare(preset, root, out / f"{preset}-everyone", "salf", ["method.rule=everyone"])
        cells = [*(found[method] for method in _METHODS.split(",")), everyone["salf"]]
        print(f"| `{preset}` | {' | '.join(cells)} |", flush=True)


def _compare(preset: str, root: str, out: Path, methods: str, settings: list[str]) -> dict[str, str]:
    """Return each method's final accuracy as text."""
    command = [sys.executable, "-m", "salf", "compare", preset, "--methods", methods, "--seeds", "3", "--json"]
    sets = [word for setting in (f"data.root={root}", *settings) for word in ("--set", setting)]
    done = subprocess.run(  # noqa: S603 - the words are ours
        [*command, *sets, "--out", str(out), "--resume"], check=True, capture_output=True, text=True
    )
    methods_found = json.loads(done.stdout)["methods"]
    return {row["method"]: f"{100 * row['accuracy']:.1f} ± {100 * row['deviation']:.1f}" for row in methods_found}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
