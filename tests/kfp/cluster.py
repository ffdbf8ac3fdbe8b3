"""A stand-in for the API of the cluster: resources of any kind, admitted by webhooks, and what else is asked for."""

import itertools
import json
import re
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import yaml

from tests.kfp.admission import admitted, refusal
from tests.kfp.service import now

Resource = dict[str, Any]
WEBHOOK = "pipelineversions.pipelines.kubeflow.org"


@dataclass
class Cluster:
    """The resources, by plural and name; it is the ``Resources`` of a Service, too."""

    namespace: str
    objects: dict[tuple[str, str], Resource] = field(default_factory=dict)
    admission: str = "up"  # or "down", as while the pipeline server restarts; or "absent", as before its first start
    refusals: dict[str, tuple[str, str]] = field(default_factory=dict)  # plural: webhook, and what it says to each
    forbidden: set[str] = field(default_factory=set)  # plurals
    denied: set[tuple[str, str, str]] = field(default_factory=set)  # verb, resource and account ("": who asks)
    tokens: dict[str, tuple[str, str]] = field(default_factory=dict)  # token: user and audience
    paths: dict[str, Resource] = field(default_factory=dict)  # what is answered where no resource is
    logs: dict[str, str] = field(default_factory=dict)  # of the container main of each pod, by name
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    bearers: list[str] = field(default_factory=list)  # the tokens of who asked
    url: str = ""
    others: dict[str, "Cluster"] = field(default_factory=dict)  # the same cluster, in other namespaces
    _versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def ci(self) -> "Cluster":
        """The cluster in the namespace of Tekton."""
        return self.others[f"{self.namespace}-ci"]

    def list(self, plural: str) -> list[Resource]:
        return [resource for (kind, _), resource in self.objects.items() if kind == plural]

    def create_workflow(self, workflow: Resource) -> None:
        self.objects["workflows", workflow["metadata"]["name"]] = workflow

    def set_status(self, workflow: str, status: Resource) -> None:
        self.objects["workflows", workflow]["status"] = status

    def add(self, plural: str, resource: Resource) -> Resource:
        metadata = {
            "uid": str(uuid4()),
            "creationTimestamp": now(),
            "namespace": self.namespace,
            "resourceVersion": str(next(self._versions)),
            **resource["metadata"],
        }
        resource = {**resource, "metadata": metadata}
        self.objects[plural, metadata["name"]] = resource
        return resource

    def add_pod(self, run_id: str, step: str, spec: Resource | None = None, **status: Any) -> Resource:
        """Add the pod of a run's step."""
        metadata = {
            "name": f"prod-train-save-x2v9k-system-container-impl-{len(self.objects)}",
            "labels": {"pipeline/runid": run_id},
            "annotations": {"workflows.argoproj.io/node-name": f"prod-train-save-x2v9k.root.{step}.executor"},
        }
        return self.add("pods", {"metadata": metadata, "spec": spec or {}, "status": status})

    def add_event(self, about: Resource, reason: str, message: str, *, kind: str = "Warning", at: str = "") -> None:
        """Add an event about a resource."""
        metadata = {"name": f"{about['metadata']['name']}.{len(self.objects)}"}
        involved = {key: about["metadata"][key] for key in ("name", "uid")}
        event = {"type": kind, "reason": reason, "message": message, "lastTimestamp": at or now()}
        self.add("events", {"metadata": metadata, "involvedObject": involved, **event})

    def remove_pods(self) -> None:
        self.objects = {key: value for key, value in self.objects.items() if key[0] != "pods"}

    def kubeconfig(self, file: Path, token: str, ca: Path) -> Path:
        """Write a kubeconfig for this cluster; the pipeline server takes token and CA from there, too."""
        named = {
            "clusters": [{"name": "here", "cluster": {"server": self.url, "certificate-authority": str(ca)}}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": self.namespace}}],
        }
        file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **named, "current-context": "here"}))
        return file

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> tuple[int, Resource | str]:
        namespace = re.search("/namespaces/([^/]+)/", path)
        asked = namespace[1] if namespace else ""
        if path.endswith("/selfsubjectaccessreviews"):  # which says in itself what it is about
            asked = body["spec"]["resourceAttributes"]["namespace"]
        if asked in self.others:
            return self.others[asked].answer(method, path, query, body)
        self.asked.append((method, path, body))
        if path in self.paths:
            return 200, self.paths[path]
        if found := re.fullmatch(rf"/api/v1/namespaces/{self.namespace}/pods/([^/]+)/log", path):
            if "pods/log" in self.forbidden:
                return _status(403, 'pods "x" is forbidden: User "me" cannot get resource "pods/log"')
            pod, container = self.objects.get(("pods", found[1]), {}), query["container"]
            containers = [each["name"] for each in pod.get("spec", {}).get("containers", ())] or ["main"]
            if container not in containers:
                return _status(400, f"container {container} is not valid for pod {found[1]}")
            log = self.logs.get(found[1])
            return (200, log) if log is not None else _status(404, f'pods "{found[1]}" not found')
        found = re.fullmatch(rf"/(?:api|apis/[^/]+)/[^/]+/(?:namespaces/{self.namespace}/)?(\w+)(?:/([^/]+))?", path)
        if not found:
            return _status(404, "the server could not find the requested resource")
        plural, name = found.groups()
        if plural in self.forbidden:
            return _status(403, f'{plural} is forbidden: User "me" cannot do that')
        if plural.endswith("subjectaccessreviews"):
            return 201, self._review(body)
        if plural == "tokenreviews":
            return 201, self._review_token(body)
        if method == "GET" and not name:
            wanted = dict(pair.split("=") for pair in query.get("labelSelector", "").split(",") if pair)
            items = [each for each in self.list(plural) if wanted.items() <= each["metadata"].get("labels", {}).items()]
            if about := query.get("fieldSelector", "").removeprefix("involvedObject.name="):
                items = [each for each in items if each["involvedObject"]["name"] == about]
            return 200, {"kind": "List", "items": items}
        name = name or body["metadata"]["name"]
        before = self.objects.get((plural, name))
        if method == "POST":
            return self._create(plural, name, before, body, dry_run="dryRun" in query)
        if before is None:
            return _status(404, f'{plural} "{name}" not found')
        if method == "PATCH":
            body = _sealed(body, plural)
            version = before["metadata"]["resourceVersion"]
            if body.get("metadata", {}).get("resourceVersion", version) != version:
                return _status(409, f'Operation cannot be fulfilled on {plural} "{name}": the object has been modified')
            before |= {key: _merged(before.get(key), value) for key, value in body.items()}
            self.touch(before)
        if method == "DELETE":
            if before["metadata"].get("finalizers"):
                before["metadata"]["deletionTimestamp"] = now()
            else:
                del self.objects[plural, name]
        if before["metadata"].get("deletionTimestamp") and not before["metadata"].get("finalizers"):
            self.objects.pop((plural, name), None)
        return 200, before

    def _review(self, review: Resource) -> Resource:
        asked = review["spec"]["resourceAttributes"]
        account = review["spec"].get("user", "").rpartition(":")[2]
        allowed = (asked["verb"], asked["resource"], account) not in self.denied
        return {**review, "status": {"allowed": allowed and asked["namespace"] == self.namespace}}

    def _review_token(self, review: Resource) -> Resource:
        user, audience = self.tokens.get(review["spec"]["token"], ("", ""))
        known = bool(user) and audience in review["spec"]["audiences"]
        status = {"authenticated": True, "user": {"username": user}, "audiences": [audience]}
        return {**review, "status": status if known else {"authenticated": False}}

    def touch(self, resource: Resource) -> None:
        """Give the resource a new version, as every change does."""
        resource["metadata"]["resourceVersion"] = str(next(self._versions))

    def _create(
        self, plural: str, name: str, before: Resource | None, resource: Resource, *, dry_run: bool
    ) -> tuple[int, Resource]:
        if before:
            return _status(409, f'{plural} "{name}" already exists')
        metadata = {**resource["metadata"], "namespace": self.namespace}
        resource = {**_sealed(resource, plural), "metadata": metadata}
        if self.admission == "down":
            text = f'Internal error occurred: failed calling webhook "{WEBHOOK}": no endpoints available for service'
            return _status(500, text)
        if plural in self.refusals:
            webhook, reason = self.refusals[plural]
            return _status(400, f'admission webhook "{webhook}" denied the request: {reason}')
        if plural == "pipelineversions" and self.admission == "up":
            if reason := refusal(resource, None, self.list("pipelines")):
                return _status(400, f'admission webhook "{WEBHOOK}" denied the request: {reason}')
            resource["metadata"] = admitted(resource, self.list("pipelines"))
        return 201, resource if dry_run else self.add(plural, resource)


