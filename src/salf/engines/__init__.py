"""How the training of a round's clients is computed."""

from salf.engines.choice import EngineName as EngineName
from salf.engines.choice import Training as Training
from salf.engines.choice import choose_engine as choose_engine
from salf.engines.fused import FusedEngine as FusedEngine
from salf.engines.plain import PlainEngine as PlainEngine
from salf.engines.stacked import StackedEngine as StackedEngine
from salf.engines.task import ClientTask as ClientTask
from salf.engines.task import Engine as Engine
from salf.engines.task import Optimisation as Optimisation
from salf.engines.task import Tasks as Tasks
from salf.engines.task import train_round as train_round
