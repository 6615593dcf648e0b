"""Which Flower strategies can be wrapped, and what they still do to the aggregated model.

The layer-wise mean replaces a strategy's own mean over replies. What a strategy does to that mean, such as a step of a
server optimizer, it still does: it receives the aggregated model as if that were the only reply of the round.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping as FixedClipping,
    FedAvg,
    FedAvgM,
    Strategy,
)
from torch import Tensor

from salf.aggregation import Centre, ClippedLayers, Rule, Weigh
from salf.errors import InvalidSetting, check_type
from salf.flower.wire import NUM_EXAMPLES, from_record, to_record
from salf.layers import Layer, Layers
from salf.update import all_finite

_ROBUST = "it compares whole replies, but would receive their layer-wise mean; use {strategy} with robust={remedy}"
_MEDIAN = _ROBUST.format(strategy="FedAvg()", remedy="Median()")
_TRIMMED_MEAN = _ROBUST.format(strategy="FedAvg()", remedy="TrimmedMean()")
_TREES = "it trains trees, which have no layers; train a neural network"
_SERVER_CLIPPING = (
    "it clips whole replies on the server; use DifferentialPrivacyClientSideFixedClipping with fixedclipping_mod, or "
    "robust=ClippedLayers(max_norm) for a bound without a guarantee of privacy"
)
_REFUSED: dict[type[Strategy], str] = {
    flower.FedMedian: _MEDIAN,
    flower.FedTrimmedAvg: _TRIMMED_MEAN,
    flower.Bulyan: _TRIMMED_MEAN,
    flower.Krum: _MEDIAN,
    flower.MultiKrum: _MEDIAN,
    flower.QFedAvg: "it weighs each whole reply by its loss; use FedAvg",
    flower.FedXgbBagging: _TREES,
    flower.FedXgbCyclic: _TREES,
    flower.DifferentialPrivacyServerSideFixedClipping: _SERVER_CLIPPING,
    flower.DifferentialPrivacyServerSideAdaptiveClipping: _SERVER_CLIPPING,
    flower.DifferentialPrivacyClientSideAdaptiveClipping: (
        "it learns its clipping norm from every whole reply; use DifferentialPrivacyClientSideFixedClipping"
    ),
}


def check_composition(strategy: object, rule: Rule, robust: ClippedLayers | Centre | None, weigh: Weigh) -> None:
    """Raise `InvalidSetting` if a strategy cannot be wrapped.

    Args:
        strategy: What the user wants to wrap.
        rule: The aggregation rule; privacy noise fits only the mean over all sampled clients.
        robust: The robust aggregation, if any.
        weigh: What a client weighs by within a layer.
    """
    check_type("strategy", strategy, Strategy, "a strategy of flwr.serverapp.strategy, such as FedAvg()")
    kind = type(strategy).__name__
    for refused, reason in _REFUSED.items():
        if isinstance(strategy, refused):
            raise InvalidSetting(f"{kind} cannot be wrapped: {reason}")
    if not isinstance(strategy, FixedClipping):
        return
    check_composition(strategy.strategy, rule, robust, weigh)
    if strategy.accountant is not None:
        raise InvalidSetting(f"{kind} has an accountant, which counts whole replies; leave the accountant out")
    if not rule.limits_influence or isinstance(robust, Centre) or weigh != "clients":
        raise InvalidSetting(
            f"{kind} adds noise for a mean over all sampled clients, in which one client weighs 1/n. In a mean over a "
            "layer's contributors, or over examples, a client may weigh more, and the noise would be too small; use "
            "rule=Everyone() with weigh='clients'"
        )


def needs_whole_replies(strategy: Strategy) -> bool:
    """Return whether a strategy's client mods compare a reply with the message array by array."""
    return isinstance(strategy, FixedClipping)


def innermost_strategy(strategy: Strategy) -> Strategy:
    """Return the strategy inside all wrappers.

    >>> innermost_strategy(FixedClipping(FedAvgM(), 1.0, 1.0, 2)).__class__.__name__
    'FedAvgM'
    """
    inner = getattr(strategy, "strategy", None)
    return innermost_strategy(inner) if isinstance(inner, Strategy) else strategy


def weight_key(strategy: Strategy) -> str | None:
    """Return the name of the metric by which a strategy weighs replies; None if it does not say."""
    averaging = innermost_strategy(strategy)
    return averaging.weighted_by_key if isinstance(averaging, FedAvg) else None


@dataclass(frozen=True)
class AggregatedRound:
    """The layer-wise mean of a round, before the wrapped strategy does its part.

    Attributes:
        number: The round's number.
        message: One of the messages of the round.
        before: The global model that was sent.
        after: The aggregated model.
        layers: The layers of the model.
        metrics: The metrics of the clients.
    """

    number: int
    message: Message
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    layers: Layers
    metrics: MetricRecord

    def finish(self, strategy: Strategy) -> tuple[dict[str, Tensor], MetricRecord]:
        """Let a strategy do its part, and return the new model and the metrics.

        Layers that did not move and buffers stay as they were aggregated. So does a layer that the strategy makes
        infinite or NaN.
        """
        state, metrics = dict(self.after), self.metrics
        if isinstance(strategy, FedAvg) and type(strategy).aggregate_train is FedAvg.aggregate_train:
            return state, metrics  # it only averages
        weighted = MetricRecord({**metrics, weight_key(strategy) or NUM_EXAMPLES: 1})
        content = RecordDict({"arrays": to_record(self.after), "metrics": weighted})
        arrays, changed = strategy.aggregate_train(self.number, [Message(content, reply_to=self.message)])
        if arrays is not None:
            state |= self._usable(from_record(arrays))
            state |= {alias: state[first] for alias, first in self.layers.aliases.items() if alias in state}
        if isinstance(strategy, FedAvgM) and strategy.server_opt:
            strategy.current_arrays = to_record(state)  # its next step starts here
        return state, metrics if changed is None else changed

    def _usable(self, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters that a strategy made, of layers that moved and are finite."""
        usable: dict[str, Tensor] = {}
        for layer in filter(self._moved, self.layers):
            tensors = {name: made[name].to(self.before[name].dtype) for name in layer.parameters if name in made}
            fits = all(tensor.shape == self.before[name].shape for name, tensor in tensors.items())
            if fits and all_finite([*tensors.values()]):
                usable |= tensors
        return usable

    def _moved(self, layer: Layer) -> bool:
        return any(not self.before[name].equal(self.after[name]) for name in layer.parameters)
