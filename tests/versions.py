"""Small versions of the model store, as a release publishes them."""

import json
from hashlib import sha256
from typing import Any

from pipeline.core.champion import NO_WORSE, SCHEMA
from pipeline.core.store import Failed, open_store
from tests.serving import model

LABELS = ("BR", "IS", "JP", "KR")
WEIGHTS = (0.1, 0.2, 3.0, 1.0)


def publish_version(
    root: str,
    run: str,
    *,
    onnx: bytes | None = None,
    labels: tuple[str, ...] = LABELS,
    worse_by: float | None = None,
    than: int | None = None,
    passed: bool = True,
    apart: bool = False,
    golden: bytes | None = b"{}",
    image: str = "",
    **lineage: Any,
) -> int:
    """Publish a version that was found worse (in nats) than another one, or compared with none; return its number.

    ``apart`` puts one that has not passed where nobody serves it, as an older release did not; ``golden`` is the
    content of golden.json, which an older release did not have; ``lineage`` replaces what stands there.
    """
    checks = [{"name": "top1-floor", "value": 0.9, "passed": passed}]
    if worse_by is not None:
        checks.append({"name": NO_WORSE, "value": worse_by, "passed": passed})
    files = {
        "model.onnx": model([*WEIGHTS[: len(labels)]]) if onnx is None else onnx,
        "labels.json": json.dumps(labels).encode(),
        "model-card.html": b"",
    }
    if golden is not None:
        files["golden.json"] = golden
    whole = {
        "schema": SCHEMA,
        "model": {"version": "0.0.2"},
        "run": {"id": run, "commit": "c" * 40, **({"image": image} if image else {})},
        "data": {"profile": {"features": {}, "label_shares": {"BR": 1.0}}},
        "verdict": {
            "passed": passed,
            "checks": checks,
            "champion": than and {"version": than, "is_best": True},
            "summary": "Good enough." if passed else "Not good enough.",
        },
        "champion": than,
        "sha256": {name: sha256(content).hexdigest() for name, content in files.items()},
        **lineage,
    }
    files["lineage.json"] = json.dumps(whole).encode()
    return open_store(root, "jukebox").publish(run, lambda number: Failed(files) if apart else files)
