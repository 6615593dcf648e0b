"""Methods that handle stragglers, each a frozen value whose fields are its settings, and the protocol of own ones.

A method derives from `SynchronousMethod` or `AsynchronousMethod`. Built-in methods use nothing but that protocol.
`METHODS` holds every method by its name; `salf.register` and installed packages add theirs. `AnyMethod` is the type of
a field that holds one of them.

Each algorithm is in the file that has its name. `layerwise` has what SALF and its relatives share; `schedules` helps
own methods to decide how many steps of each layer count.
"""

from typing import Annotated

from salf.methods.adel import AdelFL as AdelFL
from salf.methods.deeper import ReachingDeeper as ReachingDeeper
from salf.methods.drop import DropStragglers as DropStragglers
from salf.methods.fedasync import FedAsync as FedAsync
from salf.methods.fedavg import FedAvg as FedAvg
from salf.methods.fedbuff import FedBuff as FedBuff
from salf.methods.fednova import FedNova as FedNova
from salf.methods.fedprox import FedProx as FedProx
from salf.methods.heterofl import HeteroFL as HeteroFL
from salf.methods.layerwise import LayerWise as LayerWise
from salf.methods.memory import Remembering as Remembering
from salf.methods.method import (
    AsynchronousMethod as AsynchronousMethod,
    DeadlineMethod as DeadlineMethod,
    Method as Method,
    RoundContext as RoundContext,
    RunContext as RunContext,
    Submodels as Submodels,
    SynchronousMethod as SynchronousMethod,
    is_asynchronous as is_asynchronous,
    is_synchronous as is_synchronous,
)
from salf.methods.overselection import OverSelection as OverSelection
from salf.methods.salf import Salf as Salf
from salf.methods.salfplus import SalfPlus as SalfPlus
from salf.methods.schedules import (
    RoundSchedule as RoundSchedule,
    largest_workloads_by as largest_workloads_by,
    until_deadline as until_deadline,
    wait_for_first as wait_for_first,
    whole_steps_by as whole_steps_by,
)
from salf.methods.timelyfl import TimelyFL as TimelyFL
from salf.registry import Choice, Registry

_OTHERS = (FedAvg, DropStragglers, OverSelection, FedProx, FedNova, HeteroFL, TimelyFL, FedAsync, FedBuff)
_LAYER_WISE = (Salf, AdelFL, ReachingDeeper, Remembering, SalfPlus)

METHODS: Registry[SynchronousMethod | AsynchronousMethod] = Registry(
    (SynchronousMethod, AsynchronousMethod), (*_OTHERS, *_LAYER_WISE), what="method", tag="name", group="salf.methods"
)
AnyMethod = Annotated[SynchronousMethod | AsynchronousMethod, Choice(METHODS)]
