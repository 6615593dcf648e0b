"""Compare the speed of salf with other simulators and plain PyTorch loops on this machine.

The work: 30 clients take part in each round with one SGD step (learning rate 0.1) on a batch of 16; averaging; no
evaluation. The model is the multilayer perceptron 784-32-16-10 on MNIST, or with 64 inputs on scikit-learn's digits.
All peers start from the same weights and train on the same examples, so all must reach the same loss up to rounding.
Rounding differences grow when they flip a ReLU: Flower scales each client's weights before it adds them, and a plain
loop that does the same ends exactly where Flower ends. salf draws the examples during its rounds; for the other peers
they are drawn before the clock starts.

Each peer runs in a process and a virtual environment of its own, which pip installs on first use (about a gigabyte
each). Several passes over all peers average out changes in the machine's speed. Run it on an idle machine:

    python benchmarks/peers.py --data FOLDER_WITH_MNIST
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from salf import data, seeds

_ROOT = Path(__file__).resolve().parents[1]
_CHILDREN = Path(__file__).with_suffix("")
_CLIENTS, _BATCH = 30, 16
_WARM_UP, _BLOCKS = 10, 5
_PATIENCE_SECONDS = 1800
_COMMON = ("torch==2.13.0", "numpy==2.4.6")


@dataclass(frozen=True)
class Peer:
    """A function `MODULE:FUNCTION` of benchmarks/peers and the environment that it needs."""

    name: str
    function: str
    environment: str
    requirements: tuple[str, ...] = ()


PEERS = (
    Peer("salf", "salf_peer:train", "salf", ("-e", str(_ROOT))),
    Peer("loop", "loop_peer:reused", "torch"),
    Peer("loop-deepcopy", "loop_peer:copied", "torch"),
    Peer("flower", "flower_peer:train", "flower", ("flwr[simulation]==1.41.0", "ray==2.55.1")),
    Peer("pfl", "pfl_peer:train", "pfl", ("pfl==0.6.0",)),
)


@dataclass(frozen=True)
class Measurement:
    """The report of a child: seconds per round of each block, and the result of the training."""

    seconds_per_round: list[float]
    initial_loss: float
    loss: float
    accuracy: float
    detail: str
    versions: dict[str, str]


@dataclass
class Result:
    """The measurements of a peer, one per pass, and the reason if it failed."""

    measurements: list[Measurement] = field(default_factory=list)
    failure: str | None = None

    def ms_per_round(self) -> list[float]:
        """Return the median over the blocks of each pass."""
        return [1000 * median(measurement.seconds_per_round) for measurement in self.measurements]

    def ratio(self, reference: "Result | None") -> float | None:
        """Return the median over passes of the time relative to a reference."""
        pairs = [*zip(self.ms_per_round(), reference.ms_per_round() if reference else [], strict=False)]
        return median(own / other for own, other in pairs) if pairs else None


class PeerFailed(Exception):
    """A peer could not be installed or did not do its work."""


def main() -> None:
    """Time the peers and print the table."""
    options = _options()
    load = os.getloadavg()[0]
    peers = [peer for peer in PEERS if peer.name in options.only]
    results = {peer.name: Result() for peer in peers}
    with tempfile.TemporaryDirectory(prefix="salf-peers-") as temporary:
        dataset = data.load("digits") if options.data is None else data.load("mnist", options.data)
        workload = Path(temporary) / "workload.npz"
        _write_workload(dataset, _WARM_UP + _BLOCKS * options.rounds + 1, workload)
        for done in range(options.passes):
            for peer in peers:
                result = results[peer.name]
                if result.failure is None:
                    _say(f"pass {done + 1} of {options.passes}: {peer.name}")
                    _try(peer, result, workload, options)
    header = {
        "data": dataset.name,
        "clients": _CLIENTS,
        "batch": _BATCH,
        "threads": options.threads,
        "passes": options.passes,
        "blocks": _BLOCKS,
        "rounds_per_block": options.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_before": round(load, 2),
    }
    if options.json:
        print(json.dumps({**header, "peers": {name: _plain(result, results) for name, result in results.items()}}))
    else:
        _print_table(header, results)
    if any(result.failure for result in results.values()):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [peer.name for peer in PEERS]
    cache = Path("~/.cache/salf-peers").expanduser()
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with MNIST's IDX files; else digits are used")
    parser.add_argument("--environments", type=Path, metavar="DIR", default=cache, help="default: ~/.cache/salf-peers")
    parser.add_argument("--only", metavar="NAME,...", type=lambda text: text.split(","), default=names)
    parser.add_argument("--rounds", type=int, default=20, help=f"rounds in each of {_BLOCKS} blocks (default 20)")
    parser.add_argument("--passes", type=int, default=3, help="passes over all peers (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each process (default 1)")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON instead of the table")
    options = parser.parse_args()
    if unknown := [name for name in options.only if name not in names]:
        parser.error(f"there is no peer {', '.join(unknown)}; known are {', '.join(names)}")
    if min(options.rounds, options.passes, options.threads) < 1:
        parser.error("--rounds, --passes and --threads are at least 1")
    return options


def _write_workload(dataset: data.Dataset, rounds: int, path: Path) -> None:
    """Write the training data and the batches that salf draws with seed 0."""
    partition, clients = data.iid(dataset.labels.numpy(), _CLIENTS, seed=0), np.arange(_CLIENTS)
    numbers = (seeds.uniforms(0, "batch", number, clients, _BATCH) for number in range(1, rounds + 1))
    starts = partition.offsets[:-1, None]
    batches = np.stack([partition.order[starts + seeds.permuted(drawn, partition.sizes)] for drawn in numbers])
    np.savez(path, inputs=dataset.inputs.numpy(), labels=dataset.labels.numpy(), batches=batches)


def _try(peer: Peer, result: Result, workload: Path, options: argparse.Namespace) -> None:
    """Measure a peer once more, or record the reason why it failed."""
    try:
        python = _environment(peer, options.environments)
        result.measurements.append(_measure(peer, python, workload, options))
    except PeerFailed as error:
        result.failure = str(error)
        _say(f"  failed: {error}")


def _environment(peer: Peer, folder: Path) -> Path:
    """Return the Python of the peer's environment, installed if necessary."""
    home = folder.resolve() / peer.environment
    python, marker = home / "bin" / "python", home / "requirements.json"
    requirements = [*_COMMON, *peer.requirements]
    own = _dependencies() if str(_ROOT) in requirements else []
    wanted = json.dumps([sys.version, requirements, own])
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return python
    _say(f"  installing {' '.join(requirements)}")
    _run([sys.executable, "-m", "venv", "--clear", str(home)], os.environ)
    _run([str(python), "-m", "pip", "install", "--quiet", *requirements], os.environ)
    marker.write_text(wanted, encoding="utf-8")
    return python


