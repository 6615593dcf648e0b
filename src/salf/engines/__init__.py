"""The engines, which compute the training of a round's clients: plain, fused and stacked.

All give the same numbers. `choose_engine` returns the fastest that suits a `Training`, after comparing it with the
plain engine on a few clients.
"""

from salf.engines.accelerator import CPU as CPU
from salf.engines.accelerator import DEVICE_NAMES as DEVICE_NAMES
from salf.engines.accelerator import draw_states as draw_states
from salf.engines.accelerator import find_device as find_device
from salf.engines.accelerator import fork_rng as fork_rng
from salf.engines.accelerator import is_device_name as is_device_name
from salf.engines.accelerator import title_of as title_of
from salf.engines.accelerator import wait_for as wait_for
from salf.engines.choice import EngineName as EngineName
from salf.engines.choice import choose_engine as choose_engine
from salf.engines.fused import use_fast_pooling as use_fast_pooling
from salf.engines.fused.engine import FusedEngine as FusedEngine
from salf.engines.plain import PlainEngine as PlainEngine
from salf.engines.stacked import StackedEngine as StackedEngine
from salf.engines.tasks import ClientTask as ClientTask
from salf.engines.tasks import Engine as Engine
from salf.engines.tasks import Loss as Loss
from salf.engines.tasks import OptimizerSettings as OptimizerSettings
from salf.engines.tasks import Tasks as Tasks
from salf.engines.tasks import Training as Training
from salf.engines.tasks import add_each as add_each
from salf.engines.tasks import cross_entropy_of as cross_entropy_of
from salf.engines.tasks import train_round as train_round
