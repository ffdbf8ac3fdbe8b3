"""The cluster does what the tests of the product rely on."""

import hashlib
import hmac
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.cluster import node
from tests.cluster.images import PYTHON
from tests.cluster.kubectl import Kubectl


def pod(name: str, script: str, **spec: Any) -> dict[str, Any]:
    """A pod that runs a Python script once."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": PYTHON, "command": ["python3", "-c", script], **spec}],
        },
    }


def output(kubectl: Kubectl, name: str) -> str:
    """What a pod wrote until it succeeded."""
    kubectl.wait("jsonpath={.status.phase}=Succeeded", f"pod/{name}")
    return kubectl("logs", name)


def test_a_pod_runs_to_its_end(kubectl: Kubectl) -> None:
    kubectl.apply(pod("hello", "import sys; print('version', sys.version_info[:2])"))
    assert output(kubectl, "hello") == "version (3, 11)\n"


def test_a_claim_is_bound_and_keeps_what_a_pod_wrote(kubectl: Kubectl) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "disk"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    scripts = {"writer": "open('/disk/x', 'w').write('kept')", "reader": "print(open('/disk/x').read())"}
    kubectl.apply(claim)
    for name, script in scripts.items():
        user = pod(name, script, volumeMounts=[{"name": "disk", "mountPath": "/disk"}])
        user["spec"]["volumes"] = [{"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}}]
        kubectl.apply(user)
        written = output(kubectl, name)
    assert written == "kept\n"


def test_a_service_is_reached_by_its_name_and_an_unknown_name_fails_at_once(kubectl: Kubectl) -> None:
    server = pod("server", "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8000)")
    server["metadata"]["labels"] = {"app": "server"}
    server["spec"]["containers"][0]["readinessProbe"] = {"httpGet": {"port": 8000}, "periodSeconds": 1}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    kubectl.apply(server, service)
    kubectl.wait("condition=Ready", "pod/server")
    script = f"""
import contextlib, socket, time, urllib.request
for _ in range(100):  # the node learns a moment later than the API that there is somebody behind the Service
    with contextlib.suppress(OSError):
        socket.create_connection(("web", 80), timeout=1).close()
        break
    time.sleep(0.2)
for name in ("web", "web.{kubectl.namespace}.svc", "web.{kubectl.namespace}.svc.cluster.local"):
    print(urllib.request.urlopen(f"http://{{name}}/", timeout=10).status)
try:
    socket.getaddrinfo("web.elsewhere.svc.cluster.local", 80)
except socket.gaierror as error:
    print(error.errno == socket.EAI_NONAME)
"""
    kubectl.apply(pod("client", script))
    assert output(kubectl, "client") == "200\n200\n200\nTrue\n"


def test_a_service_that_is_not_there_refuses_and_does_not_keep_one_waiting(kubectl: Kubectl, registry: str) -> None:
    script = f"""
import socket
try:
    socket.create_connection(("{node.API}", 9), timeout=30)
except ConnectionRefusedError:
    print("refused")
"""
    kubectl.apply(pod("client", script))
    assert output(kubectl, "client") == "refused\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((node.API, 9), timeout=30)


def test_a_pod_reaches_the_api_with_its_token_and_may_do_nothing(kubectl: Kubectl) -> None:
    script = """
import ssl, urllib.error, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount/"
trust = ssl.create_default_context(cafile=folder + "ca.crt")
def get(path, **headers):
    try:
        request = urllib.request.Request("https://kubernetes.default.svc" + path, headers=headers)
        return urllib.request.urlopen(request, context=trust, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code
token = {"Authorization": "Bearer " + open(folder + "token").read()}
print(get("/api", **token), get("/api/v1/secrets", **token), get("/api", Authorization="Bearer wrong"))
"""
    kubectl.apply(pod("asker", script))
    assert output(kubectl, "asker") == "200 403 401\n"


PIPELINE_RUN = f"""
apiVersion: tekton.dev/v1
kind: PipelineRun
metadata: {{name: two}}
spec:
  workspaces:
    - name: shared
      volumeClaimTemplate:
        spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}
  pipelineSpec:
    workspaces: [{{name: shared}}]
    results: [{{name: sum, value: $(tasks.add.results.sum)}}]
    tasks:
      - name: write
        workspaces: [{{name: shared}}]
        taskSpec:
          workspaces: [{{name: shared}}]
          results: [{{name: first}}]
          steps:
            - name: write
              image: {PYTHON}
              script: |
                #!/usr/bin/env python3
                open("$(workspaces.shared.path)/second", "w").write("2")
                open("$(results.first.path)", "w").write("40")
      - name: add
        workspaces: [{{name: shared}}]
        params: [{{name: first, value: $(tasks.write.results.first)}}]
        taskSpec:
          workspaces: [{{name: shared}}]
          params: [{{name: first}}]
          results: [{{name: sum}}]
          steps:
            - name: add
              image: {PYTHON}
              command: [python3, -c]
              env: [{{name: FIRST, value: $(params.first)}}]
              args:
                - |
                  import os
                  second = open("$(workspaces.shared.path)/second").read()
                  open("$(results.sum.path)", "w").write(str(int(os.environ["FIRST"]) + int(second)))
