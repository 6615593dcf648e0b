"""TODO."""

from salf.engines.fused.engine import FusedEngine as FusedEngine
from salf.engines.fused.pooling import use_fast_pooling as use_fast_pooling
