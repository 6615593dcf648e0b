"""The terms of a federation: everything that its owner decides."""

import math
from dataclasses import dataclass

from flwr.serverapp.strategy import Strategy

from salf.aggregation import Centre, ClippedLayers, Rule, check_rule
from salf.errors import InvalidSetting
from salf.flower.server.composition import check_composition, needs_whole_replies
from salf.flower.server.deadlines import RoundDeadline
from salf.flower.wire import CountedFrom
from salf.layers import Layers


@dataclass(frozen=True)
class StrategyConfig:
    """What `SalfStrategy` was given, checked; see there. Raises `InvalidSetting` for what cannot work."""

    strategy: Strategy
    deadline: RoundDeadline
    layers: Layers
    rule: Rule
    robust: ClippedLayers | Centre | None
    grace_seconds: float
    counted_from: CountedFrom
    max_change: float
    whole_replies: bool
    poll_seconds: float

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Layers):
            raise InvalidSetting(f"layers is a {type(self.layers).__name__}; give salf.find_layers(model, example)")
        if not isinstance(self.rule, Rule):
            raise InvalidSetting(f"rule is {self.rule!r}; give a rule, such as salf.Corrected()")
        if self.robust is not None and not isinstance(self.robust, (ClippedLayers, Centre)):
            raise InvalidSetting(f"robust is {self.robust!r}; give ClippedLayers(max_norm), Median() or TrimmedMean()")
        if self.counted_from not in ("message", "loop"):
            raise InvalidSetting(f"counted_from is {self.counted_from!r}; give 'message' or 'loop'")
        for name in ("grace_seconds", "max_change", "poll_seconds"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not value > 0 or (value == math.inf and name != "max_change"):
                raise InvalidSetting(f"{name} is {value!r}; give a number above 0")
        check_composition(self.strategy, self.rule, self.robust)
        if isinstance(self.robust, Centre):
            check_rule(self.rule, self.robust)

    @property
    def asks_for_whole_replies(self) -> bool:
        """Whether replies name every array, those of layers that were not reached unchanged."""
        return self.whole_replies or needs_whole_replies(self.strategy)
