"""KServe's controller with its webhooks, in its Standard mode, from the manifests that its own module keeps.

They are what its standalone overlay builds, without cert-manager: the node's CA signs the webhooks' certificate.
"""

import base64
import hashlib
import json
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.contract import INPUT
from pipeline.models.jukebox.tables import FEATURE_NAMES
from tests.cluster import build, images, node
from tests.cluster import model_server as model_server_program
from tests.cluster.build import CACHE, kept, run
from tests.cluster.kubectl import Kubectl

# What a client asks about one row, in the Open Inference Protocol.
ROW = {"name": INPUT, "shape": [1, len(FEATURE_NAMES)], "datatype": "FP32", "data": [1.0] * len(FEATURE_NAMES)}
QUESTION = {"inputs": [ROW]}
NAMESPACE = "kserve"
MANAGER = "github.com/kserve/kserve/cmd/manager"
MANIFESTS = "config/github.com/kserve/kserve/overlays/standalone/kserve"
SERVICE = "kserve-webhook-server-service"

PROBE = """
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: probe, namespace: kserve}
spec: {containers: [{name: kserve-container, image: probe}]}
"""


@cache
def install(kubectl: Kubectl) -> None:
    """Apply KServe, and wait until its webhooks judge."""
    built = build.build("kserve")
    image = images.of_binary("kserve", built / MANAGER)
    if not (node.STATE / "pki" / f"{SERVICE}.crt").exists():
        node.certificate(SERVICE, f"/CN={SERVICE}", f"subjectAltName=DNS:{SERVICE}.{NAMESPACE}.svc")

    manifests = yaml.load_all(kubectl("kustomize", str(built / MANIFESTS)), yaml.CSafeLoader)
    documents = [fitted(each, image) for each in manifests if not each["apiVersion"].startswith("cert-manager.io/")]
    crds = [document for document in documents if document["kind"] == "CustomResourceDefinition"]
    last = [each for each in documents if "webhooks" in each or each["kind"] == "ClusterStorageContainer"]
    bound = kubectl.within(NAMESPACE)
    kubectl.apply(*crds)
    kubectl.apply(*(document for document in documents if document not in crds + last), secret())
    bound("rollout", "status", "deployment", f"--timeout={node.PATIENCE}s")
    kubectl.apply(*last)
    node.wait("KServe's webhooks", lambda: kubectl("create", "--dry-run=server", "--filename=-", stdin=PROBE))


def fitted(document: dict[str, Any], image: str) -> dict[str, Any]:
    """A document with what this cluster needs."""
    match document["kind"]:
        case "Deployment":
            pod = document["spec"]["template"]["spec"]
            [manager] = [container for container in pod["containers"] if container["name"] == "manager"]
            pod["containers"] = [manager]  # without the proxy before its metrics
            del manager["command"], manager["resources"]  # a tenth of a core makes everybody wait
            manager["image"] = image
            manager["readinessProbe"].update(initialDelaySeconds=0, periodSeconds=1)
        case "ConfigMap":
            data = document["data"]
            data["deploy"] = json.dumps({"defaultDeploymentMode": "Standard"})
            data["ingress"] = json.dumps({**json.loads(data["ingress"]), "disableIngressCreation": True})
        case "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration":
            for hook in document["webhooks"]:
                hook["clientConfig"]["caBundle"] = encoded("ca.crt")
    return document


def secret() -> dict[str, Any]:
    """What cert-manager would make."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "kserve-webhook-server-cert", "namespace": NAMESPACE},
        "type": "kubernetes.io/tls",
        "data": {f"tls.{kind}": encoded(f"{SERVICE}.{kind}") for kind in ("crt", "key")},
    }


def encoded(name: str) -> str:
    return base64.b64encode((node.STATE / "pki" / name).read_bytes()).decode()


@cache
def model_server() -> str:
    """Push the stand-in of the model server, with what it needs; returns the image by digest."""
    root = Path(__file__).parents[2]
    lock = (root / "requirements.lock").read_text()
    versions = re.findall(r"^[^\s#]+==\S+", lock, re.MULTILINE)

    def fill(target: Path) -> None:
        (target / "versions").write_text("\n".join(versions))
        run(
            *(root / ".venv" / "uv" / "bin" / "uv", "pip", "install", "--quiet", "--python-version=3.11"),
            *(f"--target={target / 'packages'}", f"--constraint={target / 'versions'}", "onnxruntime", "numpy"),
        )

    needed = kept(CACHE / f"onnxruntime-{hashlib.sha256(lock.encode()).hexdigest()[:12]}", fill)
    files = {
        "usr/lib/python3/dist-packages": needed / "packages",
        "model_server.py": Path(model_server_program.__file__),
    }
    command = ["python3", "/model_server.py"]
    # Like OpenVINO's image, it names its user: the kubelet cannot tell from a name that it is not root.
    with tempfile.TemporaryDirectory() as folder:
        users = Path(folder) / "passwd"
        users.write_text("root:x:0:0::/root:/bin/sh\novms:x:5000:5000::/:/bin/sh\n")
        files["etc/passwd"] = users
        return images.of_debian("model-server", *images.PACKAGES, files=files, Entrypoint=command, User="ovms")
