"""Which Flower strategies can be wrapped, and what they still do to the aggregated model.

The layer-wise mean takes the place of a strategy's own mean over replies. What a strategy does to that mean afterwards,
such as a step of a server optimizer or adding noise, it still does: it is handed the aggregated model as if that were
the one reply of the round.
"""

from collections.abc import Mapping

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from torch import Tensor

from salf.aggregation import Centre, ClippedLayers, Everyone, Rule
from salf.errors import InvalidSetting
from salf.flower.wire import NUM_EXAMPLES, from_record, to_record
from salf.layers import Layer, Layers
from salf.update import all_finite

_ROBUST = "it compares whole replies with each other, and is given their layer-wise mean; use robust={remedy} instead"
_SERVER_CLIPPING = (
    "it clips whole replies on the server; use DifferentialPrivacyClientSideFixedClipping with fixedclipping_mod, or "
    "robust=ClippedLayers(max_norm) for a bound without a guarantee of privacy"
)
_REFUSED: dict[type[Strategy], str] = {
    FedMedian: _ROBUST.format(remedy="Median()"),
    FedTrimmedAvg: _ROBUST.format(remedy="TrimmedMean()"),
    Bulyan: _ROBUST.format(remedy="TrimmedMean()"),
    Krum: _ROBUST.format(remedy="Median()"),
    MultiKrum: _ROBUST.format(remedy="Median()"),
    QFedAvg: "it weighs each whole reply by its loss; use FedAvg",
    FedXgbBagging: "it trains trees, which have no layers",
    FedXgbCyclic: "it trains trees, which have no layers",
    DifferentialPrivacyServerSideFixedClipping: _SERVER_CLIPPING,
    DifferentialPrivacyServerSideAdaptiveClipping: _SERVER_CLIPPING,
    DifferentialPrivacyClientSideAdaptiveClipping: (
        "it learns its clipping norm from every whole reply; use DifferentialPrivacyClientSideFixedClipping"
    ),
}


def check_composition(strategy: object, rule: Rule, robust: ClippedLayers | Centre | None) -> None:
    """Raise `InvalidSetting`, with the reason and the remedy, for a strategy that cannot be wrapped."""
    if not isinstance(strategy, Strategy):
        raise InvalidSetting(f"strategy is {strategy!r}; give a strategy of flwr.serverapp.strategy, such as FedAvg()")
    kind = type(strategy).__name__
    for refused, reason in _REFUSED.items():
        if isinstance(strategy, refused):
            raise InvalidSetting(f"{kind} cannot be wrapped: {reason}")
    if not isinstance(strategy, DifferentialPrivacyClientSideFixedClipping):
        return
    check_composition(strategy.strategy, rule, robust)
    if strategy.accountant is not None:
        raise InvalidSetting(f"{kind} cannot be wrapped with an accountant: it counts whole replies; leave it out")
    if type(rule) is not Everyone or rule.weight_by_examples or rule.normalise or isinstance(robust, Centre):
        raise InvalidSetting(
            f"{kind} adds noise for a mean over all sampled clients, in which one client weighs 1/n; in a mean over a "
            "layer's contributors it weighs more, and the noise would be too small: use rule=Everyone()"
        )


def needs_whole_replies(strategy: Strategy) -> bool:
    """Say whether the clients' mods of a strategy compare a reply with the message array by array."""
    return isinstance(strategy, DifferentialPrivacyClientSideFixedClipping)


def release(
    strategy: Strategy,
    number: int,
    asked: Message,
    before: Mapping[str, Tensor],
    aggregated: Mapping[str, Tensor],
    layers: Layers,
    metrics: MetricRecord,
) -> tuple[dict[str, Tensor], MetricRecord]:
    """Return the round's new model and metrics, after `strategy` has done its part to the layers that moved.

    `asked` is one of the round's messages. Layers that did not move, buffers, and what a strategy would make infinite
    or NaN stay as they were aggregated.
    """
    state = dict(aggregated)
    if _only_averages(strategy):
        return state, metrics
    averaging = innermost(strategy)
    key = averaging.weighted_by_key if isinstance(averaging, FedAvg) else NUM_EXAMPLES
    content = RecordDict({"arrays": to_record(aggregated), "metrics": MetricRecord({**metrics, key: 1})})
    arrays, changed = strategy.aggregate_train(number, [Message(content, reply_to=asked)])
    if arrays is not None:
        made = from_record(arrays)
        for layer in _moved(layers, before, aggregated):
            tensors = {name: made[name].to(before[name].dtype) for name in layer.parameters if name in made}
            if all(tensor.shape == before[name].shape for name, tensor in tensors.items()) and all_finite(
                [*tensors.values()]
            ):
                state |= tensors
        state |= {alias: state[first] for alias, first in layers.aliases.items() if alias in state}
    if isinstance(strategy, FedAvgM) and strategy.server_opt:
        strategy.current_arrays = to_record(state)  # from which its next step begins
    return state, metrics if changed is None else changed


def _moved(layers: Layers, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Layer]:
    return [layer for layer in layers if any(not before[name].equal(after[name]) for name in layer.parameters)]


def _only_averages(strategy: Strategy) -> bool:
    return isinstance(strategy, FedAvg) and type(strategy).aggregate_train is FedAvg.aggregate_train


def innermost(strategy: Strategy) -> Strategy:
    """Return the strategy that others wrap, in the end."""
    inner = getattr(strategy, "strategy", None)
    return innermost(inner) if isinstance(inner, Strategy) else strategy
