"""Records of rounds as lines of JSON, and the figures that summarize them."""

import json
import math

import pytest
from hypothesis import given, strategies as st

from salf.records import RoundRecord, final_accuracy, time_to_accuracy

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def record(round: int, accuracy: float | None = None) -> RoundRecord:
    return RoundRecord(round, 2.0 * round, 2.0, 3, (1, 3), 0.5, accuracy=accuracy)


@given(
    st.builds(
        RoundRecord,
        round=st.integers(1),
        time_s=NUMBERS,
        deadline_s=st.none() | NUMBERS,
        clients=st.integers(1),
        contributors=st.lists(st.integers(0), max_size=5).map(tuple),
        work_kept=st.none() | NUMBERS,
        rejected=st.integers(0),
        accuracy=st.none() | NUMBERS,
        loss=st.none() | NUMBERS,
    )
)
def test_a_record_survives_json(known: RoundRecord) -> None:
    line = known.to_json()
    assert "\n" not in line
    assert RoundRecord.from_json(line) == known


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        RoundRecord(1, value, None, 1, (1,), None).to_json()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "null",
        "[]",
        "7",
        '"round"',
        '{"round": 1}',
        record(1).to_json()[:-1],
        json.dumps({**json.loads(record(1).to_json()), "extra": 1}),
        json.dumps({**json.loads(record(1).to_json()), "contributors": 3}),
        json.dumps({**json.loads(record(1).to_json()), "contributors": None}),
    ],
)
def test_anything_else_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"the record of a round|Expecting"):
        RoundRecord.from_json(line)


def test_time_to_accuracy_is_that_of_the_first_round_that_reaches_it() -> None:
    records = [record(1), record(2, 0.4), record(3, 0.7), record(4), record(5, 0.6), record(6, 0.9)]
    assert time_to_accuracy(records, 0.4) == 4.0
    assert time_to_accuracy(records, 0.65) == 6.0
    assert time_to_accuracy(records, 0.9) == 12.0
    assert time_to_accuracy(iter(records), 0.91) == math.inf
    assert time_to_accuracy([], 0.0) == math.inf
    assert final_accuracy(records) == 0.9
    assert final_accuracy(iter(records[:4])) == 0.7
    assert math.isnan(final_accuracy([record(1)]))
    assert math.isnan(final_accuracy([]))
