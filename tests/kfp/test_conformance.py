"""The stand-in answers as the real server did: recorded exchanges are replayed, status and shape compared.

The recordings lie beside the repository, where they are; they are no part of it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from scripts.clients.kfp_server import from_cache
from tests.kfp.admission import refusal, review
from tests.kfp.cluster import Cluster
from tests.kfp.execution import Look, ScriptedExecutor, printed
from tests.kfp.service import Service, node_id

RECORDINGS = Path(__file__).parents[3] / "shared" / "reference" / "kfp-api"
pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="there are no recordings of a real server")

NAMESPACE = "kubeflow"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# What the commands meet of the scenarios that were recorded.
SCENARIOS = (
    *(
        "01-discovery",
        "02-experiments",
        "03-run-succeeds",
        "04-run-fails+17-logs-and-artifacts",
        "05-cache-hit",
        "06-terminate",
        "07-retry",
    ),
    *("11-errors", "15-run-id-idempotency", "18-outages"),
)
# And what they do not: other paths and verbs, runs of other pipelines, what stands in front or is away.
UNMET = re.compile(
    r":(archive|unarchive|read)$|/upload$|/recurringruns|/v1beta1/|/v1/|/tasks|/artifacts|/metrics|/runs/x$"
    r"|/nodes/(?!bad-v4wfg-3465694089/|nope/|bad-v4wfg-system)"
)
# The bodies of these are free text, or say what the stand-in has no need to know.
FREE = re.compile(
    r"@type|message|pipeline_spec|runtime_config|parameters|description|child_tasks|execution_id|[a-z]+_at"
)


def recordings(scenario: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for folder in scenario.split("+"):
        for file in sorted((RECORDINGS / folder).glob("[0-9][0-9][0-9]-*.json")):
            found = json.loads(file.read_text())
            if "request" in found and "injected" not in found:
                yield file.stem, found


def known(kind: str) -> dict[str, dict[str, Any]]:
    """The pipelines, or their versions, that the recordings name, by id."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(RECORDINGS.glob("*/*.json")):
        body = json.loads(file.read_text())
        answer = body.get("response", {}).get("body") if isinstance(body, dict) else None
        for each in answer.get(kind, ()) if isinstance(answer, dict) else ():
            found[each["pipeline_version_id" if kind == "pipeline_versions" else "pipeline_id"]] = each
    return found


@pytest.fixture(scope="module")
def resources() -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    return known("pipelines"), known("pipeline_versions")


@pytest.fixture
def replayed(resources: tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]) -> "Replay":
    pipelines, versions = resources
    cluster = Cluster(NAMESPACE)
    for pipeline_id, each in pipelines.items():
        metadata = {"name": each["name"], "uid": pipeline_id, "creationTimestamp": each["created_at"]}
        spec = {"displayName": each["display_name"], "description": each.get("description")}
        cluster.add("pipelines", {"metadata": metadata, "spec": spec})
    for version_id, each in versions.items():
        if each["pipeline_id"] not in pipelines or "pipeline_spec" not in each:
            continue
        metadata = {"name": each["name"], "uid": version_id, "creationTimestamp": each["created_at"]}
        spec, both = each["pipeline_spec"], "pipeline_spec" in each["pipeline_spec"]
        cluster.add(
            "pipelineversions",
            {
                "metadata": metadata,
                "spec": {
                    "pipelineName": pipelines[each["pipeline_id"]]["name"],
                    "displayName": each["display_name"],
                    "description": each.get("description"),
                    "pipelineSpec": spec["pipeline_spec"] if both else spec,
                    "platformSpec": spec["platform_spec"] if both else None,
                },
            },
        )
    return Replay(Service(cluster, ScriptedExecutor(), NAMESPACE))


class Replay:
    """Replays exchanges. ``ids`` are our ids for those of the recordings."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.ids: dict[str, str] = {}
        self.token = ""
        service.add_experiment({"display_name": "lab"}, "93efc1ee-d285-4305-988a-b551c6dbd196")

    def ask(self, request: Mapping[str, Any], response: Mapping[str, Any]) -> Any:
        path, body = self._ours(request["path"]), request["body"]
        found = re.search(r"/runs/([^/:]+)", path)
        if found and request["method"] == "GET" and found[1] in self.service.runs:
            self._bring(found[1], response["body"])
        if found and "/nodes/bad-v4wfg" in path:
            # The failed step's executor.
            path = re.sub(r"nodes/[^/]+", f"nodes/{node_id(self._workflow(found[1]), 'boom.executor')}", path)
        query = {key: self._ours(value) for key, value in request["query"]}
        if query.get("page_token", "") not in ("", "zzz"):
            query["page_token"] = self.token
        content = (body if isinstance(body, str) else json.dumps(body)) if body is not None else ""
        answer = self.service.answer(request["method"], unquote(path), query, self._ours(content).encode())
        ours = json.loads(answer.body) if isinstance(answer.body, str) and answer.body[:1] == "{" else answer.body
        self._learn(response["body"], ours)
        if isinstance(ours, dict) and "next_page_token" in ours:
            self.token = ours["next_page_token"]
        return answer.status, ours

    def _ours(self, text: str) -> str:
        return UUID.sub(lambda found: self.ids.get(found[0], found[0]), text)

    def _learn(self, recorded: Any, ours: Any) -> None:
        if isinstance(recorded, dict) and isinstance(ours, dict):
            for key in ("run_id", "experiment_id"):
                if key in recorded and key in ours:
                    self.ids[recorded[key]] = ours[key]

    def _workflow(self, run_id: str) -> str:
        found = (name for name, each in self.service.workflows.items() if each["run_id"] == run_id)
        return next(found, "none")

    def _bring(self, run_id: str, recorded: Any) -> None:
        """Have the run come to where it was when it was recorded."""
        run, state = self.service.runs[run_id], recorded.get("state") if isinstance(recorded, dict) else None
        name = self._workflow(run_id)
        looks = self.service.executor.looks  # type: ignore[attr-defined]
        done, failing = ("make", "SUCCEEDED", "made"), ("boom", "FAILED", "ValueError: bad input: twice=6")
        if state in ("SUCCEEDED", "FAILED") and run["state"] not in ("SUCCEEDED", "FAILED"):
            code = 0 if state == "SUCCEEDED" else 1
            looks[name] = Look(True, printed(done, *([failing] if code else [])), code)
        elif state == "RUNNING":
            looks[name] = Look(True, printed(done, ("train", "RUNNING", "")))
        if state != "PENDING" and state != "CANCELING":
            self.service.tick()


def shape(value: Any, key: str = "") -> Any:
    """What must be the same: keys, kinds of values, and words of the API; not ids, times and free text."""
    if isinstance(value, dict):
        return {name: shape(inner, name) for name, inner in value.items() if not FREE.fullmatch(name)}
    if isinstance(value, list):
        return [shape(value[0], key)] if value and key not in ("state_history", "task_details") else bool(value)
    if key in ("state", "storage_state", "code", "pipeline_store", "multi_user", "finished_at"):
        return value
    return type(value).__name__


def reason(body: Any) -> str:
    """The last clause of an error, without ids and what a parser counts."""
    message = str(body.get("message") or body.get("error_message", "")) if isinstance(body, dict) else ""
    # Of a database that is away there are two words.
    message = message.replace("invalid connection", "connection refused")
    return re.sub(r"RequestID.*NoSuch|line 1:\d+|0x\w+|n{50,}", "", UUID.sub("ID", message)).rsplit(": ", 1)[-1]


def met(name: str, found: Mapping[str, Any], run_ids: set[str]) -> bool:
    request, response = found["request"], found["response"]
    path = request["path"]
    if UNMET.search(path) or not path.startswith("/apis/"):
        return False
    # No command archives or deletes an experiment.
    if "/experiments/" in path and (request["method"] == "DELETE" or "ARCHIVED" in str(response) or "deleted" in name):
        return False
    about = re.search(r"/runs/([^/:?]+)", path)
    # A run that is terminated before it has begun shows steps for a moment.
    if name.endswith("-CANCELING-2tasks"):
        return False
    # Runs that another scenario has begun.
    known_run = not about or about[1] in run_ids or response["status"] == 404 or "1111" in path
    return known_run and response["status"] != 503


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_stand_in_answers_as_the_server_did(scenario: str, replayed: Replay) -> None:
    """When a scenario is replayed, then status, reason and shape are as recorded."""
    differences, compared = [], 0
    run_ids: set[str] = set()
    for name, found in recordings(scenario):
        request, response = found["request"], found["response"]
        body = response["body"]
        replayed.service.faults.database_away = name.endswith("-db-away") or ":3306" in str(body)
        if not met(name, found, run_ids):
            continue
        status, ours = replayed.ask(request, response)
        if request["method"] == "POST" and isinstance(body, dict) and "run_id" in body:
            run_ids.add(body["run_id"])
        # How many there are differs, so whether there is a next page, too.
        theirs = (
            {key: value for key, value in body.items() if key != "next_page_token"} if isinstance(body, dict) else body
        )
        mine = (
            {key: value for key, value in ours.items() if key != "next_page_token"} if isinstance(ours, dict) else ours
        )
        compared += 1
        if status != response["status"]:
            differences.append(
                f"{name}: answers {status}, {reason(ours)!r}; recorded {response['status']}, {reason(body)!r}"
            )
        elif reason(ours) != reason(body):
            differences.append(f"{name}: says {reason(ours)!r}; recorded {reason(body)!r}")
        elif shape(mine) != shape(theirs) and not _lists(theirs, mine):
            differences.append(f"{name}: is {shape(mine)}; recorded {shape(theirs)}")
    assert not differences, "\n".join(differences)
    assert compared >= 5
    print(f"{compared} exchanges of {scenario}")


def _lists(theirs: Any, mine: Any) -> bool:
    """Whether both are lists of runs: which ones there are is another matter."""
    return isinstance(theirs, dict) and isinstance(mine, dict) and "runs" in theirs and set(mine) <= set(theirs)


def test_the_webhook_refuses_what_the_server_refused() -> None:
    """Given the resources that were applied to a real server, then those and no others are refused, with its words."""
    pipelines = [{"metadata": {"name": name, "uid": name}} for name in ("needs", "good", "listed", "late")]
    applied: dict[str, dict[str, Any]] = {}
    differences = []
    for file in sorted((RECORDINGS / "12-webhook-kubectl").glob("0*.json")):
        found = json.loads(file.read_text())
        resource, said = found["input"], found["stderr"]
        name = resource.get("metadata", {}).get("name", "") if isinstance(resource, dict) else ""
        # Not the webhook's: kubectl's own checks, other kinds, files of several.
        if (
            not isinstance(resource, dict)
            or resource.get("kind") != "PipelineVersion"
            or "dry-run=client" in found["command"]
        ):
            continue
        if "strict decoding" in said or "namespaces" in said:
            continue
        recorded = said.rpartition("denied the request: ")[2].strip() if "denied the request" in said else ""
        ours = refusal(resource, applied.get(name), pipelines).strip()
        if ours != recorded:
            differences.append(f"{file.stem}: {ours!r}; recorded {recorded!r}")
        if not recorded:
            applied.setdefault(name, resource)
    assert not differences, "\n".join(differences)


def test_the_review_of_a_version_adds_its_owner() -> None:
    version = json.loads((RECORDINGS / "12-webhook-kubectl" / "900-get-pipelineversion.json").read_text())
    pipeline = json.loads((RECORDINGS / "12-webhook-kubectl" / "901-get-pipeline.json").read_text())
    plain = {**version, "metadata": {"name": version["metadata"]["name"], "namespace": NAMESPACE}}
    request = {"uid": "1", "kind": {"kind": "PipelineVersion"}, "operation": "CREATE", "object": plain}
    answer = review("/webhooks/mutate-pipelineversion", {"apiVersion": "v1", "request": request}, [pipeline])
    import base64

    [patch] = json.loads(base64.b64decode(answer["response"]["patch"]))
    for key in ("labels", "ownerReferences"):
        assert patch["value"][key] == version["metadata"][key]


@pytest.mark.parametrize(("scenario", "steps"), [("05-cache-hit", ["make", "train"]), ("07-retry", [])])
def test_the_steps_from_the_cache_are_told_from_those_that_ran(scenario: str, steps: list[str]) -> None:
    runs = [found["response"]["body"] for name, found in recordings(scenario) if "settled" in name]
    assert runs
    assert [from_cache(run) for run in runs] == [steps] * len(runs)
