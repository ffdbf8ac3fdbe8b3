"""``jukebox doctor --preflight`` on a real cluster: what Kubernetes, Tekton, KServe and policies say of the real pods.

Nothing of the project is there but its namespace, as on the day before it is brought up. The kinds of Kubeflow
Pipelines and OpenShift have no operators here; the pipeline server is played, which is asked for its version alone.
"""

import base64
import json
import ssl
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import config
from kubernetes.config import kube_config
from typer.testing import CliRunner

from scripts.cli import app
from tests.cluster import argocd, build, node, openshift_ai, stand_ins
from tests.cluster.kserve import NAMESPACE as KSERVE
from tests.cluster.kubectl import Kubectl
from tests.cluster.openshift import Handler
from tests.http_server import Answer, HttpServer, running, serve_http
from tests.manifests import building

HEALTH = "/apis/v2beta1/healthz"
MODE = "serving.kserve.io/deploymentMode"
VERSIONS = "customresourcedefinition/pipelineversions.pipelines.kubeflow.org"
Resource = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """Two namespaces in which nothing is yet, a fork, and who looks."""

    kubectl: Kubectl
    ci: Kubectl
    folder: Path
    server: HttpServer
    kubeconfig: Path

    def set(self, **values: str) -> None:
        """Change settings."""
        file = self.folder / "manifests/settings/settings.yaml"
        document = yaml.safe_load(file.read_text())
        document["data"] |= {key.replace("_", "-"): value for key, value in values.items()}
        file.write_text(yaml.safe_dump(document))

    def jukebox(self, *arguments: str) -> str:
        """Run a command of ours as who looks; returns what it prints. One may end with 1, none by an error."""
        result = CliRunner().invoke(app, [*arguments])
        assert result.exit_code == 0 or isinstance(result.exception, SystemExit), result.exception
        return result.stdout

    def look(self) -> list[dict[str, str]]:
        """What the preflight finds."""
        found: list[dict[str, str]] = json.loads(self.doctor("--output=json"))
        return found

    def doctor(self, *options: str) -> str:
        """Look at the fork's overlay of its platform."""
        settings = yaml.safe_load((self.folder / "manifests/settings/settings.yaml").read_text())["data"]
        overlay = self.folder / "manifests/overlays" / settings["platform"] / "prod"
        return self.jukebox("doctor", "--preflight", f"--overlay={overlay}", *options)


