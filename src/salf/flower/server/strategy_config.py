"""What the owner of a federation decides, checked."""

from dataclasses import dataclass

from flwr.serverapp.strategy import Strategy

from salf.aggregation import Centre, ClippedLayers, Rule, check_rule
from salf.errors import InvalidSetting, check_positive, check_type, shown
from salf.flower.server.composition import check_composition, needs_whole_replies
from salf.flower.server.deadlines import RoundDeadline
from salf.flower.wire import CountedFrom
from salf.layers import Layers


@dataclass(frozen=True)
class StrategyConfig:
    """The arguments of `SalfStrategy`, which describes them.

    Raises:
        InvalidSetting: An argument has a wrong type or value, or the strategy cannot be wrapped.
    """

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
        check_type("layers", self.layers, Layers, "salf.find_layers(model, example)")
        check_type("rule", self.rule, Rule, "a rule, such as salf.Corrected()")
        robust = (ClippedLayers, Centre, type(None))
        check_type("robust", self.robust, robust, "ClippedLayers(max_norm), Median() or TrimmedMean()")
        if self.counted_from not in ("message", "loop"):
            raise InvalidSetting(f"counted_from is {shown(self.counted_from)}; choose 'message' or 'loop'")
        check_positive("grace_seconds", self.grace_seconds)
        check_positive("max_change", self.max_change, finite=False)
        check_positive("poll_seconds", self.poll_seconds)
        check_composition(self.strategy, self.rule, self.robust)
        if isinstance(self.robust, Centre):
            check_rule(self.rule, self.robust)

    @property
    def needs_whole_replies(self) -> bool:
        """Whether a reply includes every array, those of unfinished layers unchanged."""
        return self.whole_replies or needs_whole_replies(self.strategy)

    @property
    def clipping(self) -> ClippedLayers | None:
        """The bound on the norm of each client's layers, if there is one."""
        return self.robust if isinstance(self.robust, ClippedLayers) else None
