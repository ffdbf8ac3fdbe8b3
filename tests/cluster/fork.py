"""A fork of OpenShift AI in production whose overlay is applied, with all that it needs played or real, for doctor.

Real are Kubernetes, Tekton, KServe, the listener, the accounts, the claim and the model server's pods. Played are the
pipeline server, which answers from beside the cluster, the model server's program, the router before the listener, the
Git host, and the operators of kinds that are in no package.
"""

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from kubernetes.config import kube_config
from typer.testing import CliRunner

from scripts import bootstrap
from scripts.cli import app
from tests.cluster import kserve, node
from tests.cluster.kubectl import Kubectl
from tests.cluster.project import SMALL, patch
from tests.http_server import Answer, HttpServer, running, serve_http
from tests.kfp import deploy
from tests.kfp.in_cluster import webhook
from tests.manifests import building
from tests.tekton.manifests import ROOT, Resource
from tests.test_predict import WEIGHTS, publish

GIT_HOST = "/api/v1/repos/acme/jukebox"  # asked with the token
DSPA = "datasciencepipelinesapplication/dspa"
# No test here asks the model server while it rolls.
AT_ONCE = {"op": "remove", "path": "/spec/containers/0/lifecycle"}


@dataclass(frozen=True)
class Fork:
    """A fork that is installed, and somebody who looks at it.

    Attributes:
        folder: the repository.
        host: the Git host.
        kubeconfig: of who looks.
    """

    kubectl: Kubectl
    folder: Path
    host: HttpServer
    pipeline_server: "PipelineServer"
    kubeconfig: Path

    @property
    def settings(self) -> Path:
        return self.folder / "manifests" / "settings" / "settings.yaml"

    @property
    def overlay(self) -> Path:
        return self.folder / "manifests" / "overlays" / "openshift-ai" / "prod"

    def set(self, **values: str) -> None:
        """Change settings."""
        document = yaml.safe_load(self.settings.read_text())
        document["data"] |= {key.replace("_", "-"): value for key, value in values.items()}
        self.settings.write_text(yaml.safe_dump(document))

    def log_in(self, account: str) -> None:
        """Make an account the one who looks."""
        self.kubectl.log_in(account, self.kubeconfig)

    def apply(self, *names: str) -> None:
        """Apply the overlay, or what of it is called ``<kind>/<name>``."""
        built = building.build(self.kubectl.program, self.overlay)
        self.kubectl.apply(*(r for r in built if not names or f"{r['kind']}/{r['metadata']['name']}" in names))

    def guard(self) -> None:
        """Apply the admission policies, as bootstrap does."""
        self.kubectl.apply(*building.admission(self.kubectl.program, self.folder))

    def patch(self, name: str, patch: Any, *options: str) -> None:
        """Merge a patch into a resource."""
        self.kubectl("patch", name, "--type=merge", f"--patch={json.dumps(patch)}", *options)

    def ready(self, yes: bool) -> None:
        """Say of the pipeline server what its operator would say."""
        condition = {"type": "Ready", "status": str(yes), "reason": "Played", "message": ""}
        self.patch(DSPA, {"status": {"conditions": [condition]}}, "--subresource=status")

    def hooks(self) -> list[Resource]:
        """The pipeline server's webhooks."""
        ca = base64.b64encode(node.CA.read_bytes()).decode()
        return webhook(self.kubectl.namespace, deploy.NAME, ca)

    def endpoint(self) -> Resource:
        """What leads from the pipeline server's Service out of the cluster, to where it answers."""
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": deploy.NAME, "labels": {"kubernetes.io/service-name": deploy.NAME}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [node.HOST], "conditions": {"ready": True}}],
            "ports": [{"port": self.pipeline_server.port}],
        }

    def jukebox(self, *arguments: str) -> str:
        """Run a command of ours as who looks; returns what it prints. One may end with 1, none by an error."""
        result = CliRunner().invoke(app, [*arguments])
        assert result.exit_code == 0 or isinstance(result.exception, SystemExit), result.exception
        return result.output


