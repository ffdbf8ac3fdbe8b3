"""The record of a published version that a promotion is decided from: one line in the log of publish-model.

What proposes a version runs in another namespace than the model store's claim, and cannot mount it. So publish-model
logs what a reviewer decides from. Pushed code writes that line: it is text to show and to compare, never a proof. What
proves a version are its bytes in the store, see the command verify.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.champion import CHAMPION, SERVED
from pipeline.core.data_profile import LARGEST_DIFFERENCE, LARGEST_INDEX
from pipeline.core.documents import to_json
from pipeline.core.errors import CandidateInvalid
from pipeline.core.store import MODEL

# Characters, all of one byte. Container runtimes split a line at 16 KiB.
LONGEST = 16_000
DIGITS = 6  # of a number in the line
_LINE = re.compile(r"^candidate (\{.*)$", re.MULTILINE)
# The most shifts, whether single splits have their metrics, and the most characters of a text.
_CUTS = ((30, True, 500), (10, True, 500), (10, False, 500), (0, False, 100))


@dataclass(frozen=True)
class Candidate:
    """A published version.

    Args:
        model: its name.
        number: of the version in the store.
        sha256: of ``model.onnx``.
        version: semantic version of the model's definition.
        passed: whether it passed the gate; False: it is not served anywhere.
        prod_flag: whether it may be proposed for production.
        run: ``id``, ``name``, ``commit``, ``commit_time`` (None: not known) and ``image``.
        data: ``version``; ``tables``, by their names ``rows`` and ``sha256``; ``examples`` of each split;
            ``rows_of_examples``; ``first_day`` and ``last_day``, or None.
        checks: of the verdict, see ``documents.CheckResult``.
        summary: the verdict in words.
        metrics: by split, ``model`` and ``baseline``; ``champion`` and ``served``, or None: ``version``, ``metrics`` by
            split, and of ``model`` on the same rows if ``rows_left_out`` is not 0. If production serves the champion,
            both are the same.
        difference: for ``champion`` and ``served``, or None: ``value`` of the model's less the version's ``metric`` on
            all test rows that both know, and its paired 95 % ``interval``, which may be None; ``version``.
        parity: of each runtime, ``runtime``, ``version``, ``max_absolute``, ``max_relative``, ``decisions_changed``.
        shift: how far the data is from that of the served version, or from the champion's if that is not known, see
            ``shift_from``: ``column``, ``statistic`` (psi or mean_difference, in standard deviations), ``value``,
            ``severity`` (warning, or "" if it is within the limit); warnings first, then the largest.
        shift_from: served, champion, or "" if there is nothing to compare with.
        created: ISO 8601, UTC.
    """

    model: str
    number: int
    sha256: str
    version: str
    passed: bool
    prod_flag: bool
    run: dict[str, Any]
    data: dict[str, Any]
    checks: list[dict[str, Any]]
    summary: str
    metrics: dict[str, Any]
    difference: dict[str, Any]
    parity: list[dict[str, Any]]
    shift: list[dict[str, Any]]
    shift_from: str
    created: str


def candidate_of(lineage: Mapping[str, Any]) -> Candidate:
    """Return the record of a version that this release published, from its lineage.json."""
    model, verdict, data, beside = lineage["model"], lineage["verdict"], lineage["data"], lineage["beside"]
    champion, served = beside[CHAMPION], beside[SERVED]
    if verdict["served"] and champion and verdict["served"]["version"] == champion["version"]:
        served = champion
    shift_from = next((who for who in (SERVED, CHAMPION) if lineage["shift"][who] is not None), "")
    profile = data["profile"]
    return Candidate(
        model=model["name"],
        number=model["number"],
        sha256=lineage["sha256"][MODEL],
        version=model["version"],
        passed=verdict["passed"],
        prod_flag=model["prod_flag"],
        run={name: lineage["run"][name] for name in ("id", "name", "commit", "commit_time", "image")},
        data={
            "version": data["version"],
            "tables": {
                name: {"rows": facts["rows"], "sha256": facts["sha256"]}
                for name, facts in data.items()
                if isinstance(facts, Mapping) and "sha256" in facts
            },
            **{name: profile[name] for name in ("examples", "rows_of_examples", "first_day", "last_day")},
        },
        checks=verdict["checks"],
        summary=verdict["summary"],
        metrics={
            "model": lineage["metrics"],
            "baseline": beside["baseline"],
            CHAMPION: _metrics(champion, lineage["metrics"]),
            SERVED: _metrics(served, lineage["metrics"]),
        },
        difference={
            who: each and {"version": each["version"], **each["difference"]}
            for who, each in ((CHAMPION, champion), (SERVED, served))
        },
        parity=[{name: entry[name] for name in _Runtime.model_fields} for entry in lineage["parity"]["runtimes"]],
        shift=_shift(lineage["shift"][shift_from] if shift_from else {}),
        shift_from=shift_from,
        created=lineage["created"],
    )


def line(lineage: Mapping[str, Any]) -> str:
    """Return the line that publish-model logs of a version, at most ``LONGEST`` characters of ASCII.

    Numbers are rounded to ``DIGITS`` digits. If it would be too long, it loses the smallest shifts first, then the
    metrics of single splits, then the ends of long texts.
    """
    found = asdict(candidate_of(lineage))
    for cut in _CUTS:
        text = f"candidate {to_json(_rounded(_cut(found, *cut)), separators=(',', ':'))}"
        if len(text) <= LONGEST:
            break
    return text


def parse(log: str) -> Candidate | None:
    """Return what the last such line in a log says; None if there is none, as nothing was published.

    Raises CandidateInvalid, with what is wrong, if that line is damaged: an earlier one is of another attempt.
    """
    lines = _LINE.findall(log)
    if not lines:
        return None
    try:
        found = _Line.model_validate(json.loads(lines[-1], parse_constant=_refuse))
    except ValidationError as error:
        [first, *_] = error.errors()
        what = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        what = f"it is not valid JSON ({error})"
    else:
        return Candidate(**found.model_dump())
    raise CandidateInvalid(
        f"the log of publish-model has a damaged record of the version: {what}; expected one line, `candidate {{…}}`, "
        "as this release prints it. Start the run again, with the image of this release"
    )


def _metrics(beside: Mapping[str, Any] | None, splits: Mapping[str, Any]) -> dict[str, Any] | None:
    if beside is None:
        return None
    left_out = beside["rows_left_out"]
    return {
        "version": beside["version"],
        "rows_left_out": left_out,
        "metrics": {split: beside[split] for split in splits if split in beside},
        "model": beside["model"] if left_out else None,
    }


def _shift(quantities: Mapping[str, Mapping[str, float | None]]) -> list[dict[str, Any]]:
    found = [
        {"column": column, "statistic": statistic, "value": value, "severity": "" if abs(value) < limit else "warning"}
        for column, moved in quantities.items()
        for statistic, limit in (("psi", LARGEST_INDEX), ("mean_difference", LARGEST_DIFFERENCE))
        if (value := moved[statistic]) is not None
    ]
    return sorted(found, key=lambda entry: (not entry["severity"], -abs(entry["value"])))


def _cut(found: Mapping[str, Any], shifts: int, splits: bool, longest: int) -> dict[str, Any]:
    """The same with at most so many shifts, with the metrics of single splits or without, and with shorter texts."""
    return {
        **found,
        "shift": found["shift"][:shifts],
        "metrics": found["metrics"] if splits else _of_all(found["metrics"]),
        **{name: _shortened(found[name], longest) for name in ("summary", "checks")},
    }


def _of_all(value: Any) -> Any:
    """Metrics by split, of all splits together only."""
    if isinstance(value, dict):
        return {"all": value["all"]} if "all" in value else {key: _of_all(inner) for key, inner in value.items()}
    return value


def _shortened(value: Any, longest: int) -> Any:
    if isinstance(value, str) and len(value) > longest:
        return value[: longest - 1] + "…"
    if isinstance(value, dict):
        return {key: _shortened(inner, longest) for key, inner in value.items()}
    return [_shortened(inner, longest) for inner in value] if isinstance(value, list | tuple) else value


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a finite number")


# What a line must be. A reader may rely on it, whatever has printed the line.


class _Shape(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, strict=True)


_Digest = Field(pattern=r"^[0-9a-f]{64}$")
_Word = Field(pattern=r"^[^\s<>`]*$")  # what may stand in an address, or in the marker of a pull request
_Metrics = dict[str, dict[str, int | float | list[float] | None] | None]


class _Run(_Shape):
    id: str = _Word
    name: str
    commit: str = Field(pattern=r"^[0-9a-f]*(-dirty)?$")
    commit_time: str | None
    image: str = Field(pattern=r"^[^\s`|]*$")  # on a laptop, that of the settings may have a placeholder, <USER_NAME>


class _Table(_Shape):
    rows: int
    sha256: str = _Digest


class _Data(_Shape):
    version: str
    tables: dict[str, _Table]
    examples: dict[str, int]
    rows_of_examples: int
    first_day: str | None
    last_day: str | None


class _Check(_Shape):
    name: str
    value: float | None
    interval: list[float] | None = Field(min_length=2, max_length=2)
    comparison: Literal["<=", ">="]
    threshold: float
    passed: bool
    where: str
    against: Literal["", "baseline", "champion", "served"]
    description: str


class _Beside(_Shape):
    version: int
    rows_left_out: int
    metrics: _Metrics
    model: _Metrics | None


class _All(_Shape):
    model: _Metrics
    baseline: _Metrics
    champion: _Beside | None
    served: _Beside | None


class _Difference(_Shape):
    version: int
    metric: str
    value: float | None
    interval: list[float] | None = Field(min_length=2, max_length=2)


class _Differences(_Shape):
    champion: _Difference | None
    served: _Difference | None


class _Runtime(_Shape):
    runtime: str
    version: str
    max_absolute: float
    max_relative: float
    decisions_changed: int


class _Shift(_Shape):
    column: str
    statistic: Literal["psi", "mean_difference"]
    value: float
    severity: Literal["warning", ""]


class _Line(_Shape):
    model: str = Field(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$")
    number: int = Field(ge=1)
    sha256: str = _Digest
    version: str = _Word
    passed: bool
    prod_flag: bool
    run: _Run
    data: _Data
    checks: list[_Check]
    summary: str
    metrics: _All
    difference: _Differences
    parity: list[_Runtime]
    shift: list[_Shift]
    shift_from: Literal["served", "champion", ""]
    created: str = _Word