def _dependencies() -> list[str]:
    """Return what salf itself requires."""
    with (_ROOT / "pyproject.toml").open("rb") as file:
        required: list[str] = tomllib.load(file)["project"]["dependencies"]
    return required


def _measure(peer: Peer, python: Path, workload: Path, options: argparse.Namespace) -> Measurement:
    """Run all rounds in a child process and return its report."""
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(options.threads))
    offline = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**os.environ, **pools, **offline, "FLWR_HOME": str(workload.parent / "flower")}
    environment.pop("PYTHONPATH", None)
    sizes = {"--threads": options.threads, "--warm-up": _WARM_UP, "--rounds": options.rounds}
    settings = [str(part) for pair in sizes.items() for part in pair]
    command = [str(python), str(_CHILDREN / "child.py"), peer.function, str(workload), *settings]
    reports = [line for line in _run(command, environment).splitlines() if line.startswith('{"seconds_per_round"')]
    if len(reports) != 1:
        raise PeerFailed("it ended without a report")
    measurement = Measurement(**json.loads(reports[0]))
    if not measurement.loss < measurement.initial_loss:
        raise PeerFailed(f"it did not train: the loss was {measurement.initial_loss:.3f}, is {measurement.loss:.3f}")
    return measurement


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the output of a command, or raise `PeerFailed` with its last error."""
    with subprocess.Popen(  # noqa: S603 - the commands are those above
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, complaints = process.communicate(timeout=_PATIENCE_SECONDS)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # and its workers
            if isinstance(error, subprocess.TimeoutExpired):
                raise PeerFailed(f"it did not finish within {_PATIENCE_SECONDS} s") from error
            raise
    if process.returncode:
        lines = [line for line in (complaints.strip() or output.strip()).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR: ")] or lines
        raise PeerFailed(f"exit status {process.returncode}: {errors[-1][:500] if errors else 'no output'}")
    return output


def _plain(result: Result, results: Mapping[str, Result]) -> dict[str, object]:
    times = result.ms_per_round()
    summary = {"ms_per_round": median(times) if times else None, "ratio_to_salf": result.ratio(results.get("salf"))}
    return {**summary, **asdict(result)}


def _print_table(header: Mapping[str, object], results: Mapping[str, Result]) -> None:
    print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in header.items()))
    print("peer           ms per round  (range of passes)  × salf  training loss   accuracy  versions")
    for name, result in results.items():
        if result.failure is not None:
            print(f"{name:13}  failed in pass {len(result.measurements) + 1}: {result.failure}")
            continue
        times, last = result.ms_per_round(), result.measurements[-1]
        ratio = result.ratio(results.get("salf"))
        relative = "" if ratio is None else f"{ratio:.2f}"
        extent = f"({min(times):.2f} – {max(times):.2f})"
        versions = ", ".join(f"{package} {version}" for package, version in last.versions.items())
        detail = f" ({last.detail})" if last.detail else ""
        print(
            f"{name:13}  {median(times):12.2f}  {extent:>17}  {relative:>6}  {last.initial_loss:.3f} → {last.loss:.3f}"
            f"  {last.accuracy:8.1%}  {versions}{detail}"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