def _sealed(resource: Resource, plural: str) -> Resource:
    """A Secret as it is kept: what is given as text is encoded."""
    if plural != "secrets":
        return resource
    encoded = {key: b64encode(text.encode()).decode() for key, text in resource.get("stringData", {}).items()}
    rest = {key: value for key, value in resource.items() if key != "stringData"}
    return {**rest, "data": {**resource.get("data", {}), **encoded}}


def _merged(before: Any, patch: Any) -> Any:
    if not isinstance(before, dict) or not isinstance(patch, dict):
        return patch
    merged = {**before, **{key: _merged(before.get(key), value) for key, value in patch.items()}}
    return {key: value for key, value in merged.items() if value is not None}


def _status(code: int, message: str) -> tuple[int, Resource]:
    return code, {"kind": "Status", "status": "Failure", "message": message, "code": code}


@contextmanager
def serve_cluster(cluster: Cluster, certificate: Path) -> Iterator[Cluster]:
    """Serve the cluster's API on a loopback port."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes, the second of which would wait for 40 ms

        def _answer(self) -> None:
            url = urlsplit(self.path)
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            cluster.bearers.append(self.headers.get("Authorization", "").partition(" ")[2])
            code, body = cluster.answer(self.command, url.path, query, json.loads(content) if content else None)
            # A log is no JSON, and its bytes are as the step wrote them.
            answer = body.encode(errors="surrogateescape") if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 the names of the base class

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        cluster.url = f"https://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield cluster
        finally:
            server.shutdown()
            thread.join()