"""


@pytest.mark.usefixtures("tekton")
def test_a_pipeline_run_hands_on_a_result_and_a_workspace(kubectl: Kubectl) -> None:
    kubectl.apply(PIPELINE_RUN)
    status = kubectl.finished("pipelinerun/two")["status"]
    assert status["conditions"][0]["status"] == "True", status["conditions"]
    assert status["results"] == [{"name": "sum", "value": "42"}]


SOURCE_RUN = """
apiVersion: tekton.dev/v1
kind: PipelineRun
metadata: {name: shared}
spec:
  taskRunTemplate:
    podTemplate: {securityContext: SECURITY}
  workspaces:
    - name: source
      volumeClaimTemplate:
        spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
  pipelineSpec:
    workspaces: [{name: source}]
    tasks:
      - name: checkout
        workspaces: [{name: source, subPath: source}]
        taskSpec:
          workspaces: [{name: source}]
          steps:
            - name: write
              image: PYTHON
              command: [python3, -c, "open('/workspace/source/code', 'w').write('pushed')"]
      - name: compile
        runAfter: [checkout]
        workspaces:
          - {name: source, subPath: source}
          - {name: compiled, workspace: source, subPath: compiled}
        taskSpec:
          workspaces: [{name: source, readOnly: true}, {name: compiled}]
          steps:
            - name: compile
              image: PYTHON
              command: [python3, -c]
              args:
                - |
                  import errno, os
                  text = open("/workspace/source/code").read()
                  for path in ("code", "new", "../source/new"):
                      try:
                          open(os.path.join("/workspace/source", path), "w")
                          raise SystemExit(f"{path} can be written")
                      except OSError as error:
                          assert error.errno == errno.EROFS, error
                  open("/workspace/compiled/result", "w").write(text.upper())
      - name: apply
        runAfter: [compile]
        workspaces: [{name: compiled, workspace: source, subPath: compiled}]
        taskSpec:
          workspaces: [{name: compiled, readOnly: true}]
          steps:
            - name: apply
              image: PYTHON
              command: [python3, -c, "import os; assert os.listdir('/workspace/compiled') == ['result']"]
"""


@pytest.mark.usefixtures("tekton")
@pytest.mark.parametrize(
    "security",
    [
        {"runAsUser": 1001, "runAsGroup": 0, "fsGroup": 1001},
        {"runAsUser": 1000770000, "runAsGroup": 0, "fsGroup": 1000770000},
    ],
    ids=["as on Kubeflow", "as on OpenShift"],
)
def test_one_task_writes_the_source_and_others_read_it(kubectl: Kubectl, security: dict[str, int]) -> None:
    kubectl.apply(SOURCE_RUN.replace("SECURITY", json.dumps(security)).replace("PYTHON", PYTHON))
    status = kubectl.finished("pipelinerun/shared")["status"]
    assert status["conditions"][0]["status"] == "True", status["conditions"]


@pytest.mark.usefixtures("tekton")
def test_a_step_that_fails_ends_its_run_with_its_exit_code(kubectl: Kubectl) -> None:
    steps = [{"name": "fail", "image": PYTHON, "script": "echo because >&2; exit 7"}]
    kubectl.apply(
        {
            "apiVersion": "tekton.dev/v1",
            "kind": "TaskRun",
            "metadata": {"name": "bad"},
            "spec": {"taskSpec": {"steps": steps}},
        }
    )
    status = kubectl.finished("taskrun/bad")["status"]
    assert status["conditions"][0]["status"] == "False"
    assert status["steps"][0]["terminated"]["exitCode"] == 7
    assert "because" in kubectl("logs", status["podName"], "--container=step-fail")


def test_a_pod_pushes_to_the_registry_over_verified_tls(kubectl: Kubectl, registry: str) -> None:
    kubectl("create", "configmap", "trust", f"--from-file=ca.crt={node.CA}")
    script = f"""
