"""The documents of the steps: their types, and writing them as JSON, atomically and without NaN and infinity."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from pipeline.core.errors import NotFinite

# ``rows``, ``examples``, and each metric by its name, with ``<name>_interval`` if it has one: [low, high], 95 %.
Scores = Mapping[str, Any]
# By the name of a test split, or "all"; None: it has no rows.
ScoresOfSplits = Mapping[str, Scores | None]


class Encoded(TypedDict):
    """How a column becomes features, see ``encoders.fit``."""

    column: str
    unit: str
    derived: str
    encoder: str
    parameters: Mapping[str, Any]
    features: list[str]


class Size(TypedDict):
    """The size of a split, and its days in ISO 8601, if it has days."""

    examples: int
    rows: int
    first_day: str | None
    last_day: str | None


class Preprocessing(TypedDict):
    """preprocess_data's description of the splits: preprocessing.json."""

    features: list[str]
    labels: list[str]
    encoding: list[Encoded]
    mean: list[float]
    variance: list[float]
    offset: list[float]
    factor: list[float]
    splits: dict[str, Size]


class Evaluation(TypedDict):
    """The results of evaluate_model: evaluation.json.

    Args:
        labels: names of the outputs.
        model: of the model.
        baseline: of the baseline.
        champion: those of the champion by split; ``version``; ``is_best``; ``model``, the ScoresOfSplits of the model
            on the same rows; ``rows_left_out``; ``only_model`` and ``only_champion``, labels; ``difference``, the
            ``value`` and the paired ``interval`` of the model's less the champion's primary ``metric`` on all of them.
        served: the same of the version that production serves; None if there is none, if it is the champion, or if the
            two were not compared.
        not_compared: why the model was not compared; "" if it was, or if there was no champion.
        served_not_compared: likewise for the version that production serves.
        damaged: a sentence for each version that is damaged.
        slices: by the name of a slice, Scores with the ``value`` that they are of.
        figures: what the kind draws.
    """

    labels: list[str]
    model: ScoresOfSplits
    baseline: ScoresOfSplits
    champion: Mapping[str, Any] | None
    served: Mapping[str, Any] | None
    not_compared: str
    served_not_compared: str
    damaged: list[str]
    slices: Mapping[str, Sequence[Scores]]
    figures: Mapping[str, Any]


class CheckResult(TypedDict):
    """The result of a check of the gate: ``value`` is None if it is not defined, ``where`` "" for all test rows.

    ``against`` is what the model was compared with, see ``Check``.
    """

    name: str
    value: float | None
    interval: list[float] | None
    comparison: str
    threshold: float
    passed: bool
    where: str
    against: str
    description: str


class Compared(TypedDict):
    """The version that a model was to be compared with, see ``champion.Champion``, and whether it was."""

    version: int
    is_best: bool
    compared: bool


class ServedCompared(TypedDict):
    """The version that production serves, and whether the model was compared with it."""

    version: int
    compared: bool


class Verdict(TypedDict):
    """What the gate decided: verdict.json; see ``evaluate_model.judge``."""

    passed: bool
    mode: str
    checks: list[CheckResult]
    summary: str
    champion: Compared | None
    served: ServedCompared | None
    champion_version: str
    thresholds: Mapping[str, float]


def to_json(value: Any, **options: Any) -> str:
    """Return ``value`` as JSON; ``options`` are those of ``json.dumps``. Raises NotFinite, which names the place."""
    for place, number in _not_finite(value):
        raise NotFinite(
            f"{place} is {number}, expected a finite number: JSON has no others, so nothing is written; see the "
            "log for the cause"
        )
    return json.dumps(value, allow_nan=False, **options)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as JSON in ASCII, atomically. Raises NotFinite, which names the file."""
    try:
        text = to_json(value, indent=1)
    except NotFinite as error:
        raise NotFinite(f"{path.name}: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="ascii")
    unfinished.replace(path)


def log_metrics(artifact: Any, metrics: Mapping[str, float]) -> None:
    """Hand ``metrics`` to Kubeflow in its Metrics ``artifact``. Raises NotFinite: its server refuses such a step."""
    to_json(metrics)
    for name, value in metrics.items():
        artifact.log_metric(name, value)


def _not_finite(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield place or "the value", value
    elif isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _not_finite(inner, f"{place}.{key}" if place else str(key))
