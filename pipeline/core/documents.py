"""JSON as the steps and the commands write it: without NaN and infinity, which JSON does not have, and whole."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import NotFinite


def to_json(value: Any, **options: Any) -> str:
    """Return ``value`` as JSON; ``options`` are those of ``json.dumps``. Raises NotFinite, which names the place."""
    for place, number in _not_finite(value):
        raise NotFinite(
            f"{place} is {number}, expected was a finite number: JSON has no other, so nothing is written; look in "
            "the log for what has made it"
        )
    return json.dumps(value, allow_nan=False, **options)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` as JSON in ASCII, whole or not at all. Raises NotFinite, which names the file."""
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
