"""The pipeline server's REST API, with its traps, and the agent that follows workflows."""

import json
import random
import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import NAMESPACE_OID, uuid4, uuid5

from tests.kfp.execution import Executor, Job, Task, tasks_in
from tests.kfp.listing import BadOptions, BadPageToken, listed

Json = dict[str, Any]

EDITOR = "default-editor"  # the account of runs where there are many users
RUNNER = "pipeline-runner-dspa"  # and on OpenShift AI, whose server takes no other
NEVER, NOT_YET = "0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z"
UNFINISHED = ("PENDING", "RUNNING", "CANCELING")
RUN_KEYS = (
    *("name", "display_name", "state", "status", "storage_state", "run_id", "created_at", "finished_at"),
    "recurring_run_id",
)
RUN_FIELDS = {
    *("run_id", "display_name", "experiment_id", "description", "pipeline_version_reference", "pipeline_spec"),
    *("runtime_config", "service_account"),
}
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 501: 12}
TYPES: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "NUMBER_INTEGER": ("double or integer", (int, float)),
    "NUMBER_DOUBLE": ("double or integer", (int, float)),
    "STRING": ("string", (str,)),
    "BOOLEAN": ("bool", (bool,)),
    "STRUCT": ("struct", (dict,)),
    "LIST": ("list", (list,)),
}


@dataclass(frozen=True)
class Answer:
    """Of the server, or of what stands in front of it."""

    status: int
    body: Json | str = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


class Failure(Exception):
    """The server answers with an error; ``clauses`` are the parts of its message."""

    def __init__(self, status: int, *clauses: str, detailed: bool = True, code: int = 0) -> None:
        super().__init__(": ".join(clauses))
        self.status = status
        # Of an error of its own the server shows no detail.
        self.detail = "" if not detailed else "Internal Server Error" if status == 500 else clauses[-1]
        self.code = code or CODES[status]

    @property
    def answer(self) -> Answer:
        body: Json = {"code": self.code, "message": str(self)}
        if self.detail:
            kind = "type.googleapis.com/google.rpc.Status"
            body["details"] = [{"@type": kind, "code": self.code, "message": self.detail}]
        return Answer(self.status, body)


class Resources(Protocol):
    """The cluster's resources, as far as the server needs them."""

    def list(self, plural: str) -> list[Json]: ...

    def create_workflow(self, workflow: Json) -> None: ...

    def set_status(self, workflow: str, status: Json) -> None: ...


class Access(Protocol):
    """Who is who to a server of many users, and who may do what."""

    def user(self, token: str) -> str:
        """The user of a token for this server; nobody where it is none."""
        ...

    def allowed(self, user: str, verb: str, resource: str, namespace: str, name: str) -> bool:
        """Whether a user may do that with what KFP keeps in a namespace."""
        ...


@dataclass
class Faults:
    """What goes wrong; a test sets it."""

    front: Answer | None = None  # what stands in front answers this, and the server is not asked
    database_away: bool = False
    loses_next_run: bool = False  # the database fails between the workflow and the run
    agent_away: bool = False
    breaks_off_after_post: bool = False  # the connection ends before the answer to the next POST of a run


