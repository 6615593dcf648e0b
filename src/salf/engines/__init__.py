"""The engines, which compute the training of a round's clients: plain, fused and stacked.

All give the same numbers. `choose_engine` returns the fastest that suits a `Training`, after comparing it with the
plain engine on a few clients.
"""

from salf.engines.accelerator import (
    CPU as CPU,
    DEVICE_NAMES as DEVICE_NAMES,
    find_device as find_device,
    fork_rng as fork_rng,
    is_device_name as is_device_name,
    title_of as title_of,
    wait_for as wait_for,
)
from salf.engines.choice import EngineName as EngineName, choose_engine as choose_engine
from salf.engines.fused import use_fast_pooling as use_fast_pooling
from salf.engines.fused.engine import FusedEngine as FusedEngine
from salf.engines.plain import PlainEngine as PlainEngine
from salf.engines.stacked import StackedEngine as StackedEngine
from salf.engines.tasks import (
    ClientTask as ClientTask,
    Engine as Engine,
    Loss as Loss,
    OptimizerSettings as OptimizerSettings,
    Tasks as Tasks,
    Training as Training,
    cross_entropy_of as cross_entropy_of,
    train_round as train_round,
)
