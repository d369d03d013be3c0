"""Checks of options: what is refused is named, with what was expected and the nearest choice."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from seedregistry import InvalidOptionError
from seedregistry.common.options import (
    NOT_GIVEN,
    check_choice,
    check_count,
    did_you_mean,
    join_choices,
)


@pytest.mark.parametrize("value", [0, 7, 2**70, np.int64(7), np.uint8(7)])
def test_a_count_is_an_int(value):
    """An int of python or NumPy is taken, and comes back as python's."""
    assert check_count(value, "batch_size") == value
    assert type(check_count(value, "batch_size")) is int


@pytest.mark.parametrize(
    "value",
    [True, False, -1, 1.0, "7", None, np.float64(1), np.bool_(True), torch.tensor(7), float("nan")],
)
def test_what_is_no_count_is_refused(value):
    """A bool, a float, a tensor and a number that is too small are refused by value and type."""
    with pytest.raises(InvalidOptionError, match=r"^batch_size must be an int >= 0; got ") as error:
        check_count(value, "batch_size")
    assert repr(value) in str(error.value)
    assert type(value).__name__ in str(error.value)


def test_the_least_count():
    """The smallest number that is accepted is, and the one below it is not."""
    assert check_count(2, "subsets", least=2) == 2
    with pytest.raises(InvalidOptionError, match="subsets must be an int >= 2; got 1"):
        check_count(1, "subsets", least=2)


def test_a_choice():
    """One of the choices is accepted; anything else is refused with all of them."""
    check_choice("warn", "deterministic", ("off", "warn"))
    for value in ("WARN", "worn", "", None, 1, ["off"], {}):
        with pytest.raises(InvalidOptionError) as error:
            check_choice(value, "deterministic", ("off", "warn"), hint=", or None")
        message = f"deterministic must be one of 'off', 'warn', or None; got {value!r}."
        assert str(error.value).startswith(message)
        assert ("Did you mean 'warn'?" in str(error.value)) == (value in ("WARN", "worn"))


def test_the_nearest_choice():
    """A name that is near is offered, whatever the order of the choices, and none that is far."""
    assert did_you_mean("optimiser", {"optimizer", "model"}) == " Did you mean 'optimizer'?"
    assert did_you_mean("optimiser", ["model"]) == ""
    assert did_you_mean("", []) == ""
    assert join_choices(["b", 1]) == "'b', 1"


def test_what_nobody_passed_is_one_object():
    """The sentinel is itself after a copy, a deep copy and in another process."""
    assert copy.copy(NOT_GIVEN) is NOT_GIVEN
    assert copy.deepcopy([NOT_GIVEN])[0] is NOT_GIVEN
    assert pickle.loads(pickle.dumps(NOT_GIVEN)) is NOT_GIVEN
    assert repr(NOT_GIVEN) == "<not given>"