@dataclass
class Service:
    """Experiments and runs, kept in a file where one is given, and pipelines out of ``resources``.

    With ``access`` it is a server of many users, as Kubeflow's: it wants to know who asks, and for which namespace. Its
    pipelines and workflows are those of one ``namespace`` all the same.
    """

    resources: Resources
    executor: Executor
    namespace: str
    file: Path | None = None
    access: Access | None = None
    late: float = 0.0  # seconds by which the steps' last states come after the run's
    faults: Faults = field(default_factory=Faults)
    experiments: dict[str, Json] = field(default_factory=dict)
    runs: dict[str, Json] = field(default_factory=dict)
    workflows: dict[str, Json] = field(default_factory=dict)
    recurring_runs: list[Json] = field(default_factory=list)
    asked: list[tuple[str, str, Json | None]] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _token: str = field(default="", repr=False)  # of the request that is answered

    def __post_init__(self) -> None:
        if self.file and self.file.is_file():
            kept = json.loads(self.file.read_text())
            self.experiments, self.runs, self.workflows = kept["experiments"], kept["runs"], kept["workflows"]
        if not self.experiments and not self.access:
            self.add_experiment({"display_name": "Default"})

    # What is asked

    def answer(self, method: str, path: str, query: Mapping[str, str], content: bytes, token: str = "") -> Answer:
        """Answer a request with a bearer token; ``path`` begins with /apis."""
        with self._lock:
            self._token = token
            try:
                self.asked.append((method, path, json.loads(content) if content else None))
                return self._routed(method, path, query, content)
            except Failure as failure:
                return failure.answer
            except ValueError:
                character = content[1:2].decode(errors="replace")
                text = f"invalid character '{character}' looking for beginning of object key string"
                return Failure(400, text, detailed=False).answer

    def _routed(self, method: str, path: str, query: Mapping[str, str], content: bytes) -> Answer:
        for verb, pattern, action in self._routes():
            if found := re.fullmatch(f"/apis/{pattern}", path):
                if verb == method:
                    body = json.loads(content) if content else {}
                    return action(*found.groups(), query=query, body=body)
                if pattern == "v2beta1/runs" and method not in ("GET", "POST"):
                    raise Failure(501, "Method Not Allowed", detailed=False)
        raise Failure(404, "Not Found", detailed=False)

    def _routes(self) -> list[tuple[str, str, Callable[..., Answer]]]:
        return [
            ("GET", "(v1beta1|v2beta1)/healthz", self._healthz),
            ("GET", "v2beta1/pipelines", self._list_pipelines),
            ("GET", "v2beta1/pipelines/names/([^/]+)", self._get_pipeline_by_name),
            ("GET", "v2beta1/pipelines/([^/]+)", self._get_pipeline),
            ("GET", "v2beta1/pipelines/([^/]+)/versions", self._list_versions),
            ("GET", "v2beta1/pipelines/([^/]+)/versions/([^/]+)", self._get_version),
            ("GET", "v2beta1/experiments", self._list_experiments),
            ("POST", "v2beta1/experiments", self._create_experiment),
            ("GET", "v2beta1/experiments/([^/]+)", self._get_experiment),
            ("GET", "v2beta1/runs", self._list_runs),
            ("POST", "v2beta1/runs", self._create_run),
            ("GET", "v2beta1/runs/([^/:]+)", self._get_run),
            ("DELETE", "v2beta1/runs/([^/:]+)", self._delete_run),
            ("POST", "v2beta1/runs/([^/:]+):terminate", self._terminate_run),
            ("POST", "v2beta1/runs/([^/:]+):retry", self._retry_run),
            ("GET", "v2beta1/recurringruns", self._list_recurring_runs),
            ("GET", "v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", self._log),
        ]

    def _database(self, *clauses: str) -> None:
        if self.faults.database_away:
            away = "dial tcp 10.96.0.86:3306: connect: connection refused"
            raise Failure(500, *clauses, away, away)

    def _authorize(self, verb: str, resource: str, namespace: str, name: str = "") -> None:
        """Refuse the request, unless its token's user may do that."""
        if not self.access:
            return
        wrong = "Failed to authorize with API"
        if not namespace:
            kind = {"experiments": "An experiment", "runs": "A run"}[resource]
            text = f"{kind} cannot have an empty namespace in multi-user mode"
            raise Failure(400, wrong, "Invalid input error", text)
        user = self.access.user(self._token)
        if not user:
            nobody = "Failed to check authorization. User identity is empty in the request header"
            why = "Request header error: there is no user identity header."
            if self._token:
                why = f"[{why}, Authentication failure: Review.Status.Authenticated is false]"
            raise Failure(401, wrong, nobody, why)
        if not self.access.allowed(user, verb, resource, namespace, name):
            attributes = (
                f"Namespace:{namespace},Verb:{verb},Group:pipelines.kubeflow.org,Version:v1beta1,Resource:{resource},"
                f"Subresource:,Name:{name},FieldSelector:nil,LabelSelector:nil,"
            )
            refused = f"User '{user}' is not authorized with reason:  (request: &ResourceAttributes{{{attributes}}})"
            raise Failure(403, wrong, "PermissionDenied", refused)

    def _namespace_of(self, experiment_id: str) -> str:
        return str(self.experiments[experiment_id].get("namespace", ""))

    def _healthz(self, version: str, **_: Any) -> Answer:
        found = {"commit_sha": "unknown", "tag_name": "unknown", "multi_user": bool(self.access)}
        return Answer(200, found | ({"pipeline_store": "kubernetes"} if version == "v2beta1" else {}))

    # Pipelines and versions are the cluster's resources.

    def _pipelines(self) -> list[Json]:
        return [
            _without_empty(
                pipeline_id=each["metadata"]["uid"],
                display_name=each.get("spec", {}).get("displayName") or each["metadata"]["name"],
                name=each["metadata"]["name"],
                description=each.get("spec", {}).get("description"),
                created_at=each["metadata"]["creationTimestamp"],
                namespace=self.namespace,
            )
            for each in self.resources.list("pipelines")
        ]

    def _versions(self) -> list[Json]:
        ids = {pipeline["name"]: pipeline["pipeline_id"] for pipeline in self._pipelines()}
        return [
            _without_empty(
                pipeline_id=ids.get(each["spec"]["pipelineName"]),
                pipeline_version_id=each["metadata"]["uid"],
                display_name=each["spec"].get("displayName") or each["metadata"]["name"],
                name=each["metadata"]["name"],
                description=each["spec"].get("description"),
                created_at=each["metadata"]["creationTimestamp"],
                code_source_url=each["spec"].get("codeSourceURL"),
                pipeline_spec={"pipeline_spec": each["spec"]["pipelineSpec"], "platform_spec": platform}
                if (platform := each["spec"].get("platformSpec"))
                else each["spec"]["pipelineSpec"],
            )
            for each in self.resources.list("pipelineversions")
        ]

    def _list(self, name: str, items: list[Json], query: Mapping[str, str], *wrong: str, **options: Any) -> Answer:
        try:
            page, total, token = listed(items, query, **options)
        except BadPageToken:
            text = "illegal base64 data at input byte 0"
            raise Failure(400, *wrong, "InvalidInputError", "Invalid page token", text) from None
        except BadOptions as error:
            raise Failure(400, *wrong, "Invalid input error", str(error)) from None
        answer: Json = {name: page, "total_size": total} if page else {}
        return Answer(200, answer | ({"next_page_token": token} if token else {}))

    def _list_pipelines(self, *, query: Mapping[str, str], **_: Any) -> Answer:
        keys, store = ("name", "display_name", "pipeline_id", "created_at"), "Kubernetes pipeline store"
        if namespace := query.get("namespace", ""):
            self._authorize("list", "pipelines", namespace)
        wrong = "Failed to list pipelines due invalid list options"
        return self._list("pipelines", self._pipelines(), query, wrong, kind="Pipeline", keys=keys, store=store)

    def _list_versions(self, pipeline_id: str, *, query: Mapping[str, str], **_: Any) -> Answer:
        if not any(pipeline["pipeline_id"] == pipeline_id for pipeline in self._pipelines()):
            raise Failure(
                404,
                f"Failed to list pipeline versions for pipeline {pipeline_id}",
                f"Failed to list pipeline versions due to error fetching the namespace for pipeline {pipeline_id}",
                f"Failed to get namespace for pipeline id {pipeline_id}",
                f"Failed to get a pipeline with id {pipeline_id}",
                "ResourceNotFoundError",
                f"Pipeline {pipeline_id} not found",
            )
        self._authorize("list", "pipelines", self.namespace)
        versions = [version for version in self._versions() if version.get("pipeline_id") == pipeline_id]
        keys = ("name", "display_name", "pipeline_id", "created_at")
        return self._list("pipeline_versions", versions, query, kind="PipelineVersion", keys=keys, store="Kubernetes")

    def _get_pipeline(self, pipeline_id: str, **_: Any) -> Answer:
        for pipeline in self._pipelines():
            if pipeline["pipeline_id"] == pipeline_id:
                self._authorize("get", "pipelines", self.namespace, pipeline["name"])
                return Answer(200, pipeline)
        raise Failure(
            404,
            f"Failed to get a pipeline {pipeline_id}. Check error stack",
            f"Failed to get a pipeline with id {pipeline_id}",
            "ResourceNotFoundError",
            f"Pipeline {pipeline_id} not found",
        )

    def _get_pipeline_by_name(self, name: str, *, query: Mapping[str, str], **_: Any) -> Answer:
        # A server for a single user has one namespace, whichever is asked for.
        namespace = query.get("namespace", "") if self.access else self.namespace
        if namespace:
            self._authorize("get", "pipelines", namespace, name)
        for pipeline in self._pipelines():
            if (pipeline["namespace"], pipeline["name"]) == (namespace, name):
                return Answer(200, pipeline)
        raise Failure(
            404,
            f"Failed to get a pipeline with name {name} and namespace {self.namespace}. Check error stack.",
            f"Failed to get a pipeline named {name} in namespace ",
            "ResourceNotFoundError",
            f"Namespace/Pipeline {self.namespace}/{name} not found",
        )

    def _get_version(self, pipeline_id: str, version_id: str, **_: Any) -> Answer:
        for version in self._versions():
            if (version.get("pipeline_id"), version["pipeline_version_id"]) == (pipeline_id, version_id):
                self._authorize("get", "pipelines", self.namespace)
                return Answer(200, version)
        raise Failure(
            404,
            f"Failed to get a pipeline version {version_id}",
            f"Failed to get a pipeline version with id {version_id}",
            "ResourceNotFoundError",
            f"PipelineVersion {version_id} not found",
        )

    # Experiments

    def add_experiment(self, body: Json, experiment_id: str = "") -> Json:
        experiment = {
            "experiment_id": experiment_id or str(uuid4()),
            **_without_empty(display_name=body["display_name"], description=body.get("description")),
            **_without_empty(namespace=body.get("namespace", "") if self.access else ""),
            "created_at": now(),
            "storage_state": "AVAILABLE",
            "last_run_created_at": NOT_YET,
        }
        self.experiments[experiment["experiment_id"]] = experiment
        self._keep()
        return experiment

    def _list_experiments(self, *, query: Mapping[str, str], **_: Any) -> Answer:
        self._database("List experiments failed", "List experiments failed", "InternalServerError")
        namespace = query.get("namespace", "") if self.access else ""
        self._authorize("list", "experiments", namespace)
        keys, found = ("name", "display_name"), [*self._experiments_in(namespace)]
        return self._list("experiments", found, query, "Failed to list", kind="Experiment", keys=keys)

    def _experiments_in(self, namespace: str) -> list[Json]:
        return [each for each in self.experiments.values() if each.get("namespace", "") == namespace]

    def _create_experiment(self, *, body: Json, **_: Any) -> Answer:
        self._database("Failed to create a experiment", "InternalServerError")
        namespace = body.get("namespace", "") if self.access else ""
        self._authorize("create", "experiments", namespace, body.get("display_name", ""))
        name, wrong = (
            body.get("display_name", ""),
            "Experiment must have a non-empty name" * ("display_name" not in body),
        )
        if not name or len(name) > 128:
            raise Failure(
                500,
                "[ExperimentServer]: Failed to create a experiment due to conversion error",
                "InternalServerError",
                "Failed to convert API experiment to model experiment",
                "Invalid input error",
                wrong or "Experiment.Name length cannot exceed 128",
            )
        # The database compares without case.
        if name.lower() in (each["display_name"].lower() for each in self._experiments_in(namespace)):
            raise Failure(
                409,
                "Failed to create a experiment",
                "Already exist error",
                f"Failed to create a new experiment. The name {name} already exists. Please specify a new name",
            )
        return Answer(200, self.add_experiment(body))

    def _get_experiment(self, experiment_id: str, **_: Any) -> Answer:
        if experiment := self.experiments.get(experiment_id):
            self._authorize("get", "experiments", self._namespace_of(experiment_id), experiment["display_name"])
            return Answer(200, experiment)
        raise Failure(
            404, "Failed to fetch experiment", "ResourceNotFoundError", f"Experiment {experiment_id} not found"
        )

    # Runs

    def _list_runs(self, *, query: Mapping[str, str], **_: Any) -> Answer:
        self._database("Failed to list runs", "Failed to list runs", "InternalServerError", "Failed to list runs")
        experiment_id = query.get("experiment_id", "")
        if experiment_id and experiment_id not in self.experiments:
            raise Failure(
                404,
                "Failed to list runs",
                f"Failed to list runs due to error fetching namespace for experiment {experiment_id}. Try filtering "
                "based on namespace",
                f"Failed to fetch namespace from experiment {experiment_id}",
                "ResourceNotFoundError",
                f"Experiment {experiment_id} not found",
            )
        namespace = self._namespace_of(experiment_id) if experiment_id else query.get("namespace", "")
        self._authorize("list", "runs", namespace)
        runs = [
            run
            for run in self.runs.values()
            if experiment_id in ("", run["experiment_id"])
            and (not self.access or self._namespace_of(run["experiment_id"]) == namespace)
        ]
        return self._list("runs", runs, query, "Failed to create list options", kind="Run", keys=RUN_KEYS)

    def _get_run(self, run_id: str, **_: Any) -> Answer:
        wrong = "Failed to get a run", f"Failed to fetch run {run_id}"
        self._database(*wrong, "InternalServerError", "Failed to get run")
        if run := self.runs.get(run_id):
            self._authorize("get", "runs", self._namespace_of(run["experiment_id"]), run["display_name"])
            return Answer(200, run)
        raise Failure(404, *wrong, "ResourceNotFoundError", f"Run {run_id} not found")

    def _create_run(self, *, body: Json, **_: Any) -> Answer:
        wrong = "Failed to create a new run"
        for key in body:
            if key not in RUN_FIELDS:
                raise Failure(400, "proto", f'(line 1:308): unknown field "{key}"', detailed=False)
        if not isinstance(name := body.get("display_name", ""), str):
            text = f"(line 1:18): invalid value for string field displayName: {name}"
            raise Failure(400, "proto", text, detailed=False)
        if not name:
            raise Failure(
                500,
                "CreateJob(job.ToV2())Failed to create a run due to conversion error",
                "InternalServerError",
                "Failed to convert a API run detail to its internal representation",
                "Invalid input error",
                "Run name cannot be empty",
            )
        experiment_id = body.get("experiment_id") or ("" if self.access else next(iter(self.experiments)))
        if not experiment_id:
            self._authorize("create", "runs", "")
        namespace = f"Failed to fetch namespace from experiment {experiment_id}"
        combination = (
            "Failed to create a run due to invalid experimentId and namespace combination",
            f"Failed to fetch namespace for experiment {experiment_id}",
            namespace,
        )
        self._database(wrong, *combination, "InternalServerError", "Failed to get experiment")
        if experiment_id not in self.experiments:
            missing = f"Experiment {experiment_id} not found"
            raise Failure(404, wrong, *combination, "ResourceNotFoundError", missing)
        self._authorize("create", "runs", self._namespace_of(experiment_id))
        reference, spec, platform = self._resolved(body)
        parameters = body.get("runtime_config", {}).get("parameters", {})
        if reason := _wrong_parameter(spec, parameters):
            generated = "Failed to generate the ExecutionSpec", "invalid pipeline job inputs"
            raise Failure(400, wrong, *generated, "Invalid input error", reason)
        run_id = body.get("run_id") or str(uuid4())
        # The workflow comes first: it stays when the database then fails.
        workflow = self._start_workflow(run_id, spec, platform, parameters)
        stored = wrong, "Failed to create a run", "InternalServerError", f"Failed to store run {name} to table"
        if self.faults.loses_next_run:
            self.faults.loses_next_run = False
            raise Failure(500, *stored, "invalid connection", "invalid connection")
        if run_id in self.runs:
            raise Failure(500, *stored, f"Error 1062 (23000): Duplicate entry '{run_id}' for key 'PRIMARY'")
        if len(name) > 255:
            raise Failure(500, *stored, "Error 1406 (22001): Data too long for column 'DisplayName' at row 1")
        created = now()
        source = {"pipeline_version_reference": reference} if reference else {"pipeline_spec": spec}
        self.runs[run_id] = {
            "experiment_id": experiment_id,
            "run_id": run_id,
            "display_name": name,
            "storage_state": "AVAILABLE",
            **source,
            **({"runtime_config": body["runtime_config"]} if body.get("runtime_config") else {}),
            "service_account": body.get("service_account") or (EDITOR if self.access else "pipeline-runner"),
            "created_at": created,
            "scheduled_at": created,
            "finished_at": NOT_YET,
            "state": "PENDING",
            "state_history": [{"update_time": created, "state": "PENDING"}],
        }
        self.workflows[workflow]["counts"] = True
        self.experiments[experiment_id]["last_run_created_at"] = created
        self._keep()
        return Answer(200, self.runs[run_id])

    def _resolved(self, body: Json) -> tuple[Json, Json, Json]:
        """The reference to the version, its compiled spec, and the platform's part of that."""
        fetching = (
            "Failed to create a new run",
            "InternalServerError",
            "Failed to create a run due to error fetching manifest",
        )
        if spec := body.get("pipeline_spec"):
            return {}, spec.get("pipeline_spec", spec), spec.get("platform_spec", {})
        reference = body.get("pipeline_version_reference", {})
        if not reference:
            raise Failure(
                500, *fetching, "Invalid input error", "Failed to fetch a template with an empty pipeline spec manifest"
            )
        retrieving = *fetching, "Failed to fetch a template due to error retrieving pipeline version"
        version_id, pipeline_id = reference.get("pipeline_version_id", ""), reference.get("pipeline_id", "")
        versions = sorted(self._versions(), key=lambda each: str(each["created_at"]))
        found = [
            each
            for each in versions
            if version_id in ("", each["pipeline_version_id"])
            and (version_id or each.get("pipeline_id") == pipeline_id)
        ]
        if not found:
            raise Failure(
                500,
                *retrieving,
                f"Failed to fetch a pipeline version and its manifest from pipeline version {version_id}",
                f"Failed to get a pipeline version with id {version_id}",
                "ResourceNotFoundError",
                f"PipelineVersion {version_id} not found",
            )
        version = found[-1]
        if pipeline_id not in ("", version["pipeline_id"]):
            raise Failure(
                500,
                *retrieving,
                "Invalid input error",
                f"Pipeline version {version_id} belongs to pipeline {version['pipeline_id']} (not {pipeline_id})",
            )
        spec = version["pipeline_spec"]
        reference = {"pipeline_id": version["pipeline_id"], "pipeline_version_id": version["pipeline_version_id"]}
        return reference, spec.get("pipeline_spec", spec), spec.get("platform_spec", {})

    def _start_workflow(self, run_id: str, spec: Json, platform: Json, parameters: Json) -> str:
        suffix = "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
        name = f"{spec['pipelineInfo']['name']}-{suffix}"
        metadata = {"name": name, "namespace": self.namespace, "labels": {"pipeline/runid": run_id}}
        resource = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata, "spec": {}}
        self.resources.create_workflow({**resource, "status": {"phase": "Running"}})
        job = Job(name, run_id, spec, platform, parameters, EDITOR if self.access else RUNNER)
        self.workflows[name] = {"run_id": run_id, "began": now(), "phase": "Running", "first": job.first_step}
        self.executor.start(job)
        self._keep()
        return name

    def _terminate_run(self, run_id: str, **_: Any) -> Answer:
        wrong = "Failed to terminate a run", f"Failed to terminate run {run_id}"
        run = self.runs.get(run_id)
        if not run:
            raise Failure(
                404,
                wrong[0],
                f"{wrong[1]} due to error fetching the run",
                f"Failed to fetch run {run_id}",
                "ResourceNotFoundError",
                f"Run {run_id} not found",
            )
        self._authorize("terminate", "runs", self._namespace_of(run["experiment_id"]), run["display_name"])
        if run["state"] not in ("PENDING", "RUNNING"):
            missing = f"Failed to terminate a run {run_id}. Row not found"
            raise Failure(400, *wrong, "Invalid input error", missing)
        _move(run, "CANCELING")
        self.executor.terminate(self._workflow_of(run_id))
        self._keep()
        return Answer(200)

    def _retry_run(self, run_id: str, **_: Any) -> Answer:
        """As RetryRun in backend/src/apiserver/resource/resource_manager.go, and GenerateRetryExecution beside it."""
        failed = f"Failed to retry run {run_id}"
        run = self.runs.get(run_id)
        if not run:
            raise Failure(
                404,
                "Failed to retry a run",
                f"{failed} due to error fetching the run",
                f"Failed to fetch run {run_id}",
                "ResourceNotFoundError",
                f"Run {run_id} not found",
            )
        self._authorize("retry", "runs", self._namespace_of(run["experiment_id"]), run["display_name"])
        if run["state"] == "PENDING":
            what = f"{failed} due to error fetching workflow manifest"
            empty = "Workflow manifest cannot be empty"
            raise Failure(409, "Failed to retry a run", "BadRequestError", what, "Invalid input error", empty, code=10)
        name = self._workflow_of(run_id)
        if self.workflows[name]["phase"] != "Failed":
            wrong = "BadRequestError", "Workflow must be Failed/Error to retry", "workflow cannot be retried"
            raise Failure(409, "Failed to retry a run", failed, *wrong, code=10)
        try:
            self.executor.retry(name)
        except NotImplementedError as error:
            raise Failure(500, "Failed to retry a run", failed, "InternalServerError", str(error)) from None
        self.workflows[name] |= {"phase": "Running"}
        self.workflows[name].pop("ended", None)
        self.resources.set_status(name, {"phase": "Running"})
        run["finished_at"] = NOT_YET
        _move(run, "RUNNING")
        self._keep()
        return Answer(200)

    def _list_recurring_runs(self, *, query: Mapping[str, str], **_: Any) -> Answer:
        self._authorize("list", "jobs", query.get("namespace", ""))
        wrong = "Failed to create list options"
        return self._list("recurringRuns", self.recurring_runs, query, wrong, kind="RecurringRun", keys=("created_at",))

    def _delete_run(self, run_id: str, **_: Any) -> Answer:
        if run_id not in self.runs:
            raise Failure(
                404,
                "Failed to delete a run",
                f"Failed to delete run {run_id} as it does not exist",
                f"Failed to fetch run {run_id}",
                "ResourceNotFoundError",
                f"Run {run_id} not found",
            )
        run = self.runs[run_id]
        self._authorize("delete", "runs", self._namespace_of(run["experiment_id"]), run["display_name"])
        self.executor.terminate(self._workflow_of(run_id))
        del self.runs[run_id]
        self._keep()
        return Answer(200)

    def _workflow_of(self, run_id: str) -> str:
        return next(name for name, each in self.workflows.items() if each["run_id"] == run_id and each.get("counts"))

    # Logs

    def _log(self, run_id: str, node: str, **_: Any) -> Answer:
        plain = {"Content-Type": "text/plain; charset=utf-8"}
        wrong = f"BadRequestError: Failed to read logs for run {run_id}"
        if run_id in self.runs:
            workflow, node = self._workflow_of(run_id), node.replace("-system-container-impl", "")
            for task in tasks_in(self.executor.look(workflow).output):
                if node in (node_id(workflow, f"{task.name}.executor"), node_id(workflow, task.name)):
                    return Answer(200, _launched(task), plain)
            archived = f"/artifacts/{workflow}/{node}/main.log"
            text = (
                f"{wrong}: InternalServerError: Failed to read logs from archive {node} due to error fetching the log "
                f'file: InternalServerError: Failed to get file reader for {archived}: blob (key "{archived}") '
                "(code=NotFound): operation error S3: GetObject, NoSuchKey: The specified key does not exist."
            )
        else:
            missing = f"Failed to fetch run {run_id}: ResourceNotFoundError: Run {run_id} not found"
            text = f"{wrong} due to run fetching error: {missing}"
        # A failure has status 200, too.
        return Answer(200, json.dumps({"error_message": text, "error_details": text}), plain)

    # The agent

    def tick(self) -> None:
        """See what became of the workflows."""
        with self._lock:
            for name, workflow in self.workflows.items():
                if workflow["phase"] == "Running" or "ended" in workflow:
                    self._follow(name, workflow)

    def _follow(self, name: str, workflow: Json) -> None:
        look = self.executor.look(name)
        tasks = tasks_in(look.output)
        run = self.runs.get(workflow["run_id"])
        if not run or not workflow.get("counts"):
            # An orphan's steps ask the server for a run that it does not know; a second one of a run really works.
            if look.code is not None or not run:
                self._end_workflow(name, workflow, "Succeeded" if run and look.code == 0 else "Failed")
                self.executor.terminate(name)
                del workflow["ended"]
            return
        if look.code is not None and workflow["phase"] == "Running":
            self._end_workflow(name, workflow, "Failed" if look.code else "Succeeded")
        if self.faults.agent_away:
            return
        ended = look.code is not None
        if run["state"] == "PENDING" and not ended:
            _move(run, "RUNNING")
        fresh = not ended or time.monotonic() >= workflow["ended"] + self.late
        if fresh:
            before = {each["task_id"]: each for each in run.get("run_details", {}).get("task_details", ())}
            details = _details(name, workflow, tasks, look.started, look.code, before, run)
            run["run_details"] = {"task_details": details}
        if ended and run["state"] in UNFINISHED:
            if run["state"] == "PENDING":
                _move(run, "RUNNING")
            _move(run, "FAILED" if look.code else "SUCCEEDED")
            run["finished_at"] = now()
        if ended and fresh:
            del workflow["ended"]  # all is said
        self._keep()

    def _end_workflow(self, name: str, workflow: Json, phase: str) -> None:
        workflow["phase"], workflow["ended"] = phase, time.monotonic()
        self.resources.set_status(name, {"phase": phase})

    def _keep(self) -> None:
        if self.file:
            partial = self.file.with_suffix(".partial")
            kept = {"experiments": self.experiments, "runs": self.runs, "workflows": self.workflows}
            partial.write_text(json.dumps(kept))
            partial.replace(self.file)


