"""Running sums of one layer, to which single updates and sums of several are added in any order."""

import torch
from hypothesis import given, settings, strategies as st

from salf.aggregation.sums import LayerSum, PartialSum

_NUMBERS = st.floats(-8, 8, width=16)
# What is added: whether it is the sum of several updates, its two values, and what they are multiplied by.
_ADDED = st.tuples(st.booleans(), st.tuples(_NUMBERS, _NUMBERS), st.sampled_from([-2.0, 0.25, 1.0, 3.0]))


@settings(deadline=None)
@given(added=st.lists(_ADDED, min_size=1, max_size=6))
def test_what_is_added_counts_by_its_own_scale(added: list[tuple[bool, tuple[float, float], float]]) -> None:
    running, expected = LayerSum(), torch.zeros(2, dtype=torch.float64)
    for several, values, scale in added:
        delta = torch.tensor(values, dtype=torch.float64)
        expected += scale * delta
        if several:
            running.add_total(PartialSum(2, 2.0, 2.0, {"weight": delta}, scale=scale))
        else:
            running.add({"weight": delta}, scale, weight=1.0, steps=1.0)
    assert torch.equal(running.scale * running.deltas["weight"], expected)
    assert running.contributors == sum(1 + several for several, _, _ in added)
    assert running.weight == running.weighted_steps == running.contributors
