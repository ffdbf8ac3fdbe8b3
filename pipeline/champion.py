"""The champion: the model that is served now, and what its lineage says."""

import json
from dataclasses import dataclass
from typing import Any

from pipeline.store import open_store


@dataclass(frozen=True)
class Champion:
    """A published version: its number in the store, the ONNX file's bytes, its labels and its lineage.json."""

    version: int
    onnx: bytes
    labels: list[str]
    lineage: dict[str, Any]


def find_champion(model_store: str, model_name: str, version: int = 0) -> Champion | None:
    """Read version ``version`` of the store, or the newest for 0; None where nothing was published yet.

    Raises StoreBroken where a version that was asked for is not there.
    """
    store = open_store(model_store, model_name)
    number = version or store.newest()
    if not number:
        return None
    return Champion(
        number,
        store.read(number, "model.onnx"),
        json.loads(store.read(number, "labels.json")),
        json.loads(store.read(number, "lineage.json")),
    )
