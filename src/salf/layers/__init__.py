"""TODO."""

from salf.layers.costs import measure_costs as measure_costs
from salf.layers.costs import measure_passing as measure_passing
from salf.layers.find import Layer as Layer
from salf.layers.find import Layers as Layers
from salf.layers.find import find_layers as find_layers
