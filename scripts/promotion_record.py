"""The record of what production was pinned to: who approved and merged it, when, from which version, and why.

The ConfigMap ``jukebox-promotions`` holds a record, as JSON, for each change of the pin that production has served, by
version and commit. A record is written after the check of the served version has passed, so a version that has one has
passed that check in this environment. The nightly job beside the model store copies the records to the versions.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.documents import to_json
from pipeline.core.errors import SettingsInvalid, VersionBroken
from pipeline.core.store import ModelStore
from pipeline.core.texts import one_line
from pipeline.settings import Settings
from scripts.clients.git_hosts import GitHost, State
from scripts.clients.kubernetes_api import CONFIG_MAPS, Cluster
from scripts.pins import Pin
from scripts.proposals import Kind, branch_of

CONFIG_MAP = "jukebox-promotions"
Record = dict[str, Any]


def build(host: GitHost, settings: Settings, commit: str, before: Pin | None, after: Pin) -> Record:
    """Return the record of ``commit``, which changed the pin from ``before`` to ``after``.

    A commit that no proposal has made was pushed by hand; then nobody is known who approved it. Raises HostRefuses if
    the Git host cannot be asked.
    """
    record: Record = {
        "model": after.model,
        "version": after.version,
        "sha256": after.sha256,
        "from": before.version if before else None,
        "commit": commit,
        "kind": "by hand",
        "why": after.hold,
        "url": host.commit_url(commit),
        "merged_by": "",
        "merged_at": "",
        "approved_by": [],
    }
    for kind in Kind:
        for pull in host.pull_requests(branch_of(kind, settings), settings.branch):
            if pull.state is State.MERGED and pull.merge_commit == commit:
                found = host.record(pull.number)
                told = {key: found.get(key) or record[key] for key in ("url", "merged_by", "merged_at", "approved_by")}
                name = "promotion" if kind is Kind.PROMOTION else "rollback"
                return {**record, **told, "kind": name, "why": after.hold or pull.title}
    return record


def write(cluster: Cluster, record: Record, since: str) -> None:
    """Write the record of a version that production serves; ``since`` is when its check passed (RFC 3339).

    Raises ServerUnavailable if the cluster does not take it.
    """
    key = f"{record['version']}-{str(record['commit'])[:12]}"
    data = {key: to_json({**record, "served_since": since}, sort_keys=True)}
    cluster.patch(CONFIG_MAPS, CONFIG_MAP, {"data": data})


def read(cluster: Cluster) -> list[Record]:
    """Return the records, the last one that was served first; what is not a record is left out.

    Raises ServerUnavailable if the cluster cannot be asked.
    """
    records = []
    for text in texts(cluster).values():
        try:
            record = json.loads(text)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("version"), int):
            records.append(record)
    return sorted(records, key=lambda record: str(record.get("served_since", "")), reverse=True)


def texts(place: Cluster | Path) -> dict[str, str]:
    """Return the records as text by their names, from the cluster or from a folder where the ConfigMap is mounted.

    Raises ServerUnavailable if the cluster cannot be asked, SettingsInvalid if the folder cannot be read.
    """
    if isinstance(place, Cluster):
        return (place.read(CONFIG_MAPS, CONFIG_MAP) or {}).get("data") or {}
    try:
        # Kubernetes keeps its own files there, whose names begin with two dots.
        files = sorted(file for file in place.iterdir() if not file.name.startswith(".."))
        return {file.name: file.read_text(errors="replace") for file in files}
    except OSError as error:
        raise SettingsInvalid(
            f"the records of promotions cannot be read from {place}: {error.strerror}. Mount the ConfigMap {CONFIG_MAP}"
        ) from None


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True)
    model: str
    version: int = Field(ge=1)
    sha256: str
    before: int | None = Field(alias="from")
    commit: str = Field(min_length=1)
    kind: str
    why: str
    url: str
    merged_by: str
    merged_at: str
    approved_by: list[str]
    served_since: str


def keep(store: ModelStore, model: str, found: Mapping[str, str]) -> list[str]:
    """Write each record beside its version, unless it is there; return in sentences what was done and what was not.

    A record of a version that the store does not have, or does not have any more, is left out. Raises StoreBroken if
    the store cannot be used.
    """
    said, records = list[str](), defaultdict[int, list[Record]](list)
    for name, text in found.items():
        try:
            record = _Shape.model_validate_json(text)
        except ValidationError as error:
            [first, *_] = error.errors()
            where = ".".join(map(str, first["loc"]))
            said.append(
                one_line(f"The record {name} is not valid and is left out: {where and f'{where}, '}{first['msg']}")
            )
            continue
        if record.model != model:
            said.append(one_line(f"The record {name} is left out: it is of the model {record.model}, expected {model}"))
            continue
        records[record.version].append(record.model_dump(by_alias=True))
    for number in sorted({*store.versions(), *store.failed()} & records.keys()):
        try:
            added = store.add_promotions(number, records[number])
        except VersionBroken as error:
            said.append(f"The records of version {number} are not written: {error}")
            continue
        if added:
            said.append(f"Version {number}: {added} record{'s' if added > 1 else ''} of its promotion added")
    return said


def passed(records: list[Record]) -> set[Pin]:
    """The versions that have passed the check of what production serves, as pins without a hold."""
    found = set()
    for record in records:
        with suppress(SettingsInvalid):
            found.add(Pin(str(record.get("model")), record["version"], str(record.get("sha256"))))
    return found


def in_words(record: Record) -> str:
    """A record in one sentence: "promotion from 3 to 7, merged by ada, approved by bob, on …, served since …: why"."""
    parts = [f"{record.get('kind') or 'change'} from {record.get('from') or 'nothing'} to {record['version']}"]
    if by := record.get("merged_by"):
        parts.append(f"merged by {by}")
    if approved := record.get("approved_by"):
        parts.append(f"approved by {', '.join(map(str, approved))}")
    if at := record.get("merged_at"):
        parts.append(f"on {at}")
    parts.append(f"served since {record.get('served_since') or 'an unknown time'}")
    why = record.get("why")
    return one_line(", ".join(parts) + (f": {why}" if why else ""))
