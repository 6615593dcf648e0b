"""The performance figures that salf promises, measured on this machine: times as ratios within one run."""

from salf.bench.aggregating import aggregation_cases as aggregation_cases
from salf.bench.case import Case as Case
from salf.bench.case import Figure as Figure
from salf.bench.deadlines import deadline_cases as deadline_cases
from salf.bench.memory import memory_cases as memory_cases
from salf.bench.rounds import growth_case as growth_case
from salf.bench.rounds import round_cases as round_cases


def all_cases() -> list[Case]:
    """Return everything that `salf bench` measures, in the order of its table."""
    return [*round_cases(), *deadline_cases(), *aggregation_cases(), growth_case(), *memory_cases()]
