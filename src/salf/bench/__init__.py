"""The performance figures that salf promises, measured on this machine; most are ratios within one run."""

import torch

from salf.bench.aggregating import aggregation_cases as aggregation_cases
from salf.bench.case import Case as Case, Figure as Figure
from salf.bench.deadlines import deadline_cases as deadline_cases
from salf.bench.memory import memory_cases as memory_cases
from salf.bench.rounds import growth_case as growth_case, round_cases as round_cases
from salf.bench.starting import start_cases as start_cases


def all_cases(device: torch.device) -> list[Case]:
    """Return all cases of `salf bench`, in the order of its table.

    >>> [case.name for case in all_cases(torch.device("cpu"))][-2:]
    ['start/help', 'start/import']
    """
    return [
        *round_cases(device),
        *deadline_cases(device),
        *aggregation_cases(device),
        growth_case(device),
        *memory_cases(device),
        *start_cases(),
    ]
