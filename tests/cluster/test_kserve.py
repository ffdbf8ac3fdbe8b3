"""KServe's real controller does what the serving manifests rely on, and its webhooks refuse what they must not say."""

import json
from typing import Any

import pytest
import requests

from tests.cluster import kserve as installed
from tests.cluster import node
from tests.cluster.kubectl import Kubectl
from tests.scripts.test_predict import LABELS, WEIGHTS, publish

pytestmark = pytest.mark.usefixtures("kserve")

CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: models}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
"""
RUNTIME = """
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: ovms}
spec:
  supportedModelFormats: [{name: onnx, version: "1"}]
  protocolVersions: [v2]
  containers:
    - name: kserve-container
      image: %s
      args: ["--model_name={{.Name}}", --model_path=/mnt/models, --rest_port=8888, --port=8001]
      ports: [{containerPort: 8888}]
      readinessProbe: {httpGet: {path: "/v2/models/{{.Name}}/ready", port: 8888}, periodSeconds: 1}
      resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {cpu: "1", memory: 256Mi}}
"""


def service(name: str = "jukebox", **predictor: Any) -> dict[str, Any]:
    """An InferenceService; ``predictor`` replaces or adds fields of its predictor, or leaves out what is None."""
    served = {
        "modelFormat": {"name": "onnx", "version": "1"},
        "protocolVersion": "v2",
        "runtime": "ovms",
        "storageUri": "pvc://models/jukebox",
    }
    fields = {"model": served, "minReplicas": 1, "maxReplicas": 1, **predictor}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"predictor": {field: value for field, value in fields.items() if value is not None}},
    }


def annotated(document: dict[str, Any], key: str, value: str) -> dict[str, Any]:
    return {**document, "metadata": {**document["metadata"], "annotations": {key: value}}}


def served_version(url: str) -> str:
    """The version that answers a question about one row."""
    answer = requests.post(f"{url}/v2/models/jukebox/infer", json=installed.QUESTION, timeout=10)
    answer.raise_for_status()
    return str(answer.json()["model_version"])


def test_a_model_on_a_claim_is_served_and_a_newer_one_without_a_new_pod(kubectl: Kubectl) -> None:
    kubectl.apply(CLAIM, RUNTIME % installed.model_server(), service())
    store = kubectl.model_store("models")
    publish(store, "first", WEIGHTS)
    kubectl.wait("condition=Ready", "inferenceservice/jukebox")
    with kubectl.forward("jukebox-predictor", 80) as url:
        assert served_version(url) == "1"
        labels = kubectl("exec", "deployment/jukebox-predictor", "--", "cat", "/mnt/models/1/labels.json")
        assert json.loads(labels) == LABELS  # which is what `jukebox predict` says where to find
        pods = kubectl("get", "pods", "--selector=app=isvc.jukebox-predictor", "--output=name")
        publish(store, "second", WEIGHTS[::-1])
        node.wait("version 2", lambda: served_version(url) == "2")
    assert kubectl("get", "pods", "--selector=app=isvc.jukebox-predictor", "--output=name") == pods


def test_arguments_are_filled_in_and_the_claim_is_mounted_for_reading(kubectl: Kubectl) -> None:
    kubectl.apply(CLAIM, RUNTIME % "absent", service())
    node.wait("pod", lambda: kubectl.get("pods", "--selector=app=isvc.jukebox-predictor")["items"])
    [pod] = kubectl.get("pods", "--selector=app=isvc.jukebox-predictor")["items"]
    [container] = pod["spec"]["containers"]
    assert container["args"][0] == "--model_name=jukebox"
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/models/jukebox/ready"
    [mount] = [mount for mount in container["volumeMounts"] if mount["mountPath"] == "/mnt/models"]
    assert (mount["subPath"], mount["readOnly"]) == ("jukebox", True)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (service("1jukebox"), "must consist of lower case alphanumeric characters"),
        (service(model=None), "exactly one of .* must be specified in PredictorSpec"),
        (service(minReplicas=3, maxReplicas=2), "'MinReplicas' cannot be greater than MaxReplicas"),
        (annotated(service(), "serving.kserve.io/autoscalerClass", "other"), "not a supported autoscaler class type"),
    ],
)
def test_the_webhook_refuses_what_cannot_be_served(kubectl: Kubectl, document: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=rf"inferenceservice\.kserve-webhook-server\.validator.*{message}"):
        kubectl.apply(document)


def test_a_second_runtime_may_not_claim_the_same_priority(kubectl: Kubectl) -> None:
    automatic = RUNTIME.replace('version: "1"', 'version: "1", autoSelect: true, priority: 1') % "absent"
    kubectl.apply(automatic)
    with pytest.raises(RuntimeError, match="same priority assigned for the model format onnx"):
        kubectl.apply(automatic.replace("name: ovms", "name: other"))
