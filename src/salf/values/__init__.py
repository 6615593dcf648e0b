"""What validated values share, without torch.

Array types, field types, the decorator of validated dataclasses with the wording of its errors, and layer costs.
"""

from salf.values.fields import STRICT as STRICT
from salf.values.fields import Count as Count
from salf.values.fields import Floats as Floats
from salf.values.fields import Fraction as Fraction
from salf.values.fields import Ints as Ints
from salf.values.fields import NonNegative as NonNegative
from salf.values.fields import Positive as Positive
from salf.values.fields import validated as validated
from salf.values.layer_costs import LayerCosts as LayerCosts
from salf.values.wording import allowed_by as allowed_by
from salf.values.wording import clause as clause
from salf.values.wording import did_you_mean as did_you_mean
from salf.values.wording import one_of as one_of
from salf.values.wording import written as written