@pytest.fixture(scope="module")
def site(cluster: Kubectl, tekton: None, kserve: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site as a platform administrator sees it."""
    stand_ins.install(cluster)
    definitions = yaml.load_all((build.build("argocd") / argocd.MANIFEST).read_text(), yaml.CSafeLoader)
    cluster.apply(*(each for each in definitions if each and each["kind"] == "CustomResourceDefinition"))
    kubectl = cluster.within(f"test-preflight-{uuid.uuid4().hex[:8]}")
    ci = cluster.within(f"{kubectl.namespace}-ci")
    for space in (kubectl, ci):
        space.create_namespace()
    kubectl("label", "namespace", kubectl.namespace, "app.kubernetes.io/part-of=kubeflow-profile")
    kubectl.apply(
        named("ServiceAccount", "default-editor"),
        {**named("Secret", "mlpipeline-minio-artifact"), "stringData": {"accesskey": "a", "secretkey": "b"}},
        {**named("ConfigMap", "kfp-launcher"), "data": {}},
    )
    settings = {
        "platform": "kubeflow",
        "argo-cd": "argo-cd",
        "namespace": kubectl.namespace,
        "ci-namespace": ci.namespace,
    }
    folder = tmp_path_factory.mktemp("preflight")
    building.copy(folder / "fork", {**settings, "storage-class": "standard"})
    with serve_http() as server, pytest.MonkeyPatch.context() as environment:
        healthy = {"tag_name": "2.16.0", "multi_user": True}
        server.serve(HEALTH, Answer(json.dumps(healthy).encode(), headers={"Content-Type": "application/json"}))
        environment.setenv("JUKEBOX_SETTINGS", str(folder / "fork/manifests/settings/settings.yaml"))
        environment.setenv("KFP_ENDPOINT", server.url)
        # The client reads KUBECONFIG when it is imported.
        environment.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", cluster.kubeconfig)
        yield Site(kubectl, ci, folder / "fork", server, folder / "kubeconfig")
    cluster("delete", "namespace", kubectl.namespace, ci.namespace, "--wait=false")


def named(kind: str, name: str, version: str = "v1") -> Resource:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}}


Finding = tuple[str, str, str, str]  # name, state, and a part of what was found and of the remedy
Break = Callable[[Site], Iterator[None]]  # breaks something before it yields, and mends it when it goes on


def test_nothing_fails_where_nothing_is_wrong(site: Site) -> None:
    found = site.look()
    assert [each for each in found if each["state"] == "fail"] == []
    texts = {(each["name"], each["state"]): each["found"] for each in found}
    assert texts["Pods of the tasks", "ok"].startswith("settle, checkout, supersede")
    assert texts["Pod of the model server", "ok"] == "jukebox: admitted"
    assert "InferenceService jukebox is admitted, with mode Standard" in [each["found"] for each in found]
    assert texts["Argo CD", "ok"].startswith("ApplicationSets have retry.refresh")
    assert texts["Token for the pipeline server", "ok"] == (
        "TokenReview accepts a token of default for pipelines.kubeflow.org"
    )
    assert site.kubectl("get", "pods,serviceaccounts,inferenceservices", "--output=name").split() == [
        "serviceaccount/default",
        "serviceaccount/default-editor",
    ]


def test_the_rights_of_a_tenant_suffice_for_the_pods_and_the_rest_is_said_to_be_for_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"}
    subject = {"kind": "ServiceAccount", "name": "tenant", "namespace": site.kubectl.namespace}
    binding = named("RoleBinding", "tenant", "rbac.authorization.k8s.io/v1")
    site.kubectl.apply(named("ServiceAccount", "tenant"))
    for space in (site.kubectl, site.ci):
        space.apply({**binding, "roleRef": role, "subjects": [subject]})
    site.kubectl.log_in("tenant", site.kubeconfig)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(site.kubeconfig))
    found = site.look()
    assert [each for each in found if each["state"] == "fail"] == []
    admitted = {each["name"] for each in found if each["state"] == "ok" and each["found"].endswith("admitted")}
    assert admitted >= {"Pods of the tasks", "Pods of the steps", "Pod of the listener", "Pod of the model server"}
    others = [each for each in found if "cannot be read" in each["found"]]
    assert {"Storage class", "Tekton Pipelines", "Token for the pipeline server"} <= {each["name"] for each in others}
    assert all(each["state"] == "warn" and "Ask somebody" in each["remedy"] for each in others)


def labelled(labels: Mapping[str, str | None]) -> Break:
    """The namespaces have these labels; None: not any more."""

    def broken(site: Site) -> Iterator[None]:
        names = [f"namespace/{space.namespace}" for space in (site.kubectl, site.ci)]
        before = site.kubectl.get(names[0])["metadata"]["labels"]

        def patch(values: Mapping[str, str | None]) -> None:
            for name in names:
                site.kubectl("patch", name, "--type=merge", f"--patch={json.dumps({'metadata': {'labels': values}})}")

        patch(labels)
        yield
        patch({key: before.get(key) for key in labels})

    return broken


def made(*documents: Resource) -> Break:
    """The namespaces hold these as well."""

    def broken(site: Site) -> Iterator[None]:
        for space in (site.kubectl, site.ci):
            space.apply(*documents)
        yield
        for space in (site.kubectl, site.ci):
            space("delete", *(f"{each['kind']}/{each['metadata']['name']}".lower() for each in documents))

    return broken


def with_settings(**values: str) -> Break:
    def broken(site: Site) -> Iterator[None]:
        before = (site.folder / "manifests/settings/settings.yaml").read_text()
        site.set(**values)
        yield
        (site.folder / "manifests/settings/settings.yaml").write_text(before)

    return broken


def policy(site: Site) -> Iterator[None]:
    """A policy of the cluster, as Kyverno would be one: CronJobs' pods need the label of a team."""
    version, name = "admissionregistration.k8s.io/v1", f"teams.{site.kubectl.namespace}"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": site.ci.namespace}}
    jobs = {
        "matchExpressions": [
            {"key": "app.kubernetes.io/name", "operator": "In", "values": ["retain-tasks", "schedule"]}
        ]
    }
    spec = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": here, "objectSelector": jobs},
        "validations": [{"expression": "'team' in object.metadata.labels", "message": "the label team is missing"}],
    }
    site.kubectl.apply(
        {**named("ValidatingAdmissionPolicy", name, version), "spec": spec},
        {
            **named("ValidatingAdmissionPolicyBinding", name, version),
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        },
    )
    yield
    site.kubectl("delete", f"validatingadmissionpolicybinding/{name}", f"validatingadmissionpolicy/{name}")