@contextmanager
def installed(kubectl: Kubectl, folder: Path) -> Iterator[Fork]:
    """Install a fork in a namespace of its own; who looks is its owner, as the environment of this process says."""
    with ExitStack() as stack:
        kubectl.create_namespace()
        stack.callback(kubectl, "delete", "namespace", kubectl.namespace, "--wait=false")
        kubectl.apply(service(), account("owner"), account("viewer"))
        roles = [binding(kubectl.namespace, "owner", "cluster-admin"), binding(kubectl.namespace, "viewer", "view")]
        kubectl.apply(*roles)
        stack.callback(kubectl, "delete", "clusterrolebinding", roles[0]["metadata"]["name"])
        address = kubectl.get(f"service/{deploy.NAME}")["spec"]["clusterIP"]
        certificate = certified(kubectl.namespace, folder, address)
        host = stack.enter_context(serve_http())
        door = stack.enter_context(router(kubectl, certificate))
        server = PipelineServer(kubectl.namespace, certificate)
        stack.callback(server.stop)
        server.start()
        fork = Fork(kubectl, folder / "fork", host, server, folder / "kubeconfig")
        stack.callback(kubectl, "delete", "--ignore-not-found", "--filename=-", stdin=json.dumps(listed(fork.hooks())))
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        environment.setenv("JUKEBOX_SETTINGS", str(fork.settings))
        environment.setenv("KFP_ENDPOINT", f"https://{address}:{deploy.PORT}")
        environment.setenv("REQUESTS_CA_BUNDLE", str(node.CA))
        # The client reads KUBECONFIG when it is imported.
        environment.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(fork.kubeconfig))
        host.serve(GIT_HOST, Answer(b"{}"))
        fill_in(fork, door)
        fork.log_in("owner")
        secrets(fork, folder)
        kubectl.apply(*fork.hooks(), fork.endpoint())
        fork.guard()
        policies = [f"{name}.{kubectl.namespace}" for name in bootstrap.POLICIES]
        stack.callback(kubectl, "delete", ",".join(building.ADMISSION), *policies, "--ignore-not-found")
        fork.apply()
        stack.callback(kubectl, "delete", "clusterrole,clusterrolebinding", f"jukebox-listener.{kubectl.namespace}")
        fork.ready(True)
        node.wait("model store", kubectl.model_store)
        publish(kubectl.model_store(), "first", WEIGHTS)
        yield fork


def fill_in(fork: Fork, door: str) -> None:
    """Fill in the settings, and make small what is large."""
    settings = {
        "repository": f"{fork.host.url}/acme/jukebox",
        "git-host": "gitea",
        "namespace": fork.kubectl.namespace,
        "model-server-image": kserve.model_server(),
        "storage-class": "standard",
        "storage-size": "1Gi",
    }
    building.copy(fork.folder, settings)
    host = {"op": "replace", "path": "/spec/host", "value": door}
    patch(fork.overlay, ServingRuntime=[*SMALL, AT_ONCE], Route=[host])


def secrets(fork: Fork, folder: Path) -> None:
    """Make the Secrets as a fork's owner does."""
    (folder / "token").write_text("token-of-the-git-host")
    (folder / "s3").write_text("AWS_ACCESS_KEY_ID=key\nAWS_SECRET_ACCESS_KEY=secret\n")
    fork.jukebox("secrets", f"--git-token-file={folder / 'token'}", f"--s3-file={folder / 's3'}")


def service() -> Resource:
    """The pipeline server's Service."""
    ports = [{"port": deploy.PORT}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": deploy.NAME}, "spec": {"ports": ports}}


def account(name: str) -> Resource:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}


def binding(namespace: str, account: str, role: str) -> Resource:
    """What gives an account a role of the cluster: ``cluster-admin`` everywhere, another in the namespace."""
    everywhere = role == "cluster-admin"
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding" if everywhere else "RoleBinding",
        "metadata": {"name": f"{account}.{namespace}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }


def listed(items: list[Resource]) -> Resource:
    return {"apiVersion": "v1", "kind": "List", "items": items}


def certified(namespace: str, folder: Path, address: str) -> Path:
    """A file with a certificate, which the node's CA has signed, of the pipeline server and the router, and its key."""
    names = f"subjectAltName=DNS:{deploy.NAME}.{namespace}.svc,IP:{address},IP:127.0.0.1"
    node.certificate(namespace, f"/CN={namespace}", names)
    made = [node.STATE / "pki" / f"{namespace}.{part}" for part in ("crt", "key")]
    file = folder / "served.pem"
    file.write_bytes(b"".join(part.read_bytes() for part in made))
    for part in made:
        part.unlink()
    return file


class PipelineServer:
    """The stand-in as a process of this machine, with its rights; it answers at ``port`` of ``node.HOST``."""

    def __init__(self, namespace: str, certificate: Path) -> None:
        with socket.socket() as free:
            free.bind((node.HOST, 0))
            self.port: int = free.getsockname()[1]
        self.log = certificate.with_name("pipeline-server.log")
        state = certificate.with_name("state.json")
        options = {"namespace": namespace, "certificate": certificate, "key": certificate, "state": state}
        options["port"] = self.port
        self.command = [sys.executable, "-m", "tests.kfp.server", *(f"--{key}={each}" for key, each in options.items())]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "KUBECONFIG": str(node.KUBECONFIG)}
        with self.log.open("ab") as log:
            process = subprocess.Popen(self.command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self.process = process

        def answers() -> bool:
            if process.poll() is not None:
                raise AssertionError(self.log.read_text())
            with socket.create_connection((node.HOST, self.port), timeout=2):
                return True

        node.wait("pipeline server", answers)

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


@contextmanager
def router(kubectl: Kubectl, certificate: Path) -> Iterator[str]:
    """What plays OpenShift's router before the listener: TLS ends here; yields host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                address = kubectl.get("service/el-jukebox")["spec"]["clusterIP"]
                with requests.Session() as session:
                    session.trust_env = False
                    status = session.get(f"http://{address}:8080{self.path}", timeout=2).status_code
            except (OSError, RuntimeError):
                status = 503  # as the real one says of a Service without pods
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with running(server):
            yield f"127.0.0.1:{server.server_address[1]}"
