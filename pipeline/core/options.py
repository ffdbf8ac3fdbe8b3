"""The options of a run, checked before anything costly starts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.core.contract import Model, Options
from pipeline.core.errors import HyperparametersInvalid
from pipeline.core.kinds import Check

# A model that fails stops the run, is only reported, or is not judged.
GATE_MODES = ("enforce", "warn", "off")

O = TypeVar("O", bound=Options)  # noqa: E741 - the type of the options


def parse(defaults: O, values: Mapping[str, Any]) -> O:
    """Return ``defaults`` with these values; raises HyperparametersInvalid that names every wrong key."""
    try:
        return type(defaults).model_validate({**defaults.model_dump(), **values})
    except ValidationError as error:
        known = ", ".join(type(defaults).model_fields)
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: found {e['input']!r}, "
            + (f"which is not a known key (known: {known})" if e["type"] == "extra_forbidden" else e["msg"].lower())
            for e in error.errors()
        )
        raise HyperparametersInvalid(f"hyperparameters: {wrong}") from None


def parse_thresholds(model: Model, values: Mapping[str, Any]) -> Sequence[Check]:
    """Return the model's checks with these thresholds, by the checks' names.

    Raises HyperparametersInvalid that names every wrong key.
    """
    known = {check.name: check for check in model.all_checks}
    wrong = [
        f"{name}: found {value!r}, "
        + ("expected a finite number" if name in known else f"which is not a known check (known: {', '.join(known)})")
        for name, value in values.items()
        if name not in known or not _is_number(value)
    ]
    if wrong:
        raise HyperparametersInvalid(f"thresholds: {'; '.join(wrong)}")
    return [check.with_threshold(float(values[name])) if name in values else check for name, check in known.items()]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