def without_platform_spec(site: Site) -> Iterator[None]:
    """A CRD as it was before Kubeflow Pipelines 2.14."""
    path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec"
    before = site.kubectl.get(VERSIONS)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    old = {"type": "object", "properties": {"pipelineSpec": {"type": "object"}}}

    def replace(value: Resource) -> None:
        operations = [{"op": "replace", "path": path, "value": value}]
        site.kubectl("patch", VERSIONS, "--type=json", f"--patch={json.dumps(operations)}")

    replace(old)
    yield
    replace(before)


def default_mode(mode: str) -> Break:
    """KServe's default mode is another."""

    def broken(site: Site) -> Iterator[None]:
        system = site.kubectl.within(KSERVE)
        before = system.get("configmap/inferenceservice-config")["data"]["deploy"]

        def write(text: str) -> None:
            patch = json.dumps({"data": {"deploy": text}})
            system("patch", "configmap/inferenceservice-config", "--type=merge", f"--patch={patch}")

        write(json.dumps({"defaultDeploymentMode": mode}))
        yield
        write(before)

    return broken


def patched(platform: str, kind: str, operations: list[Resource]) -> Break:
    """A platform's overlay has a JSON patch."""

    def broken(site: Site) -> Iterator[None]:
        file = site.folder / "manifests/overlays" / platform / "prod/kustomization.yaml"
        before = file.read_text()
        patch = {"target": {"kind": kind}, "patch": json.dumps(operations)}
        file.write_text(yaml.safe_dump({**yaml.safe_load(before), "patches": [patch]}))
        yield
        file.write_text(before)

    return broken


def without_mode(site: Site) -> Iterator[None]:
    """The overlay leaves the mode to KServe."""
    key = MODE.replace("/", "~1")
    operations = [{"op": "remove", "path": f"/metadata/annotations/{key}"}]
    yield from patched("kubeflow", "InferenceService", operations)(site)


def live(mode: str) -> Break:
    """The InferenceService is there, and was made in another mode."""

    def broken(site: Site) -> Iterator[None]:
        model = {"modelFormat": {"name": "onnx"}, "runtime": "missing", "storageUri": "pvc://missing"}
        service = named("InferenceService", "jukebox", "serving.kserve.io/v1beta1")
        service["metadata"]["annotations"] = {MODE: "Standard", "serving.kserve.io/stop": "true"}
        site.kubectl.apply({**service, "spec": {"predictor": {"model": model}}})
        name = "inferenceservice/jukebox"

        def record(mode: str) -> None:
            patch = json.dumps({"status": {"deploymentMode": mode}})
            site.kubectl("patch", name, "--type=merge", "--subresource=status", f"--patch={patch}")

        record(mode)
        yield
        record("Standard")  # or KServe refuses the change by which it goes
        site.kubectl("delete", name)

    return broken


def two_nodes(site: Site) -> Iterator[None]:
    """There is another node, on which nothing may be put, and the claim is of one node."""
    file = site.folder / "manifests/base/storage/persistentvolumeclaim.yaml"
    before = file.read_text()
    file.write_text(before.replace("ReadWriteMany", "ReadWriteOnce"))
    site.kubectl.apply({**named("Node", "another"), "spec": {"unschedulable": True}})
    yield
    site.kubectl("delete", "node", "another")
    file.write_text(before)


def over_https(site: Site) -> Iterator[None]:
    """The address says https, where the server speaks http."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KFP_ENDPOINT", site.server.url.replace("http://", "https://"))
        yield


def secret(name: str, kind: str) -> Resource:
    return {**named("Secret", name), "type": kind, "data": {"password": base64.b64encode(b"hidden").decode()}}


def unset(site: Site) -> Iterator[None]:
    """Tekton's own containers set nothing, as by default."""
    system = site.kubectl.within("tekton-pipelines")
    before = system.get("configmap/feature-flags")["data"]["set-security-context"]

    def write(value: str) -> None:
        patch = json.dumps({"data": {"set-security-context": value}})
        system("patch", "configmap/feature-flags", "--type=merge", f"--patch={patch}")

    write("false")
    yield
    write(before)


