"""``kubectl`` as the tests call it."""

import json
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import requests
import yaml
from kubernetes import client, config

from tests.cluster import node
from tests.cluster.build import run

# What a command says that has been done already.
DONE = {"create": "(AlreadyExists)", "delete": "(NotFound)"}


@cache
def connection(kubeconfig: str) -> tuple[str, requests.Session]:
    """The address of a kubeconfig's API server, and HTTP with the rights of its user."""
    found = client.Configuration()
    config.load_kube_config(kubeconfig, client_configuration=found)
    http = node.session()
    http.verify = found.ssl_ca_cert
    http.cert = (found.cert_file, found.key_file) if found.cert_file else None
    if token := found.get_api_key_with_prefix("authorization"):
        http.headers["Authorization"] = token
    return found.host, http


@dataclass(frozen=True)
class Kubectl:
    """``kubectl`` bound to a cluster and a namespace; each call returns what it prints and raises what it complains.

    A cluster that is too busy to answer is asked again (``node.patiently``).
    """

    program: str
    kubeconfig: str
    namespace: str = ""  # empty: what the kubeconfig or a document says

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        asked = 0

        def ask() -> str:
            nonlocal asked
            asked += 1
            try:
                return run(*self.words(*arguments), input=stdin)
            except RuntimeError as error:
                # The answer to the first time was lost, not what it did.
                if asked > 1 and (DONE.get(arguments[0]) or "never") in str(error):
                    return ""
                raise

        return node.patiently(ask)

    def words(self, *arguments: str) -> tuple[str, ...]:
        space = (f"--namespace={self.namespace}",) if self.namespace else ()
        return self.program, f"--kubeconfig={self.kubeconfig}", *space, *arguments

    def within(self, namespace: str) -> "Kubectl":
        return replace(self, namespace=namespace)

    def get(self, *arguments: str) -> Any:
        """An object, or a list of them, as Kubernetes' JSON."""
        return json.loads(self("get", *arguments, "--output=json"))

    def names(self, version: str, plural: str) -> set[str]:
        """The names of the namespace's resources of a kind: for those who ask often, without a process each time."""
        server, http = connection(self.kubeconfig)
        answer = http.get(
            f"{server}/apis/{version}/namespaces/{self.namespace}/{plural}",
            params={"includeObject": "None"},
            headers={"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"},
            timeout=60,
        )
        answer.raise_for_status()
        return {row["cells"][0] for row in answer.json()["rows"]}

    def apply(self, *documents: str | dict[str, Any]) -> None:
        """Apply YAML texts and objects."""
        items = [
            item
            for document in documents
            for item in (yaml.safe_load_all(document) if isinstance(document, str) else [document])
        ]
        whole = {"apiVersion": "v1", "kind": "List", "items": items}
        self("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=json.dumps(whole))

    def create_namespace(self) -> None:
        """Create the namespace, and wait for its account: a pod that is made before that is refused."""
        self("create", "namespace", self.namespace)
        node.wait("service account", lambda: self("get", "serviceaccount", "default"))

    def log_in(self, account: str, file: Path, *options: str) -> None:
        """Write a kubeconfig by which a ServiceAccount uses the namespace; options are of its token."""
        config = json.loads(node.KUBECONFIG.read_text())
        config["users"][0]["user"] = {"token": self("create", "token", account, *options).strip()}
        config["contexts"][0]["context"]["namespace"] = self.namespace
        file.touch(mode=0o600)
        file.write_text(json.dumps(config))

    def model_store(self, claim: str = "jukebox-model-pvc") -> Path:
        """The folder on this machine that a claim on the node has, when it has one."""

        def bound() -> str:
            return str(self.get(f"persistentvolumeclaim/{claim}")["spec"].get("volumeName", ""))

        node.wait(f"volume of claim {claim}", bound)
        path = Path(self.get(f"persistentvolume/{bound()}")["spec"]["local"]["path"])
        return node.STATE / path.relative_to("/")

    def wait(self, condition: str, *resources: str, seconds: int = node.PATIENCE) -> None:
        """Wait until resources meet a condition, in the words of ``kubectl wait --for``."""
        self("wait", f"--for={condition}", *resources, f"--timeout={seconds}s")

    def finished(self, run: str, seconds: int = node.PATIENCE) -> Any:
        """Wait until a PipelineRun or TaskRun, ``kind/name``, has ended, well or not; returns it."""
        self.wait("jsonpath={.status.completionTime}", run, seconds=seconds)
        return self.get(run)

    def reach(self, service: str, port: int | None = None) -> str:
        """Wait until a Service of the node lets one through, a moment after its pod is ready; returns host and port.

        Args:
            port: one of the Service's; None: its first.
        """
        spec = self.get(f"service/{service}")["spec"]
        host, port = spec["clusterIP"], port or spec["ports"][0]["port"]

        def connect() -> bool:
            with socket.create_connection((host, port), timeout=2):
                return True

        node.wait(f"Service {service}", connect)
        return f"{host}:{port}"

    @contextmanager
    def forward(self, service: str, port: int) -> Iterator[str]:
        """The URL under which a port of a Service can be reached from here meanwhile."""
        if self.kubeconfig == str(node.KUBECONFIG):  # the node's Services are in reach, without a proxy that may end
            yield f"http://{self.reach(service, port)}"
            return
        with tempfile.NamedTemporaryFile() as log:
            command = self.words("port-forward", f"service/{service}", f":{port}")
            with subprocess.Popen(command, stdout=log, stderr=log) as process:

                def bound() -> re.Match[str] | None:
                    text = Path(log.name).read_text()
                    if process.poll() is not None:
                        raise RuntimeError(text)
                    return re.search(r"127\.0\.0\.1:\d+", text)

                try:
                    node.wait(f"forwarding of {service}", bound)
                    found = bound()
                    assert found
                    yield f"http://{found[0]}"
                finally:
                    process.kill()
