"""A stand-in for the API of the cluster: custom resources, admitted by the webhook, and pods."""

import json
import re
import ssl
import threading
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
    forbidden: set[str] = field(default_factory=set)  # plurals
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    url: str = ""

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
            **resource["metadata"],
        }
        resource = {**resource, "metadata": metadata}
        self.objects[plural, metadata["name"]] = resource
        return resource

    def add_pod(self, run_id: str, step: str, **status: Any) -> None:
        """Add the pod of a run's step."""
        metadata = {
            "name": f"prod-train-save-x2v9k-system-container-impl-{len(self.objects)}",
            "labels": {"pipeline/runid": run_id},
            "annotations": {"workflows.argoproj.io/node-name": f"prod-train-save-x2v9k.root.{step}.executor"},
        }
        self.add("pods", {"metadata": metadata, "status": status})

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

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> tuple[int, Resource]:
        self.asked.append((method, path, body))
        found = re.fullmatch(rf"/apis?/.*namespaces/{self.namespace}/(\w+)(?:/([^/]+))?", path)
        if not found:
            return _status(404, "the server could not find the requested resource")
        plural, name = found.groups()
        if plural in self.forbidden:
            return _status(403, f'{plural} is forbidden: User "me" cannot do that')
        if method == "GET" and not name:
            key, _, value = query.get("labelSelector", "").partition("=")
            items = [
                each for each in self.list(plural) if not key or each["metadata"].get("labels", {}).get(key) == value
            ]
            return 200, {"kind": "List", "items": items}
        name = name or body["metadata"]["name"]
        before = self.objects.get((plural, name))
        if method == "POST":
            return self._create(plural, name, before, body, dry_run="dryRun" in query)
        if before is None:
            return _status(404, f'{plural} "{name}" not found')
        if method == "PATCH":
            before |= {key: _merged(before.get(key), value) for key, value in body.items()}
        return 200, before

    def _create(
        self, plural: str, name: str, before: Resource | None, resource: Resource, *, dry_run: bool
    ) -> tuple[int, Resource]:
        if before:
            return _status(409, f'{plural} "{name}" already exists')
        metadata = {**resource["metadata"], "namespace": self.namespace}
        resource = {**resource, "metadata": metadata}
        if self.admission == "down":
            text = f'Internal error occurred: failed calling webhook "{WEBHOOK}": no endpoints available for service'
            return _status(500, text)
        if plural == "pipelineversions" and self.admission == "up":
            if reason := refusal(resource, None, self.list("pipelines")):
                return _status(400, f'admission webhook "{WEBHOOK}" denied the request: {reason}')
            resource["metadata"] = admitted(resource, self.list("pipelines"))
        return 201, resource if dry_run else self.add(plural, resource)


def _merged(before: Any, patch: Any) -> Any:
    if not isinstance(before, dict) or not isinstance(patch, dict):
        return patch
    return {**before, **{key: _merged(before.get(key), value) for key, value in patch.items()}}


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
            code, body = cluster.answer(self.command, url.path, query, json.loads(content) if content else None)
            answer = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PATCH = _answer  # noqa: N815 the names of the base class

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
