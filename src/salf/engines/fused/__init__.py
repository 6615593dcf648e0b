"""TODO."""

from salf.engines.fused.engine import FusedEngine as FusedEngine
from salf.engines.fused.pooling import quicken as quicken
