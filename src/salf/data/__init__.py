"""Data sets, and their division among clients.

`load` gives one of the published image sets, `Dataset.from_tensors` and `Dataset.from_tables` data at hand. A
`Partition` assigns each training example to one client.
"""

from salf.data.dataset import Dataset as Dataset
from salf.data.partitions import (
    Partition as Partition,
    dirichlet as dirichlet,
    iid as iid,
    label_order as label_order,
    shards as shards,
)
from salf.data.sources import NAMES as NAMES, load as load
