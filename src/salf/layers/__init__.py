"""The layers of a model: which parameters form them, in which order they complete, and what they cost to train.

`find_layers` reads a model's modules and, given an example batch, observes one backward pass. `measure_costs` and
`measure_passing` count floating-point operations per layer.
"""

from salf.layers.buffers import (
    BufferKind as BufferKind,
    is_continuous as is_continuous,
    is_unchanged as is_unchanged,
    must_not_change as must_not_change,
    stays_finite as stays_finite,
)
from salf.layers.costs import measure_costs as measure_costs, measure_passing as measure_passing
from salf.layers.find import Layer as Layer, Layers as Layers, find_layers as find_layers
from salf.layers.probe import Example as Example, tensors_in as tensors_in, twin_of as twin_of
from salf.layers.wrappers import sharding_problems as sharding_problems, unwrapped as unwrapped
