"""What validated values share: array types, field types, the dataclass decorator and the registry. No torch."""

from salf.values.arrays import Floats as Floats
from salf.values.arrays import Ints as Ints
from salf.values.fields import STRICT as STRICT
from salf.values.fields import Count as Count
from salf.values.fields import Fraction as Fraction
from salf.values.fields import NonNegative as NonNegative
from salf.values.fields import Positive as Positive
from salf.values.fields import validated as validated
from salf.values.layer_costs import LayerCosts as LayerCosts
from salf.values.registry import Choice as Choice
from salf.values.registry import ExtensionWarning as ExtensionWarning
from salf.values.registry import Registry as Registry
