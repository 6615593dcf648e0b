"""The fused engine: all clients of a round in one forward and one backward pass.

`FusedEngine` traces a model (`tracing`), computes chains of known operations by hand (`chain`) and other models with
results in two parts (`nested`). `use_fast_pooling` replaces slow max pooling.
"""

from salf.engines.fused.engine import FusedEngine as FusedEngine
from salf.engines.fused.pooling import use_fast_pooling as use_fast_pooling
