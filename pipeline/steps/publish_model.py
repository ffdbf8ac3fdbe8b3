"""Publish the model: add a new version, with its card and its lineage, to the model store."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.champion import (
    CARD,
    CHAMPION,
    GOLDEN,
    LABELS,
    LINEAGE,
    SCHEMA,
    SERVED,
    find_served,
    read_files,
    read_lineage,
    search,
)
from pipeline.core.contract import Model
from pipeline.core.documents import Encoded, to_json
from pipeline.core.encoders import ENCODERS
from pipeline.core.errors import CommitOutdated, ParityBroken, SettingsInvalid, VersionBroken
from pipeline.core.log import log
from pipeline.core.report import about_evaluation, environment
from pipeline.core.store import MODEL, Failed, ModelStore, open_store
from pipeline.steps.evaluate_model import judge
from pipeline.steps.gate import decide, gate

# https://semver.org, version 2.0.0.
_NUMBER = r"(0|[1-9]\d*)"
_IDENTIFIERS = r"[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*"
MOST_ANSWERS = 5  # that the card shows
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(-{_IDENTIFIERS})?(\+{_IDENTIFIERS})?", re.ASCII)


@dataclass(frozen=True)
class Published:
    """A version in the model store: its number, its address, its lineage.json and its model card.

    A version that has not passed has a number too, but is not served.
    """

    number: int
    uri: str
    lineage: dict[str, Any]
    card: bytes = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether the version may be served."""
        return bool(self.lineage["verdict"]["passed"])


def publish_model(
    *,
    model: Model,
    store: str,
    onnx_file: Path,
    preprocessing: Path,
    predictions: Path,
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
    commit_time: str,
    image: str,
    prod_flag: bool,
    cluster_domain: str,
    namespace: str,
) -> Published:
    """Put the model into the store with its labels, golden request, card and lineage; nothing is ever deleted.

    ``preprocessing`` and ``predictions`` are the folders that preprocess_data and train_model wrote, the other paths
    are the ONNX file and the JSON files of the steps. ``data`` is the origin of each table (source, sha256, rows,
    bytes). ``commit_time`` is the time of ``commit``, in ISO 8601 with a zone; if it is empty, it is not checked. A run
    that is retried gets the version that it has published before.

    If the champion has changed since the model was judged, the model is judged again. A model that has not passed, but
    that the gate's mode lets through, is kept and not served.

    Raises GateRefused or ParityBroken if the model has failed the gate or the verification, CommitOutdated if the model
    of a newer commit is published already, SettingsInvalid if ``model_name``, ``version``, ``commit_time`` or ``store``
    is not a valid one, StoreBroken if the store cannot be used, or does not hold what was published.
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
    # In a pipeline, verify-model has already stopped the run; this is for direct callers.
    gate(verdict)
    if not verified["passed"]:
        raise ParityBroken("nothing is published, since the ONNX model differs from the Keras model: see parity.json")
    if not _VERSION.fullmatch(version):
        raise SettingsInvalid(f"the version is {version!r}: expected a semantic version; use one such as 0.0.2")
    models = open_store(store, model_name)
    made = _moment(commit_time)

    def build(number: int) -> dict[str, bytes]:
        _refuse_older(models, commit, made)
        now = {**documents, **_judged_again(model, judged, store, model_name, preprocessing, predictions)}
        verdict, evaluation, validation = now["verdict"], now["evaluation"], now["validation"]
        champion, served = verdict["champion"], verdict["served"]
        files = {
            MODEL: onnx_file.read_bytes(),
            LABELS: to_json(documents["preprocessing"]["labels"]).encode(),
            GOLDEN: to_json(verified["golden"]).encode(),
        }
        lineage = {
            "schema": SCHEMA,
            "model": {
                "name": model_name,
                "version": version,
                "number": number,
                "prod_flag": prod_flag,
                "use": _use(verdict, prod_flag=prod_flag),
            },
            "run": {
                "id": run_id,
                "name": run_name,
                "commit": commit,
                "commit_time": made and made.strftime(_TIME),
                "image": image,
            },
            "data": {
                "version": data_version,
                **{table: _whole(facts) for table, facts in data.items()},
                "profile": validation["profile"],
            },
            "shift": {CHAMPION: validation["shift"], SERVED: validation["shift_from_served"]},
            "encoding": documents["preprocessing"]["encoding"],
            "hyperparameters": documents["training"]["hyperparameters"],
            "metrics": evaluation["model"],
            "beside": {who: evaluation[who] for who in ("baseline", CHAMPION, SERVED)},
            "verdict": verdict,
            "champion": champion["version"] if champion and champion["compared"] else None,
            "served": served["version"] if served and served["compared"] else None,
            "parity": {key: value for key, value in verified.items() if key != "golden"},
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            "created": datetime.now(UTC).strftime(_TIME),
        }
        card = _card(model, lineage, now, _endpoint(model_name, namespace, cluster_domain)).encode()
        lineage["sha256"][CARD] = hashlib.sha256(card).hexdigest()
        whole = {**files, CARD: card, LINEAGE: to_json(lineage, indent=1).encode()}
        return whole if verdict["passed"] else Failed(whole)

    number = models.publish(f"{run_name}/{run_id}", build)
    lineage, content = read_files(models, number)
    published = Published(number, models.uri(number), lineage, content[CARD])
    if published.passed:
        log.info("published %s", published.uri)
    else:
        log.warning("kept %s, which is not served: %s", published.uri, published.lineage["verdict"]["summary"])
    return published


def _moment(time: str) -> datetime | None:
    """The time of a commit; None if it is not known, or if a wrong clock has set it in the future."""
    if not time:
        return None
    try:
        made = datetime.fromisoformat(time)
    except ValueError:
        made = datetime.min
    if made.tzinfo is None:
        raise SettingsInvalid(
            f"commit_time is {time!r}, which is not a valid time with a zone; give it as "
            "`git show --no-patch --format=%cI` prints it, or leave it out"
        )
    if made > datetime.now(UTC):
        log.warning("the commit time %s is in the future, so it is not used", time)
        return None
    return made.astimezone(UTC)


def _refuse_older(models: ModelStore, commit: str, made: datetime | None) -> None:
    """Raise CommitOutdated if the newest version whose commit's time is known is of a newer commit."""
    if made is None:
        return
    for number in reversed(models.versions()):
        try:
            run = read_lineage(models, number)["run"]
            theirs = datetime.fromisoformat(run["commit_time"]).astimezone(UTC)
        except (VersionBroken, KeyError, TypeError, ValueError, OverflowError):
            continue  # damaged, or of an older release, or of a run by hand
        if theirs > datetime.now(UTC):
            continue  # a time in the future is wrong, and would block all other commits until then
        if theirs > made:
            raise CommitOutdated(
                f"Nothing is published: commit {commit[:12]} is of {made.strftime(_TIME)}, and version {number} is of "
                f"the newer commit {str(run.get('commit', ''))[:12]} ({run['commit_time']}). To go back to older code, "
                "push a commit that reverts the newer one"
            )
        return


