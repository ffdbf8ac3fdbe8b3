import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import HyperparametersInvalid
from pipeline.core.options import parse, parse_thresholds
from pipeline.models.jukebox import MODEL
from pipeline.models.jukebox.network import JukeboxHyperparameters

DEFAULTS = JukeboxHyperparameters()
CHECK = MODEL.checks[0].name


def test_nothing_given_is_two_epochs_of_the_usual() -> None:
    assert parse(DEFAULTS, {}) == DEFAULTS
    assert DEFAULTS.epochs == 2


def test_whole_numbers_may_come_as_floats_as_kubeflow_hands_them_over() -> None:
    found = parse(DEFAULTS, {"epochs": 2.0, "hidden_layers": [64.0, 32.0], "seed": 7.0})
    assert (found.epochs, found.hidden_layers, found.seed) == (2, [64, 32], 7)
    assert isinstance(found.epochs, int)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 2.5}, "epochs: found 2.5, "),
        ({"epochs": 0}, "epochs: found 0, input should be greater than or equal to 1"),
        ({"epochs": -3}, "epochs: found -3, "),
        ({"epochs": 10_001}, "epochs: found 10001, input should be less than or equal to 10000"),
        ({"epochs": "two"}, "epochs: found 'two', input should be a valid integer"),
        ({"epochs": None}, "epochs: found None, "),
        ({"batch_size": 0}, "batch_size: found 0, "),
        ({"learning_rate": 0}, "learning_rate: found 0, "),
        ({"learning_rate": 1.5}, "learning_rate: found 1.5, "),
        ({"learning_rate": float("nan")}, "learning_rate: found nan, "),
        ({"hidden_layers": [64, 0]}, "hidden_layers.1: found 0, "),
        ({"hidden_layers": 64}, "hidden_layers: found 64, input should be a valid list"),
        ({"hidden_layers": [8] * 17}, "hidden_layers: found [8, 8, "),
        ({"dropout": 1}, "dropout: found 1, input should be less than 1"),
        ({"patience": 0}, "patience: found 0, "),
        ({"seed": -1}, "seed: found -1, "),
        ({"seed": 2**31}, "seed: found 2147483648, "),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_value_outside_its_range_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HyperparametersInvalid, match=re.escape(f"hyperparameters: {message}")):
        parse(DEFAULTS, values)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "high", None, True], ids=str)
def test_a_threshold_that_is_not_a_number_is_named(value: Any) -> None:
    with pytest.raises(HyperparametersInvalid, match=f"thresholds: {CHECK}: found .*, expected a finite number"):
        parse_thresholds(MODEL, {CHECK: value})


def test_a_threshold_takes_the_place_of_the_models() -> None:
    found = {check.name: check.threshold for check in parse_thresholds(MODEL, {CHECK: 1})}
    assert found == {check.name: check.threshold for check in MODEL.all_checks} | {CHECK: 1.0}


@pytest.mark.parametrize(
    ("call", "known"),
    [
        (partial(parse, DEFAULTS), [*type(DEFAULTS).model_fields]),
        (partial(parse_thresholds, MODEL), [check.name for check in MODEL.all_checks]),
    ],
    ids=["hyperparameters", "thresholds"],
)
def test_an_unknown_key_is_named_with_the_known_ones(call: Callable[[dict[str, Any]], Any], known: list[str]) -> None:
    with pytest.raises(HyperparametersInvalid) as raised:
        call({"epoch": 2})
    assert "epoch: found 2, which is not a known" in str(raised.value)
    for name in known:
        assert name in str(raised.value)


def test_all_wrong_keys_are_named_at_once() -> None:
    with pytest.raises(HyperparametersInvalid) as raised:
        parse(DEFAULTS, {"epochs": 0, "dropout": 2, "optimizer": "sgd", "seed": 3})
    message = str(raised.value)
    assert "epochs: found 0" in message
    assert "dropout: found 2" in message
    assert "optimizer: found 'sgd'" in message
    assert "seed: " not in message


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(1, 10_000),
            "batch_size": st.integers(1, 1_000_000),
            "learning_rate": st.floats(1e-9, 1),
            "hidden_layers": st.lists(st.integers(1, 8192), max_size=16),
            "dropout": st.floats(0, 1, exclude_max=True),
            "patience": st.integers(min_value=1),
            "seed": st.integers(0, 2**31 - 1),
        },
    )
)
def test_what_is_in_range_is_taken_as_it_is(values: dict[str, Any]) -> None:
    assert parse(DEFAULTS, values).model_dump() == DEFAULTS.model_dump() | values
