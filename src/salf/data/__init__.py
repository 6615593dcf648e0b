"""Data sets, and their division among clients.

`load` gives one of the published image sets, `Dataset.from_tensors` and `Dataset.from_tables` data at hand. A
`Partition` assigns each training example to one client.
"""

from salf.data.dataset import Dataset as Dataset
from salf.data.partitions import Partition as Partition
from salf.data.partitions import dirichlet as dirichlet
from salf.data.partitions import iid as iid
from salf.data.partitions import label_order as label_order
from salf.data.partitions import shards as shards
from salf.data.sources import NAMES as NAMES
from salf.data.sources import load as load