def _judged_again(
    model: Model, judged: Mapping[str, Any], store: str, model_name: str, examples: Path, predictions: Path
) -> dict[str, Any]:
    """Evaluation and verdict against the champion as it is now, if that is another one; raises GateRefused.

    What production serves is the version that the run was started with.
    """
    if judged["mode"] == "off" or judged["champion_version"]:
        return {}  # nothing was judged, or the version that was named, which has not changed
    found = search(store, model_name)
    before = judged["champion"] and judged["champion"]["version"]
    if (found.champion and found.champion.version) == before:
        return {}
    log.info("the champion was %s and is %s: judged again", before, found.champion and found.champion.version)
    evaluation, verdict = judge(
        model,
        examples,
        predictions,
        champion=found.champion,
        served=find_served(store, model_name, str(judged["served"]["version"]) if judged["served"] else ""),
        damaged=found.damaged,
        mode=judged["mode"],
        thresholds=judged["thresholds"],
    )
    decide(verdict)
    return {"evaluation": evaluation, "verdict": verdict}


def _use(verdict: Mapping[str, Any], *, prod_flag: bool) -> str:
    if not verdict["passed"]:
        return "not served: " + ("it failed its checks" if verdict["checks"] else "it was not judged")
    return "may be proposed for production" if prod_flag else "candidate"


def _whole(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Make counts integers again: Kubeflow passes every number of an artifact's metadata as a float."""
    return {key: int(fact) if isinstance(fact, float) and fact.is_integer() else fact for key, fact in facts.items()}


def _endpoint(model_name: str, namespace: str, cluster_domain: str) -> str:
    """The address of the served model, or nothing if the settings have a placeholder such as <CLUSTER_DOMAIN>."""
    if not cluster_domain or "<" in cluster_domain + namespace:
        return ""
    return f"https://{model_name}-{namespace}.{cluster_domain}/v2/models/{model_name}/infer"


def _card(model: Model, lineage: Mapping[str, Any], documents: Mapping[str, Any], endpoint: str) -> str:
    golden = documents["parity"]["golden"]
    request = {"inputs": [_first_row(tensor) for tensor in golden["request"]["inputs"]]}
    prediction = np.array(_first_row(golden["response"]["outputs"][0])["data"])
    template = environment().get_template("model-card.html.j2")
    return template.render(
        lineage=lineage,
        tables=[table.name for table in model.tables],
        endpoint=endpoint,
        inputs=[_input(model, entry) for entry in documents["preprocessing"]["encoding"]],
        request=to_json(request),
        answer=model.kind.answer(prediction, documents["preprocessing"]["labels"])[:MOST_ANSWERS],
        **documents,
        **about_evaluation(model, documents["evaluation"]),
    )


def _input(model: Model, entry: Encoded) -> dict[str, Any]:
    """What a caller must know of a column: its name, unit and bounds, and how it becomes which features."""
    column = next(column for column in model.features if column.name == entry["column"])
    return {
        "column": column.name,
        "unit": column.unit,
        "derived": column.derived,
        "bounds": (column.low, column.high),
        "values": column.values,
        "words": ENCODERS[entry["encoder"]].in_words(entry["parameters"]),
        "features": entry["features"],
    }


def _first_row(tensor: Mapping[str, Any]) -> dict[str, Any]:
    """The first example of a tensor of the Open Inference Protocol, in the seven digits that float32 has."""
    _, width = tensor["shape"]
    return {**tensor, "shape": [1, width], "data": [float(f"{value:.7g}") for value in tensor["data"][:width]]}