RESTRICTED = labelled({"pod-security.kubernetes.io/enforce": "restricted"})
PROVOKED: dict[str, tuple[list[Break], list[Finding]]] = {
    "restricted, and Tekton sets nothing": (
        [unset, RESTRICTED],
        [
            ("Pod Security", "fail", "enforces restricted, which refuses Tekton's own containers", "feature-flags"),
            (
                "Pods of the tasks",
                "fail",
                'refused: violates PodSecurity "restricted:latest"',
                "set-security-context",
            ),
            ("Pod that keeps the tasks together", "fail", 'container "affinity-assistant"', "set-security-context"),
        ],
    ),
    "a warning of Pod Security": (
        [unset, labelled({"pod-security.kubernetes.io/warn": "restricted"})],
        [
            ("Pods of the tasks", "warn", "admitted with a warning: would violate PodSecurity", "set-security-context"),
            ("Pod that keeps the tasks together", "warn", "would violate PodSecurity", "set-security-context"),
        ],
    ),
    "a policy": (
        [policy],
        [("Pods of the Jobs", "fail", "the label team is missing", "This is a policy of your cluster")],
    ),
    "a quota that is too small": (
        [made({**named("ResourceQuota", "company"), "spec": {"hard": {"requests.cpu": "400m"}}})],
        [
            ("Pod of the model server", "fail", "jukebox: refused: exceeded quota: company", "larger quota"),
            ("Quota", "fail", "one run needs requests.cpu", "quota-cpu"),
        ],
    ),
    "a limit that is too small": (
        [
            made(
                {
                    **named("LimitRange", "company"),
                    "spec": {"limits": [{"type": "Container", "max": {"memory": "3Gi"}}]},
                }
            )
        ],
        [("Pods of the steps", "fail", "train-model: refused: maximum memory usage", "Change the sizes")],
    ),
    "no storage class": (
        [with_settings(storage_class="missing")],
        [("Storage class", "fail", "missing does not exist; classes: ", "Set storage-class to one of them")],
    ),
    "no pull secret": (
        [with_settings(pull_secret="pulls")],
        [("Pull secret", "fail", "does not exist", "kubectl create secret docker-registry pulls")],
    ),
    "a pull secret of another type": (
        [with_settings(pull_secret="other"), made(secret("other", "Opaque"))],
        [("Pull secret", "fail", "is of type Opaque", "Nodes accept only kubernetes.io/dockerconfigjson")],
    ),
    "a CA that is not PEM": (
        [made({**named("ConfigMap", "jukebox-trusted-ca"), "data": {"ca-bundle.crt": "MIIB"}})],
        [("Trusted CA", "fail", "ca-bundle.crt of ConfigMap jukebox-trusted-ca in", "as PEM")],
    ),
    "a namespace without the profile's label": (
        [labelled({"app.kubernetes.io/part-of": None})],
        [("Profile", "fail", "label app.kubernetes.io/part-of is missing", "by a Profile of this name")],
    ),
    "an old PipelineVersion": (
        [without_platform_spec],
        [("Kubeflow Pipelines", "fail", "do not have platformSpec", "Update the pipeline server")],
    ),
    "a KServe whose default is Knative": (
        [default_mode("Serverless"), without_mode],
        [
            ("KServe", "fail", "InferenceService jukebox: refused", f"annotation {MODE} in the overlay to this KServe"),
            ("KServe", "fail", "its default mode is Serverless", f"annotation {MODE} in the overlay to Standard"),
        ],
    ),
    "a live InferenceService of another mode": (
        [live("RawDeployment")],
        [
            (
                "KServe",
                "fail",
                "deploymentMode cannot be changed from 'RawDeployment' to 'Standard'",
                "Remove the annotation",
            )
        ],
    ),
    "a volume of one node, where there are two": (
        [two_nodes],
        [("Access mode", "fail", "ReadWriteOnce works on one node only", "kubernetes.io/hostname=NODE")],
    ),
    "no node for training": (
        [with_settings(train_nodes="gpu=yes")],
        [("Nodes", "fail", "train-nodes: nodes with gpu=yes: none", "Label a node")],
    ),
    "https to a server that speaks http": (
        [over_https],
        [
            (
                "Address of the pipeline server",
                "fail",
                "speaks http, not https",
                "Set KFP_ENDPOINT or kfp-endpoint to http:",
            )
        ],
    ),
}
# Of these, each would hide one of the others.
LATER = (
    *("a pull secret of another type", "a limit that is too small", "a warning of Pod Security"),
    *("a KServe whose default is Knative", "no storage class"),
)
TOGETHER = [[name for name in PROVOKED if name not in LATER], LATER]


@contextmanager
def broken(site: Site, *breaks: Break) -> Iterator[None]:
    """All of this is broken in the block, one after the other, and mended behind it, the last first."""
    with ExitStack() as stack:
        for each in breaks:
            steps = each(site)
            next(steps)
            stack.callback(next, steps, None)
        yield


