"""Publish model: the model store gets a new version, with its card and its lineage."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.documents import to_json
from pipeline.errors import ParityBroken, SettingsInvalid
from pipeline.log import log
from pipeline.report import environment
from pipeline.schema import FEATURES
from pipeline.steps.gate import gate
from pipeline.store import MODEL, open_store

# https://semver.org, version 2.0.0.
_NUMBER = r"(0|[1-9]\d*)"
_IDENTIFIERS = r"[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(-{_IDENTIFIERS})?(\+{_IDENTIFIERS})?", re.ASCII)


@dataclass(frozen=True)
class Published:
    """A version in the model store: its number, where it is, and its lineage.json."""

    number: int
    uri: str
    lineage: dict[str, Any]


def publish_model(
    *,
    store: str,
    model: Path,
    preprocessing: Path,
    training: Path,
    validation: Path,
    evaluation: Path,
    verdict: Path,
    parity: Path,
    model_name: str,
    version: str,
    data_version: str,
    data: Mapping[str, Mapping[str, Any]],
    run_id: str,
    run_name: str,
    commit: str,
    image: str,
    prod_flag: bool,
    cluster_domain: str,
    namespace: str,
) -> Published:
    """Put the model into the store with its labels, its card and its lineage; nothing is ever deleted.

    ``model`` is the ONNX file, ``preprocessing`` the folder that preprocess_data wrote, the other paths are the
    JSON files of the steps. ``data`` says for "songs" and for "rankings" where they are from (source, sha256,
    rows, bytes). A run that is tried again gets the version that it has published before.

    Raises GateRefused or ParityBroken where the verdict or the verification says no, SettingsInvalid where
    ``model_name``, ``version`` or ``store`` is none, StoreBroken where the store cannot be used.
    """
    documents = {
        name: json.loads(path.read_text("utf-8"))
        for name, path in {
            "preprocessing": preprocessing / "preprocessing.json",
            "training": training,
            "validation": validation,
            "evaluation": evaluation,
            "verdict": verdict,
            "parity": parity,
        }.items()
    }
    judged, verified = documents["verdict"], documents["parity"]
    # verify-model has stopped the run before; this is for whoever calls the step by itself.
    gate(verdict)
    if not verified["passed"]:
        raise ParityBroken("nothing is published, since the ONNX model differs from the Keras model: see parity.json")
    if not _VERSION.fullmatch(version):
        raise SettingsInvalid(f"the version is {version!r}: expected a semantic version; use one such as 0.0.2")
    champion = judged["champion"] and judged["champion"]["version"]

    def build(number: int) -> dict[str, bytes]:
        files = {
            MODEL: model.read_bytes(),
            "labels.json": to_json(documents["preprocessing"]["labels"]).encode(),
        }
        lineage = {
            "model": {
                "name": model_name,
                "version": version,
                "number": number,
                "prod_flag": prod_flag,
                "use": "may be proposed for production" if prod_flag else "candidate",
            },
            "run": {"id": run_id, "name": run_name, "commit": commit, "image": image},
            "data": {
                "version": data_version,
                **{table: _whole(facts) for table, facts in data.items()},
                "profile": documents["validation"]["profile"],
            },
            "hyperparameters": documents["training"]["hyperparameters"],
            "metrics": documents["evaluation"]["model"],
            "verdict": judged,
            "champion": champion,
            "parity": {key: value for key, value in verified.items() if key != "golden"},
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        endpoint = _endpoint(model_name, namespace, cluster_domain)
        return {
            **files,
            "lineage.json": to_json(lineage, indent=1).encode(),
            "model-card.html": _card(lineage, documents, endpoint).encode(),
        }

    models = open_store(store, model_name)
    number = models.publish(f"{run_name}/{run_id}", build)
    log.info("published %s", models.uri(number))
    return Published(number, models.uri(number), json.loads(models.read(number, "lineage.json")))


def _whole(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Make counts integers again: Kubeflow hands every number of an artifact's metadata over as a float."""
    return {key: int(fact) if isinstance(fact, float) and fact.is_integer() else fact for key, fact in facts.items()}


def _endpoint(model_name: str, namespace: str, cluster_domain: str) -> str:
    """Where the model is served, or nothing while the settings hold a placeholder such as <CLUSTER_DOMAIN>."""
    if not cluster_domain or "<" in cluster_domain + namespace:
        return ""
    return f"https://{model_name}-{namespace}.{cluster_domain}/v2/models/{model_name}/infer"


def _card(lineage: Mapping[str, Any], documents: Mapping[str, Any], endpoint: str) -> str:
    golden = documents["parity"]["golden"]
    request = {"inputs": [_first_row(tensor) for tensor in golden["request"]["inputs"]]}
    probabilities = _first_row(golden["response"]["outputs"][0])["data"]
    answer = sorted(zip(probabilities, documents["preprocessing"]["labels"], strict=True), reverse=True)
    template = environment().get_template("model-card.html.j2")
    return template.render(
        lineage=lineage,
        endpoint=endpoint,
        features=FEATURES,
        request=to_json(request),
        answer=answer[:5],
        **documents,
    )


def _first_row(tensor: Mapping[str, Any]) -> dict[str, Any]:
    """The first example of a tensor of the Open Inference Protocol, in the seven digits that float32 has."""
    _, width = tensor["shape"]
    return {**tensor, "shape": [1, width], "data": [float(f"{value:.7g}") for value in tensor["data"][:width]]}
