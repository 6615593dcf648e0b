"""What validated values share, without torch.

Array types, field types, the decorator of validated dataclasses with the wording of its errors, and layer costs.
"""

from salf.values.fields import (
    STRICT as STRICT,
    Count as Count,
    Floats as Floats,
    Fraction as Fraction,
    Ints as Ints,
    NonNegative as NonNegative,
    Positive as Positive,
    validated as validated,
)
from salf.values.layer_costs import LayerCosts as LayerCosts
from salf.values.wording import (
    allowed_by as allowed_by,
    clause as clause,
    did_you_mean as did_you_mean,
    one_of as one_of,
    written as written,
)
