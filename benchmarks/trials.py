"""Compare alternatives to the simulator's choices, and the cost of the rule `memory`.

    python benchmarks/trials.py

Two ways are timed in turn on random examples, with 30 clients and batches of 16 unless stated otherwise. The script
prints the median of the ratios; above 1, the choice of salf is faster. Run it on an idle machine.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from salf.aggregation import Memory
from salf.bench.case import Figure, time_in_turn
from salf.bench.rounds import SUBJECTS, RoundBench, Subject
from salf.engines import EngineName, FusedEngine
from salf.methods import Salf

_SECONDS = 4.0


def main() -> None:
    """Print a line for each trial."""
    for name in ("cnn-30", "vgg11-30", "residual-30"):
        _print_figure(f"the other memory layout of images, {name}", _layout(SUBJECTS[name]))
    for name in ("mlp-30", "mlp-1000", "cnn-30", "vgg11-30"):
        _print_figure(f"one thread instead of two, {name}", _threads(SUBJECTS[name], 1, 2))
    engines: dict[str, tuple[EngineName, ...]] = {
        "mlp-30": ("fused", "stacked", "plain"),
        "cnn-30": ("fused", "stacked", "plain"),
        "residual-30": ("stacked", "plain"),
    }
    for name, chosen in engines.items():
        for engine in chosen:
            _print_figure(
                f"the rule memory, {engine} engine, against corrected, {name}", _memory(SUBJECTS[name], engine)
            )
    for name in ("mlp-30", "cnn-30", "residual-30"):
        _print_figure(
            f"torch.compile, one pass over all examples, against the fused engine, {name}", _compiled(SUBJECTS[name])
        )


def _print_figure(what: str, figure: Figure) -> None:
    first, second = (1000 * float(str(figure.details[key])) for key in ("seconds", "against_seconds"))
    print(f"{what}: {figure.value:.2f} ({first:.1f} against {second:.1f} ms)", flush=True)


def _layout(subject: Subject) -> Figure:
    """Compare the fused engine with images in the other memory layout."""
    usual, other = RoundBench(subject), RoundBench(subject)
    engine = other.simulation.federation.engine
    if not isinstance(engine, FusedEngine):
        raise TypeError(f"the {engine.name} engine was chosen")
    engine._channels_last = not engine._channels_last  # noqa: SLF001 - the alternative has no option
    return time_in_turn(other.train, usual.train, _SECONDS)


def _threads(subject: Subject, few: int, many: int) -> Figure:
    bench = RoundBench(subject)
    return time_in_turn(_on_threads(few, bench.train_cohort), _on_threads(many, bench.train_cohort), _SECONDS)


def _on_threads(count: int, act: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        act()
        torch.set_num_threads(before)

    return run


def _memory(subject: Subject, engine: EngineName) -> Figure:
    """Compare whole rounds with the rule `memory` with those with the paper's rule."""
    remembering = RoundBench(subject, engine=engine, method=Salf(rule=Memory()))
    return time_in_turn(remembering.play, RoundBench(subject).play, _SECONDS)


def _compiled(subject: Subject) -> Figure:
    """Compare a compiled pass over all examples with the fused engine."""
    bench = RoundBench(subject)
    start = time.perf_counter()
    model = torch.compile(bench.model)

    def centralised() -> None:
        with bench.simulation.federation.suitable_threads():
            bench.model.zero_grad(set_to_none=True)
            outputs: Tensor = model(bench.at_hand)
            nn.functional.cross_entropy(outputs, bench.labels_at_hand).backward()  # type: ignore[no-untyped-call]

    centralised()
    print(f"compiling took {time.perf_counter() - start:.0f} s", flush=True)
    return time_in_turn(centralised, bench.train, _SECONDS)


if __name__ == "__main__":
    main()
