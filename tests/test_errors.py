"""Errors and the checks of arguments."""

import pickle

import pytest
from language import problems_of

from salf.errors import InvalidSetting, SalfError, UnsuitableModel, check_count, check_non_negative, check_positive


@pytest.mark.parametrize(
    "error", [InvalidSetting("seed is -1; choose 0"), UnsuitableModel("Net", ["empty; add a layer"])]
)
def test_errors_survive_pickling(error: SalfError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


def test_a_wrong_setting_is_a_value_error_too() -> None:
    assert issubclass(InvalidSetting, ValueError)


@pytest.mark.parametrize("value", [0, -1.5, True, "1", None, float("nan"), float("inf"), 10**400])
def test_what_is_no_positive_number_is_refused(value: object) -> None:
    with pytest.raises(InvalidSetting, match=r"^seconds is .*; choose a (finite )?number greater than 0$") as caught:
        check_positive("seconds", value)
    assert not problems_of(str(caught.value))


@pytest.mark.parametrize("value", [1, 0.5, 1e300])
def test_positive_numbers_pass(value: object) -> None:
    check_positive("seconds", value)
    check_positive("seconds", float("inf"), finite=False)
    check_non_negative("seconds", 0)


@pytest.mark.parametrize("value", [0, 1.0, True, None])
def test_what_is_no_count_is_refused(value: object) -> None:
    with pytest.raises(InvalidSetting, match=r"; choose a whole number of at least 1$"):
        check_count("rounds", value)