import ssl, urllib.request
trust = ssl.create_default_context(cafile="/trust/ca.crt")
request = urllib.request.Request("https://{registry}/v2/pushed/blobs/uploads/", method="POST")
print(urllib.request.urlopen(request, context=trust, timeout=10).status)
"""
    pusher = pod("pusher", script, volumeMounts=[{"name": "trust", "mountPath": "/trust"}])
    pusher["spec"]["volumes"] = [{"name": "trust", "configMap": {"name": "trust"}}]
    kubectl.apply(pusher)
    assert output(kubectl, "pusher") == "202\n"


@pytest.mark.usefixtures("tekton")
def test_tekton_refuses_a_task_that_uses_an_undeclared_parameter(kubectl: Kubectl) -> None:
    steps = [{"name": "main", "image": PYTHON, "script": "echo $(params.missing)"}]
    with pytest.raises(RuntimeError, match=r"validation\.webhook\.pipeline\.tekton\.dev.*params\.missing"):
        kubectl.apply(
            {"apiVersion": "tekton.dev/v1", "kind": "Task", "metadata": {"name": "wrong"}, "spec": {"steps": steps}}
        )


@pytest.mark.usefixtures("tekton")
def test_an_image_without_a_command_runs_its_own(kubectl: Kubectl, registry: str) -> None:
    """Tekton's controller looks the command up in the registry, whose CA it must trust."""
    steps = [{"name": "main", "image": f"{registry}/library/{PYTHON}"}]
    kubectl.apply(
        {
            "apiVersion": "tekton.dev/v1",
            "kind": "TaskRun",
            "metadata": {"name": "own"},
            "spec": {"taskSpec": {"steps": steps}},
        }
    )
    status = kubectl.finished("taskrun/own")["status"]
    assert status["conditions"][0]["status"] == "True", status["conditions"]


LISTENER = """
apiVersion: triggers.tekton.dev/v1beta1
kind: EventListener
metadata: {name: pushes}
spec:
  serviceAccountName: listener
  triggers:
    - name: push
      interceptors:
        - name: Verify the signature
          ref: {name: github}
          params:
            - {name: secretRef, value: {secretName: sender, secretKey: token}}
            - {name: eventTypes, value: [push]}
      bindings:
        - {name: commit, value: $(body.after)}
      template:
        spec:
          params: [{name: commit}]
          resourcetemplates:
            - apiVersion: tekton.dev/v1
              kind: PipelineRun
              metadata: {name: run-$(tt.params.commit)}
              spec:
                status: PipelineRunPending
                pipelineSpec: {tasks: [{name: main, taskSpec: {steps: [{name: main, image: none, script: "true"}]}}]}
---
apiVersion: v1
kind: Secret
metadata: {name: sender}
stringData: {token: a-shared-secret}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: listener}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: listener}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tekton-triggers-eventlistener-roles}
subjects: [{kind: ServiceAccount, name: listener}]
"""


@pytest.fixture
def listener(kubectl: Kubectl, tekton: None) -> Iterator[str]:
    """The URL of an EventListener that starts a run for each signed push."""
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": kubectl.namespace},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "tekton-triggers-eventlistener-clusterroles",
        },
        "subjects": [{"kind": "ServiceAccount", "name": "listener", "namespace": kubectl.namespace}],
    }
    kubectl.apply(LISTENER, binding)
    node.wait("EventListener", lambda: kubectl("get", "deployment", "el-pushes"))
    kubectl.wait("condition=Available", "deployment/el-pushes")
    with kubectl.forward("el-pushes", 8080) as url:
        yield url
    kubectl("delete", "clusterrolebinding", kubectl.namespace)


def push(url: str, commit: str, secret: str) -> int:
    body = json.dumps({"ref": "refs/heads/main", "after": commit}).encode()
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "X-GitHub-Event": "push",
        "X-Hub-Signature-256": f"sha256={signature}",
        "Content-Type": "application/json",
    }
    return requests.post(url, body, headers=headers, timeout=30).status_code


def test_a_signed_push_creates_a_run_and_a_forged_one_does_not(kubectl: Kubectl, listener: str) -> None:
    assert push(listener, "forged", "a-guess") == 202  # the listener answers before it judges

    def started() -> str:
        assert push(listener, "genuine", "a-shared-secret") == 202  # and again: Triggers may lose what it has taken
        return kubectl("get", "pipelinerun", "run-genuine")

    node.wait("the run of the push", started)
    assert [run["metadata"]["name"] for run in kubectl.get("pipelineruns")["items"]] == ["run-genuine"]