def expect(site: Site, *expected: Finding) -> None:
    """Wait until the preflight finds this, and nothing else fails."""

    def found() -> bool:
        wrong = [each for each in site.look() if each["state"] != "ok"]
        missing = [one for one in expected if not any(matches(one, other) for other in wrong)]
        names = {one[0] for one in expected}
        # What refuses one pod may refuse others, whose makers set half of what it looks at.
        fails = [other for other in wrong if other["state"] == "fail" and not other["name"].startswith("Pod")]
        more = [other for other in fails if other["name"] not in names]
        if missing or more:
            raise RuntimeError(f"missing {missing}; besides {more}; all: {json.dumps(wrong, indent=1)}")
        return True

    node.wait("what the preflight finds", found)


def matches(expected: Finding, found: dict[str, str]) -> bool:
    name, state, text, remedy = expected
    return (found["name"], found["state"]) == (name, state) and text in found["found"] and remedy in found["remedy"]


@pytest.mark.parametrize("together", TOGETHER, ids="; ".join)
def test_each_thing_that_hinders_is_found_with_a_remedy(site: Site, together: Sequence[str]) -> None:
    with broken(site, *(each for name in together for each in PROVOKED[name][0])):
        expect(site, *(finding for name in together for finding in PROVOKED[name][1]))
        print(site.doctor())  # for who reads the test's output
    expect(site)


@pytest.fixture
def openshift(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """The site on OpenShift: each new pod is judged by its constraints, in this process."""
    space = site.kubectl.namespace
    constraints = stand_ins.crd("SecurityContextConstraints", "security.openshift.io", "v1")
    constraints["metadata"]["name"] = "securitycontextconstraints.security.openshift.io"
    constraints["spec"]["names"] |= {
        "plural": "securitycontextconstraints",
        "listKind": "SecurityContextConstraintsList",
    }
    hook = openshift_ai.hook(space)
    hook["metadata"]["name"] = space
    node.certificate("preflight", "/CN=preflight", f"subjectAltName=IP:{node.HOST}")
    pair = [str(node.STATE / "pki" / f"preflight.{kind}") for kind in ("crt", "key")]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*pair)
    config.load_kube_config(site.kubectl.kubeconfig)
    monkeypatch.setenv("PROXY_IMAGE", "proxy")
    # What it refuses, it also prints: here that would be among what the command prints.
    monkeypatch.setattr("tests.cluster.openshift.print", lambda *words, **options: None, raising=False)
    with ThreadingHTTPServer((node.HOST, 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        [judge] = hook["webhooks"]
        judge["clientConfig"] |= {"url": f"https://{node.HOST}:{server.server_address[1]}/"}
        del judge["clientConfig"]["service"]
        spaces = [space, site.ci.namespace]
        ours = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": spaces}
        judge["namespaceSelector"] = {"matchExpressions": [ours]}
        marks = [f"{key}={value}" for key, value in openshift_ai.ANNOTATIONS.items()]
        site.kubectl("annotate", "namespace", *spaces, *marks)
        with running(server), broken(site, with_settings(platform="openshift-ai", argo_cd="openshift-gitops")):
            # Of the grants, those to a webhook of the cluster are not needed: this one asks as an administrator.
            site.kubectl.apply(*openshift_ai.grants({"kind": "Group", "name": "nobody"})[2:], constraints, hook)
            yield site
            site.kubectl("delete", f"mutatingwebhookconfiguration/{space}", f"crd/{constraints['metadata']['name']}")


def test_openshift_admits_each_pod_and_refuses_an_fsgroup_with_a_remedy(openshift: Site) -> None:
    def admitted() -> bool:
        found = openshift.look()
        wrong = [each for each in found if each["state"] == "fail"]
        by = {each["name"] for each in found if each["found"].endswith(": admitted by restricted-v2")}
        wanted = {"Pods of the tasks", "Pods of the steps", "Pods of the Jobs", "Pod of the listener"}
        if wrong or not by > wanted | {"Pod of the model server"}:
            raise RuntimeError(json.dumps(found, indent=1))
        assert "4." in next(each["found"] for each in found if each["name"] == "OpenShift")
        return True

    node.wait("pods that OpenShift admits", admitted)
    path = "/spec/resourcetemplates/0/spec/taskRunTemplate/podTemplate/securityContext"
    group = patched("openshift-ai", "TriggerTemplate", [{"op": "add", "path": path, "value": {"fsGroup": 1001}}])
    with broken(openshift, group):
        expect(
            openshift,
            ("Pods of the tasks", "fail", "1001 is not an allowed group", "Remove fsGroup"),
            ("Pod that keeps the tasks together", "fail", "1001 is not an allowed group", "Remove fsGroup"),
        )
