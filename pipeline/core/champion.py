"""The versions that a new model must not be worse than: the champion, and the one that production serves.

A version is used only if it is intact: its lineage is readable, its files have the digests that the lineage records,
and its model answers. An error names a version that is not, and what to do; such a version is never the champion.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.core.encoders import ENCODERS
from pipeline.core.errors import SettingsInvalid, StoreBroken, VersionBroken
from pipeline.core.log import log
from pipeline.core.runtimes import onnx_properties, onnxruntime_of
from pipeline.core.store import MODEL, ModelStore, open_store

# Of lineage.json. 1 has no encoding, and calls the shares of the labels by another name. 0, which lacks the field, has
# no time of the commit either, and its verdict may be "passed" for a model that was not judged.
SCHEMA = 2
NONE = "none"
LABELS, LINEAGE, CARD = "labels.json", "lineage.json", "model-card.html"
GOLDEN = "golden.json"  # a request to the model server, and the answer that it must give
# The check that compares a model with the champion: above 0, it is worse.
NO_WORSE = "no-worse-than-champion"
CHAMPION, SERVED = "champion", "served"


@dataclass(frozen=True)
class Version:
    """A published version: its number in the store, the ONNX file's bytes, its labels and its lineage.json."""

    version: int
    onnx: bytes = field(repr=False)
    labels: list[str]
    lineage: dict[str, Any] = field(repr=False)

    @cached_property
    def features(self) -> list[str]:
        """The names of the model's features in their order, from the metadata of its file."""
        names = json.loads(onnx_properties(self.onnx).get("features", "null"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("its metadata do not name its features")
        return names

    @property
    def encoding(self) -> list[dict[str, Any]]:
        """How columns become features, see ``encoders.fit``; an older release uses each column unchanged."""
        as_it_is = {"derived": "", "unit": "", "encoder": "Number", "parameters": {}}
        plain = [{**as_it_is, "column": name, "features": [name]} for name in self.features]
        return self.lineage.get("encoding") or plain

    @property
    def passed(self) -> bool:
        """Whether the version was judged and passed."""
        verdict = self.lineage["verdict"]
        return bool(verdict["passed"] and verdict["checks"])

    def predictions(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The model's predictions, float32[examples, labels], for float32[examples, features] in the model's order."""
        return onnxruntime_of(self.onnx)(vectors)


@dataclass(frozen=True)
class Champion(Version):
    """The version that a new model is compared with.

    ``is_best`` is false if another version was requested instead: a model that is better than that one has
    proven nothing.
    """

    is_best: bool = True


@dataclass(frozen=True)
class Served:
    """The version that production serves; ``found`` is None if it cannot be used, and ``fault`` says why."""

    version: int
    found: Version | None
    fault: str = ""


@dataclass(frozen=True)
class Search:
    """The result of a search of the store: the champion, if there is one, and a sentence for each damaged version."""

    champion: Champion | None
    damaged: tuple[str, ...]


def find_champion(model_store: str, model_name: str, version: str = "") -> Champion | None:
    """Return the version that a new model is compared with; see ``search``."""
    return search(model_store, model_name, version).champion


def search(model_store: str, model_name: str, version: str = "") -> Search:
    """Find the version that a new model is compared with: ``version``, or the champion if that is empty.

    The champion is the newest version that passed and was no worse than what it was compared with itself. So a model
    that passed only within the tolerance does not lower the bar: the version that it was compared with stays the
    champion, and a chain of models, each a little worse, cannot drift. A version that was compared with nothing (the
    first, or by ``none``) is the champion from then on. One that was compared with a version that has failed, or with
    an older one that was asked for, has proven nothing and is passed over.

    If what a version was compared with is gone or damaged, that version stands in for it: it is at most the tolerance
    away, while what comes before may be any distance. If none has proven anything, it is the newest that passed.

    ``version`` may be the number of another version to compare with, or ``none`` for no comparison.

    Raises SettingsInvalid if ``version`` is none of these; StoreBroken if the version that it names does not exist, has
    failed or is damaged, or if the store cannot be read. Other damaged versions are logged and skipped.
    """
    if version == NONE:
        return Search(None, ())
    store = open_store(model_store, model_name)
    others = f"{NONE!r} to compare with nothing, or an empty text for the champion"
    named = _number(version, "champion_version", others) if version else 0
    asked = _asked(store, named) if named else None
    best, damaged = _best(store)
    for sentence in damaged:
        log.warning("%s It is not the champion.", sentence)
    chosen = asked or best
    if chosen is None:
        return Search(None, damaged)
    is_best = best is not None and chosen.version == best.version
    return Search(Champion(chosen.version, chosen.onnx, chosen.labels, chosen.lineage, is_best), damaged)


def read_version(model_store: str, model_name: str, number: int = 0) -> Version | None:
    """Read version ``number``, whether it passed or not, or the newest that passed for 0; None if there is none.

    Raises StoreBroken, with what to do, if it does not exist or is damaged.
    """
    store = open_store(model_store, model_name)
    number = number or store.newest() or 0
    return _read(store, number) if number else None


def find_served(model_store: str, model_name: str, version: str) -> Served | None:
    """Return the version that production serves; None if ``version`` is empty, since production serves nothing.

    One that is missing or damaged does not fail the run, since a new model may replace it. Raises SettingsInvalid if
    ``version`` is not a number, StoreBroken if the store cannot be read.
    """
    if not version:
        return None
    number = _number(version, "served_version", "an empty text if production serves nothing")
    try:
        return Served(number, _read(open_store(model_store, model_name), number))
    except VersionBroken as error:
        return Served(number, None, str(error))


def read_lineage(store: ModelStore, number: int) -> dict[str, Any]:
    """Read a version's lineage.json; one of an older release has its label shares where this one has them.

    Raises VersionBroken, with what to do, if there is none, if it has another shape, or if a newer release wrote it.
    """
    try:
        lineage = json.loads(store.read(number, LINEAGE))
    except (ValueError, RecursionError) as error:
        raise _damaged(store, number, f"its {LINEAGE} is not valid JSON ({error})") from None
    if not isinstance(lineage, dict):
        raise _damaged(store, number, f"its {LINEAGE} is not a JSON object")
    schema = lineage.get("schema", 0)
    if isinstance(schema, int) and schema > SCHEMA:
        raise VersionBroken(
            f"Version {number} ({store.uri(number)}) was published by a newer release: its {LINEAGE} has schema "
            f"{schema}, expected at most {SCHEMA}. Train with that release, or delete the version."
        )
    try:
        _Lineage.model_validate(lineage)
    except ValidationError as error:
        [first, *_] = error.errors()
        where = ".".join(map(str, first["loc"])) or "it"
        raise _damaged(
            store, number, f"its {LINEAGE} does not have this pipeline's schema: {where}, {first['msg']}"
        ) from None
    lineage["data"]["profile"] = _renamed(lineage["data"]["profile"])
    return lineage


def read_files(store: ModelStore, number: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read a version's lineage.json, and its other files by their names; each has the digest that the lineage records.

    Versions of older releases record no card or no golden request, which are left out then. Raises VersionBroken, with
    what to do, if a file is not there, or is not the one that was published.
    """
    lineage = read_lineage(store, number)
    content = {}
    for name in (MODEL, LABELS, GOLDEN, CARD):
        expected = lineage["sha256"].get(name)
        if name in (GOLDEN, CARD) and not expected:
            continue
        content[name] = store.read(number, name)
        digest = hashlib.sha256(content[name]).hexdigest()
        if digest != expected:
            raise _damaged(
                store,
                number,
                f"the sha256 of its {name} is {digest[:12]}…, expected {(expected or 'none')[:12]}…",
            )
    return lineage, content


def _number(version: str, parameter: str, others: str) -> int:
    if not (version.isascii() and version.isdigit() and int(version)):
        raise SettingsInvalid(f"{parameter} is {version!r}; expected the number of a version, {others}")
    return int(version)


def _asked(store: ModelStore, number: int) -> Version:
    versions = store.versions()
    if number not in versions and number not in store.failed():
        there = ", ".join(map(str, versions)) or "none yet"
        raise StoreBroken(
            f"champion_version is {number}, but {store.uri(number)} does not exist; name a version that passed "
            f"({there}), {NONE!r} to compare with nothing, or an empty text for the champion"
        )
    found = _read(store, number)
    if number not in versions or not found.passed:
        raise StoreBroken(
            f"champion_version is {number}, which has failed its checks, or was not judged: "
            f"{found.lineage['verdict'].get('summary', 'its verdict gives no reason.')} Name another version, "
            f"{NONE!r} to compare with nothing, or an empty text for the champion"
        )
    return found


def _best(store: ModelStore) -> tuple[Version | None, tuple[str, ...]]:
    """Return the champion, and a sentence for each damaged version that was found on the way."""
    versions, damaged = store.versions(), dict[int, str]()
    known: dict[int, Version | None] = {}

    def read(number: int) -> Version | None:
        if number not in known:
            try:
                known[number] = _read(store, number) if number in versions else None
            except VersionBroken as error:
                # Any other error must stop the run: a store that is briefly unavailable would seem to have no champion.
                known[number], damaged[number] = None, str(error)
        return known[number]

    newest_passed = None
    for number in reversed(versions):
        version = read(number)
        if version is None or not version.passed:
            continue
        newest_passed = newest_passed or version
        verdict = version.lineage["verdict"]
        compared = next((check for check in verdict["checks"] if check["name"] == NO_WORSE), None)
        if compared is None:
            return version, tuple(damaged.values())
        champion = verdict.get("champion") or {}
        before = champion.get("version") or version.lineage.get("champion")
        other = read(before) if before else None
        gone = before and other is None
        better = compared["value"] is not None and compared["value"] <= 0
        proven = better and champion.get("is_best", True) and (other is None or other.passed)
        if gone or proven:
            return version, tuple(damaged.values())
    return newest_passed, tuple(damaged.values())


def _read(store: ModelStore, number: int) -> Version:
    """Read a version; raises VersionBroken, with what to do, if it is damaged."""
    lineage, content = read_files(store, number)
    try:
        version = Version(number, content[MODEL], json.loads(content[LABELS]), lineage)
        labels = [*map(str, version.labels)]
        encoded = [
            name
            for each in version.encoding
            for name in ENCODERS[each["encoder"]].features(each["column"], each["parameters"])
        ]
        answer = version.predictions(np.zeros((1, len(version.features)), np.float32))
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise _damaged(store, number, f"its model cannot be used: {' '.join(str(error).split())}") from None
    if not labels or len({*labels}) < len(labels) or answer.shape != (1, len(labels)):
        raise _damaged(store, number, f"its model answers with the shape {answer.shape}, but {LABELS} holds {labels}")
    if encoded != version.features:
        raise _damaged(
            store,
            number,
            f"its model takes {', '.join(version.features)}, but its {LINEAGE} encodes {', '.join(encoded)}",
        )
    if not np.isfinite(answer).all():
        raise _damaged(store, number, "its model answers with numbers that are not finite")
    return version


def _damaged(store: ModelStore, number: int, what: str) -> VersionBroken:
    return VersionBroken(
        f"Version {number} ({store.uri(number)}) is damaged: {what}. Restore its files as they were published, or "
        f"delete it: `jukebox delete-version {number}`."
    )


# The fields of lineage.json that this module needs; the rest is for people.


class _Shape(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, strict=True)


class _Check(_Shape):
    name: str
    value: float | None


class _Champion(_Shape):
    version: int
    is_best: bool = True


class _Verdict(_Shape):
    passed: bool
    checks: list[_Check]
    champion: _Champion | None = None


class _Feature(_Shape):
    mean: float
    std: float
    edges: list[float]
    shares: list[float] = Field(min_length=1)

    @model_validator(mode="after")
    def _bins(self) -> "_Feature":
        if len(self.edges) != len(self.shares) + 1:
            raise ValueError(f"{len(self.edges)} edges for {len(self.shares)} bins")
        return self


class _Profile(_Shape):
    features: dict[str, _Feature]
    categories: dict[str, dict[str, float]] = {}
    label_shares: dict[str, float] = {}
    target: _Feature | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_release(cls, profile: Any) -> Any:
        return _renamed(profile) if isinstance(profile, dict) else profile


def _renamed(profile: dict[str, Any]) -> dict[str, Any]:
    """Older releases named the label shares after the labels: <something>_shares."""
    return {"label_shares" if key.endswith("_shares") else key: value for key, value in profile.items()}


class _Data(_Shape):
    profile: _Profile


class _Encoded(_Shape):
    column: str
    unit: str
    derived: str
    encoder: Literal[*ENCODERS]  # type: ignore[valid-type]
    parameters: dict[str, Any]
    features: list[str]


class _Lineage(_Shape):
    format: int = Field(0, alias="schema", ge=0)
    verdict: _Verdict
    data: _Data
    sha256: dict[str, str]
    encoding: list[_Encoded] = []
    champion: int | None = None