def now() -> str:
    """The time as the server writes it: UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def node_id(workflow: str, node: str) -> str:
    """The id of a node of Argo's."""
    return f"{workflow}-{zlib.crc32(node.encode())}"


def _move(run: Json, state: str) -> None:
    run["state"] = state
    run["state_history"].append({"update_time": now(), "state": state})


def _without_empty(**fields: Any) -> Json:
    return {key: value for key, value in fields.items() if value}


def _wrong_parameter(spec: Json, parameters: Json) -> str:
    inputs = spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {})
    for name, definition in sorted(inputs.items()):
        if name not in parameters:
            if not (definition.get("isOptional") or "defaultValue" in definition):
                return f"parameter {name} is not optional, yet has neither default value nor user provided value"
            continue
        kind, types = TYPES[definition["parameterType"]]
        value = parameters[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            what = (
                "the parameter value is not of number" if "double" in kind else f"the input parameter is not of {kind}"
            )
            return f"input parameter {name} requires type {kind}, but {what} value type"
    unknown = [name for name in parameters if name not in inputs]
    return f"parameter(s) provided are not required by pipeline: {', '.join(unknown)}" if unknown else ""


def _details(
    name: str,
    workflow: Json,
    tasks: list[Task],
    started: bool,
    code: int | None,
    before: Mapping[str, Json],
    run: Json,
) -> list[Json]:
    """The entries of a run's tasks: Argo's nodes, in no order."""
    whole = "RUNNING" if code is None else "FAILED" if code else "SUCCEEDED"
    nodes = [(name, whole, ["root-driver"]), ("root-driver", "SUCCEEDED", ["root"])]
    if not started:
        # A pod that cannot start: whatever holds it is running, and its executor is pending for ever.
        tasks = tasks or [Task(workflow["first"])]
    nodes.append(("root", whole, [f"{task.name}-driver" for task in tasks[:1]]))
    for task in tasks:
        state = task.state if code is None or task.state != "RUNNING" else "FAILED"
        nodes.append((f"{task.name}-driver", "SUCCEEDED", [task.name]))
        nodes.append((task.name, state, [f"{task.name}.executor"]))
        executor = "SKIPPED" if task.cached else state
        nodes.append((f"{task.name}.executor", executor if started else "PENDING", []))
    seen = now()
    at_once = {name for task in tasks if task.cached for name in (task.name, f"{task.name}.executor")}
    entries = [_entry(name, workflow, node, before, run, seen, ran=node[0] not in at_once) for node in nodes]
    # What the launcher leaves of a cache's record.
    record = {"run_id": run["run_id"], "task_id": str(uuid5(NAMESPACE_OID, f"{name}.record")), "execution_id": "10"}
    if tasks and code is not None:
        entries.append({**record, "create_time": NEVER, "start_time": NEVER, "end_time": NEVER})
    return sorted(entries, key=lambda entry: str(entry["task_id"]))


def _entry(
    name: str,
    workflow: Json,
    node: tuple[str, str, list[str]],
    before: Mapping[str, Json],
    run: Json,
    seen: str,
    ran: bool,
) -> Json:
    node_name, state, children = node
    task_id = str(uuid5(NAMESPACE_OID, f"{name}.{node_name}"))
    known = before.get(task_id, {})
    history = list(known.get("state_history", ()))
    if ran and not history and state in ("SUCCEEDED", "FAILED"):
        history.append({"update_time": seen, "state": "RUNNING"})  # a real one takes long enough to be seen
    if not history or history[-1]["state"] != state:
        history.append({"update_time": seen, "state": state})
    ended = state in ("SUCCEEDED", "FAILED", "SKIPPED")
    entry = {
        "run_id": run["run_id"],
        "task_id": task_id,
        "display_name": "executor" if node_name.endswith(".executor") else node_name,
        "create_time": workflow["began"],
        "start_time": known.get("start_time", seen),
        "end_time": (known["end_time"] if known.get("end_time", NEVER) != NEVER else seen) if ended else NEVER,
        "state": state,
        "state_history": history,
    }
    return entry | ({"child_tasks": [{"pod_name": node_id(name, child)} for child in children]} if children else {})


def _launched(task: Task) -> str:
    """A step's log as the launcher leaves it."""
    head = ["I1123 10:00:00.000000      15 main.go:67] Setting log level to: '1'"]
    tail = ["I1123 10:00:01.000000      15 launcher_v2.go:206] publish success."]
    if task.state == "FAILED":
        failed = (
            "E1123 10:00:01.000000      15 launcher_v2.go:449] Component failed to execute successfully: exit status 1"
        )
        last = "F1123 10:00:01.000000      15 main.go:59] failed to execute component: exit status 1"
        tail = [failed, *tail, last]
    return "\n".join([*head, *task.lines, *tail, ""])
