"""What the overlay says of access holds in the project: who may do what, how much, and whom each policy is about.

The accounts ask with tokens of their own, and what would change something is a dry run, which the API server
authorises and admits as it does the real thing.

Not proven here: that a policy stops a packet, as `test_network.py` does (these tests ask whether the API server takes
each policy as it is written, and which of the real pods it selects); who asks whether an account may use the pipeline
server.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.cluster import node, stand_ins
from tests.cluster import project as projects
from tests.cluster.kserve import QUESTION
from tests.cluster.kubectl import Kubectl
from tests.cluster.project import Project
from tests.kfp import deploy
from tests.manifests import building
from tests.manifests.building import of_kind
from tests.tekton.manifests import Resource

INVALID = 422  # what such a policy says
GROUPS = {
    "": "pods pods/exec pods/log events configmaps secrets serviceaccounts serviceaccounts/token "
    "persistentvolumeclaims",
    "apps": "deployments",
    "argoproj.io": "workflows",
    "networking.k8s.io": "networkpolicies",
    "pipelines.kubeflow.org": "pipelines pipelineversions",
    "rbac.authorization.k8s.io": "roles rolebindings clusterroles",
    "serving.kserve.io": "inferenceservices",
    "tekton.dev": "pipelineruns taskruns tasks",
    "triggers.tekton.dev": "eventlisteners triggers triggerbindings triggertemplates clusterinterceptors "
    "clustertriggerbindings interceptors",
}
API = {plural: group for group, plurals in GROUPS.items() for plural in plurals.split()} | {"namespaces": ""}
VERSIONS = {
    "argoproj.io": "v1alpha1",
    "pipelines.kubeflow.org": "v2beta1",
    "serving.kserve.io": "v1beta1",
    "triggers.tekton.dev": "v1beta1",
}
ALPHA = {"clusterinterceptors", "interceptors"}
METHODS = {"get": "GET", "list": "GET", "create": "POST", "patch": "PATCH", "delete": "DELETE"}
OURS, RUNS, ELSEWHERE, EVERYWHERE = "ours", "runs", "default", ""  # namespaces; the first is Tekton's


@dataclass(frozen=True)
class Access:
    """The project's namespaces.

    Attributes:
        kubectl: that of Tekton.
        runs: that of the pipeline's runs.
        overlay: all that the overlay holds.
        tokens: of the accounts that have asked.
    """

    kubectl: Kubectl
    runs: Kubectl
    overlay: list[Resource]
    tokens: dict[str, str] = field(default_factory=dict)

    def ask(self, account: str, verb: str, resource: str, namespace: str = OURS, body: Any = None) -> tuple[int, str]:
        """Ask with an account's own token, to change nothing; returns the status and what the API server says.

        Args:
            resource: its plural, with ``/<name>`` where one is meant, and a subresource behind that.
        """
        if account not in self.tokens:
            self.tokens[account] = self.kubectl("create", "token", account).strip()
        plural, _, rest = resource.partition("/")
        group, version = API[plural], VERSIONS.get(API[plural], "v1")
        api = f"apis/{group}/{'v1alpha1' if plural in ALPHA else version}" if group else f"api/{version}"
        space = {OURS: self.kubectl.namespace, RUNS: self.runs.namespace}.get(namespace, namespace)
        path = "/".join(filter(None, (api, f"namespaces/{space}" if space else "", plural, rest)))
        with node.session() as http:
            answer = http.request(
                METHODS[verb],
                f"{node.SERVER}/{path}",
                params={} if METHODS[verb] == "GET" else {"dryRun": "All"},
                headers={
                    "Authorization": f"Bearer {self.tokens[account]}",
                    "Content-Type": "application/merge-patch+json" if verb == "patch" else "application/json",
                },
                # Of a deletion the options are in the body alone, if there is one.
                data=json.dumps({"dryRun": ["All"]} if verb == "delete" else body or {}),
                timeout=30,
            )
        return answer.status_code, answer.text if answer.ok else str(answer.json()["message"])

    def start(self, run: Resource) -> tuple[int, str]:
        """Ask for a PipelineRun as the listener."""
        return self.ask("jukebox-listener", "create", "pipelineruns", body=run)

    def run_of_event(self, name: str) -> Any:
        """What the listener makes of an event."""
        text = json.dumps(of_kind(self.overlay, "TriggerTemplate")[0]["spec"]["resourcetemplates"][0])
        values = {"run-name": name, "not-before": ""}
        return json.loads(re.sub(r"\$\(tt\.params\.([\w-]+)\)", lambda found: values.get(found[1], "x"), text))

    def dry_run(self, document: Resource) -> Any:
        """What the API server would make of a new resource, every field of which it must know."""
        words = ("create", "--dry-run=server", "--validate=strict", "--filename=-", "--output=json")
        return json.loads(self.kubectl(*words, stdin=json.dumps(document)))


@pytest.fixture(scope="module")
def access(project: Project) -> Iterator[Access]:
    """The project with something of each kind that an account may do something to, or not."""
    there = {project.ci: [run("there"), claim("foreign"), claim("there")]}
    there[project.kubectl] = [pipeline("there"), version("there"), claim("there")]
    for kubectl, resources in there.items():
        kubectl.apply(*resources)
    owner = {"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "name": "there"}
    owner["uid"] = project.ci.get("pipelinerun/there")["metadata"]["uid"]
    patch = json.dumps({"metadata": {"ownerReferences": [owner]}})
    project.ci("patch", "persistentvolumeclaim/there", "--type=merge", f"--patch={patch}")
    yield Access(project.ci, project.kubectl, building.build(project.kubectl.program, projects.FORK / projects.OVERLAY))
    for kubectl, resources in there.items():
        for each in resources:
            name = f"{each['kind']}.{each['apiVersion'].split('/')[0]}".removesuffix(".v1")
            kubectl("delete", f"{name}/{each['metadata']['name']}", "--ignore-not-found")


def run(name: str) -> Resource:
    """A run that does not start."""
    spec = {"status": "PipelineRunPending", "pipelineRef": {"name": "continuous-training"}}
    return {"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "metadata": {"name": name}, "spec": spec}


def pipeline(name: str) -> Resource:
    return {"apiVersion": "pipelines.kubeflow.org/v2beta1", "kind": "Pipeline", "metadata": {"name": name}}


def version(name: str) -> Resource:
    return {**pipeline(name), "kind": "PipelineVersion", "spec": stand_ins.version("there")}


def claim(name: str, storage: str = "1Mi") -> Resource:
    """A claim of a class that nobody serves."""
    requests = {"requests": {"storage": storage}}
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": "nobody", "resources": requests}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def service(kind: str) -> Resource:
    spec = {"type": kind, "ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "open"}, "spec": spec}


def pod(name: str = "one", **resources: dict[str, str]) -> Resource:
    """A pod that no node ever gets."""
    spec = {"schedulerName": "nobody", "containers": [{"name": "main", "image": "absent", "resources": resources}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


NEW = {"pipelineruns": run, "pipelines": pipeline, "pipelineversions": version}


GRANT = {"rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]}

ALLOWED = [
    ("jukebox-listener", "list", "eventlisteners", OURS),
    ("jukebox-listener", "list", "triggers", OURS),
    ("jukebox-listener", "list", "triggerbindings", OURS),
    ("jukebox-listener", "list", "triggertemplates", OURS),
    ("jukebox-listener", "list", "interceptors", OURS),
    ("jukebox-listener", "list", "clusterinterceptors", EVERYWHERE),
    ("jukebox-listener", "list", "clustertriggerbindings", EVERYWHERE),
    ("jukebox-runs", "list", "pipelineruns", OURS),
    ("jukebox-runs", "get", "pipelineruns/there", OURS),
    ("jukebox-runs", "patch", "pipelineruns/there", OURS),
    ("jukebox-runs", "list", "taskruns", OURS),
    ("jukebox-retain", "list", "pipelineruns", OURS),
    ("jukebox-retain", "delete", "pipelineruns/there", OURS),
    ("jukebox-retain", "list", "persistentvolumeclaims", OURS),
    ("jukebox-retain", "patch", "persistentvolumeclaims/there", OURS),
    ("jukebox-retain", "delete", "persistentvolumeclaims/there", OURS),
    ("jukebox-retain", "get", "configmaps/jukebox-images", OURS),
    ("jukebox-runs", "get", "configmaps/jukebox-commits", OURS),
    ("jukebox-runs", "patch", "configmaps/jukebox-commits", OURS),
    ("jukebox-source", "get", "configmaps/jukebox-images", OURS),
    ("jukebox-images", "get", "configmaps/jukebox-images", OURS),
    ("jukebox-images", "patch", "configmaps/jukebox-images", OURS),
    *(
        ("jukebox-release", verb, resource, RUNS)
        for plural in ("pipelines", "pipelineversions")
        for verb, resource in (("get", f"{plural}/there"), ("create", plural), ("patch", f"{plural}/there"))
    ),
    ("jukebox-release", "list", "workflows", RUNS),
    ("jukebox-release", "list", "pods", RUNS),
    ("jukebox-release", "list", "events", RUNS),
]
FORBIDDEN = [
    # The world speaks to it: it starts runs, and sees neither them nor what they use.
    ("jukebox-listener", "get", "secrets/jukebox-senders", OURS),
    ("jukebox-listener", "list", "secrets", OURS),
    ("jukebox-listener", "create", "secrets", OURS),
    ("jukebox-listener", "list", "configmaps", OURS),
    ("jukebox-listener", "create", "pods", OURS),
    ("jukebox-listener", "create", "pods/there/exec", OURS),
    ("jukebox-listener", "create", "taskruns", OURS),
    ("jukebox-listener", "get", "pipelineruns/there", OURS),
    ("jukebox-listener", "list", "pipelineruns", OURS),
    ("jukebox-listener", "patch", "pipelineruns/there", OURS),
    ("jukebox-listener", "delete", "pipelineruns/there", OURS),
    ("jukebox-listener", "patch", "triggers/github", OURS),
    ("jukebox-listener", "create", "eventlisteners", OURS),
    ("jukebox-listener", "create", "serviceaccounts/jukebox-runs/token", OURS),
    ("jukebox-listener", "patch", "roles/jukebox-listener", OURS),
    ("jukebox-listener", "create", "rolebindings", OURS),
    ("jukebox-listener", "delete", "networkpolicies/jukebox-listener", OURS),
    ("jukebox-listener", "create", "pipelineruns", ELSEWHERE),
    ("jukebox-listener", "list", "eventlisteners", ELSEWHERE),
    ("jukebox-listener", "list", "eventlisteners", EVERYWHERE),
    ("jukebox-listener", "list", "namespaces", EVERYWHERE),
    ("jukebox-listener", "create", "clusterinterceptors", EVERYWHERE),
    ("jukebox-listener", "patch", "clusterroles/jukebox-listener", EVERYWHERE),
    # It ends runs and tidies up, and starts nothing.
    ("jukebox-runs", "create", "pipelineruns", OURS),
    ("jukebox-runs", "create", "persistentvolumeclaims", OURS),
    ("jukebox-runs", "create", "pods", OURS),
    ("jukebox-runs", "list", "pods", OURS),
    ("jukebox-runs", "create", "taskruns", OURS),
    ("jukebox-runs", "list", "taskruns", ELSEWHERE),
    ("jukebox-runs", "get", "secrets/jukebox-senders", OURS),
    ("jukebox-runs", "patch", "roles/jukebox-runs", OURS),
    ("jukebox-runs", "delete", "pipelineruns/there", OURS),
    ("jukebox-runs", "delete", "persistentvolumeclaims/there", OURS),
    ("jukebox-retain", "create", "pipelineruns", OURS),
    ("jukebox-retain", "patch", "pipelineruns/there", OURS),
    ("jukebox-retain", "patch", "configmaps/jukebox-images", OURS),
    ("jukebox-retain", "list", "secrets", OURS),
    ("jukebox-retain", "delete", "pipelineruns/there", ELSEWHERE),
    ("jukebox-retain", "list", "persistentvolumeclaims", ELSEWHERE),
    # It makes versions and waits for their runs, and takes nothing back.
    ("jukebox-release", "delete", "pipelineversions/there", RUNS),
    ("jukebox-release", "create", "pipelineversions", ELSEWHERE),
    ("jukebox-release", "create", "workflows", RUNS),
    ("jukebox-release", "delete", "workflows/there", RUNS),
    ("jukebox-release", "create", "pods", RUNS),
    ("jukebox-release", "create", "pods/there/exec", RUNS),
    ("jukebox-release", "get", "pods/there/log", ELSEWHERE),
    ("jukebox-release", "list", "events", ELSEWHERE),
    ("jukebox-release", "list", "taskruns", RUNS),
    ("jukebox-release", "get", "secrets/jukebox-senders", RUNS),
    ("jukebox-release", "list", "pipelineruns", RUNS),
    ("jukebox-release", "patch", "inferenceservices/jukebox", RUNS),
    ("jukebox-release", "patch", "roles/jukebox-release", RUNS),
    # In the namespace of Tekton it has no right at all; nor have the others where the pipeline runs.
    *(
        ("jukebox-release", verb, resource, OURS)
        for verb, resource in (
            ("list", "pods"),
            ("get", "configmaps/jukebox-settings"),
            ("get", "secrets/jukebox-git-host"),
            ("list", "pipelineruns"),
            ("create", "pods"),
        )
    ),
    *(
        (account, verb, resource, RUNS)
        for account in ("jukebox-source", "jukebox-images", "jukebox-runs", "jukebox-listener", "jukebox-schedule")
        for verb, resource in (
            ("list", "secrets"),
            ("list", "pods"),
            ("create", "pods"),
            ("create", "pipelines"),
            ("delete", "persistentvolumeclaims/there"),
            ("patch", "inferenceservices/jukebox"),
        )
    ),
    # What runs later rely on is each written by one account alone.
    ("jukebox-source", "patch", "configmaps/jukebox-images", OURS),
    ("jukebox-runs", "patch", "configmaps/jukebox-images", OURS),
    ("jukebox-images", "patch", "configmaps/jukebox-commits", OURS),
    ("jukebox-images", "patch", "configmaps/jukebox-settings", OURS),
    ("jukebox-runs", "patch", "configmaps/jukebox-settings", OURS),
    ("jukebox-source", "list", "secrets", OURS),
    ("jukebox-images", "list", "secrets", OURS),
    ("jukebox-images", "create", "pods", OURS),
    # They run what was pushed, or serve: no right at all.
    *(
        (account, verb, resource, space)
        for account, space in (("jukebox-steps", OURS), ("jukebox-steps", RUNS), ("default", OURS))
        for verb, resource in (
            ("get", "secrets/jukebox-senders"),
            ("list", "secrets"),
            ("list", "pods"),
            ("create", "pods"),
            ("list", "configmaps"),
            ("create", "pipelineruns"),
            ("create", "pipelineversions"),
            ("patch", "inferenceservices/jukebox"),
            ("create", "rolebindings"),
        )
    ),
]


@pytest.mark.parametrize(("account", "verb", "resource", "namespace"), ALLOWED)
def test_an_account_may_do_what_it_is_for(
    access: Access, account: str, verb: str, resource: str, namespace: str
) -> None:
    status, said = access.ask(account, verb, resource, namespace, NEW[resource]("new") if verb == "create" else None)
    assert status in (200, 201), said


def test_who_waits_for_a_run_may_read_the_logs_of_its_pods(access: Access) -> None:
    """There is no such pod, which is said only to who may read its log."""
    status, said = access.ask("jukebox-release", "get", "pods/there/log", RUNS)
    assert (status, said) == (404, 'pods "there" not found')


@pytest.mark.parametrize(("account", "verb", "resource", "namespace"), FORBIDDEN)
def test_an_account_may_do_nothing_else(access: Access, account: str, verb: str, resource: str, namespace: str) -> None:
    status, said = access.ask(account, verb, resource, namespace, GRANT)
    plural, *rest = resource.split("/")
    asked = "/".join((plural, *rest[1:]))
    user = f"system:serviceaccount:{access.kubectl.namespace}:{account}"
    assert status == 403
    assert f'User "{user}" cannot {verb} resource "{asked}"' in said


@pytest.mark.parametrize(("rights", "status"), [(["create"], 200), (["list"], 403), (None, 401)])
def test_who_calls_the_model_shows_a_token_of_an_account_that_may(
    access: Access, published: Project, rights: list[str] | None, status: int
) -> None:
    """The real proxy asks the API server; the upstream one makes the verb of the request's method."""
    token = ""
    if rights:
        account = f"caller-{rights[0]}"
        rule = {
            "apiGroups": ["serving.kserve.io"],
            "resources": ["inferenceservices"],
            "resourceNames": ["jukebox"],
            "verbs": rights,
        }
        rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": account}}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}
        access.runs.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}},
            {**rbac, "kind": "Role", "rules": [rule]},
            {**rbac, "kind": "RoleBinding", "roleRef": role, "subjects": [{"kind": "ServiceAccount", "name": account}]},
        )
        token = access.runs("create", "token", account).strip()
    with node.session() as http:
        answer = http.post(
            f"https://{published.kubectl.reach('way-to-model-server')}/v2/models/jukebox/infer",
            json=QUESTION,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=30,
        )
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"fsGroup": 1001}, "provider restricted-v2: .spec.securityContext.fsGroup: .*1001 is not an allowed group"),
        ({"runAsUser": 5000}, r"runAsUser: Invalid value: 5000: must be in the ranges: \[1000770000, 1000779999\]"),
        ({"seccompProfile": {"type": "Unconfined"}}, "unconfined is not an allowed seccomp profile"),
    ],
)
def test_openshift_refuses_a_pod_that_names_what_is_the_platforms_to_give(
    access: Access, context: dict[str, Any], message: str
) -> None:
    made = changed(securityContext=context)
    made["metadata"]["annotations"] = {"openshift.io/required-scc": "restricted-v2"}
    with pytest.raises(RuntimeError, match=message):
        access.dry_run(made)


def test_the_listener_starts_what_an_event_asks_for(access: Access) -> None:
    status, said = access.start(access.run_of_event("new"))
    assert status == 201, said


@pytest.mark.parametrize("verb", ["patch", "delete"])
def test_who_removes_old_runs_touches_no_claim_but_theirs(access: Access, verb: str) -> None:
    status, said = access.ask("jukebox-retain", verb, "persistentvolumeclaims/foreign")
    assert status == INVALID
    assert "may remove only claims that a PipelineRun owns" in said


APPLY = {"pipelineTaskName": "apply", "serviceAccountName": "jukebox-release"}
SECRET = {"name": "source", "secret": {"secretName": "jukebox-senders"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pipelineRef": {"name": "another"}}, "may start only the pipeline continuous-training"),
        ({"pipelineRef": {"resolver": "git"}}, "may start only the pipeline continuous-training"),
        (
            {"pipelineRef": None, "pipelineSpec": {"tasks": [{"name": "any", "taskRef": {"name": "test"}}]}},
            "may start only the pipeline continuous-training",
        ),
        ({"taskRunTemplate": None}, "may start runs only with the account jukebox-steps"),
        ({"taskRunTemplate": {"serviceAccountName": "jukebox-release"}}, "only with the account jukebox-steps"),
        (
            {"taskRunSpecs": [{"pipelineTaskName": "test", "serviceAccountName": "jukebox-release"}]},
            "may give a task only that task's account",
        ),
        (
            {"taskRunSpecs": [{"pipelineTaskName": "apply", "serviceAccountName": "jukebox-runs"}]},
            "may give a task only that task's account",
        ),
        ({"workspaces": [SECRET]}, "may give runs only a volume of their own"),
        (
            {"params": [{"name": "repository", "value": "https://elsewhere.example"}]},
            "may give a run only the parameters reason",
        ),
        ({"params": [{"name": "commit", "value": ["a", "list"]}]}, "as text"),
        (
            {"taskRunTemplate": {"serviceAccountName": "jukebox-steps", "podTemplate": {"hostNetwork": True}}},
            "settings",
        ),
        (
            {
                "taskRunSpecs": [
                    APPLY | {"stepSpecs": [{"name": "apply", "computeResources": {"limits": {"cpu": "1"}}}]}
                ]
            },
            "may give a task only that task's account",
        ),
    ],
)
def test_the_listener_starts_nothing_else(access: Access, change: dict[str, Any], message: str) -> None:
    document = access.run_of_event("new")
    document["spec"] = {key: value for key, value in (document["spec"] | change).items() if value is not None}
    status, said = access.start(document)
    assert status == INVALID, said
    assert message in said


def changed(**spec: Any) -> Resource:
    made = pod()
    made["spec"] |= spec
    return made


def secured(place: str, **context: Any) -> Resource:
    """A pod with a security context: of itself (``spec``), or of its ``containers`` or ``initContainers``."""
    made = changed(initContainers=[{"name": "first", "image": "absent"}])
    holder = made["spec"] if place == "spec" else made["spec"][place][0]
    holder["securityContext"] = context
    return made


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (changed(hostNetwork=True), "host namespaces"),
        (changed(volumes=[{"name": "root", "hostPath": {"path": "/"}}]), "hostPath volumes"),
        (secured("initContainers", privileged=True), "privileged"),
        (secured("containers", capabilities={"add": ["SYS_ADMIN"]}), "non-default capabilities"),
        (secured("spec", seccompProfile={"type": "Unconfined"}), "seccompProfile"),
    ],
)
def test_a_pod_that_could_reach_its_node_is_refused(access: Access, document: Resource, message: str) -> None:
    with pytest.raises(RuntimeError, match=f'violates PodSecurity "baseline:latest": {message}'):
        access.dry_run(document)


def test_neither_could_a_container_that_is_added_later(access: Access) -> None:
    access.kubectl.apply(pod("target"))
    added = {"name": "later", "image": "absent", "securityContext": {"privileged": True}}
    patch = json.dumps({"spec": {"ephemeralContainers": [added]}})
    with pytest.raises(RuntimeError, match='violates PodSecurity "baseline:latest": privileged'):
        access.kubectl("patch", "pod/target", "--subresource=ephemeralcontainers", f"--patch={patch}")
    access.kubectl("delete", "pod/target")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (pod(requests={"cpu": "17"}, limits={"cpu": "17"}), r"requests.cpu=17, used: requests.cpu=\w+, limited: .*=16"),
        (pod(requests={"memory": "65Gi"}, limits={"memory": "65Gi"}), "requests.memory=65Gi.* limited: .*=64Gi"),
        (claim("large", "201Gi"), "requests.storage=201Gi.* limited: requests.storage=200Gi"),
        (service("NodePort"), "services.nodeports=1.* limited: services.nodeports=0"),
        (service("LoadBalancer"), "services.loadbalancers=1.* limited: services.loadbalancers=0"),
    ],
)
def test_more_than_the_quota_is_refused(access: Access, document: Resource, message: str) -> None:
    with pytest.raises(RuntimeError, match=rf"is forbidden: exceeded quota: jukebox, requested: .*{message}"):
        access.dry_run(document)


def test_a_container_that_says_nothing_gets_the_defaults_of_the_limit_range(access: Access) -> None:
    [container] = access.dry_run(pod())["spec"]["containers"]
    limits, _ = of_kind(access.overlay, "LimitRange")
    [default] = limits["spec"]["limits"]
    assert container["resources"] == {"requests": default["defaultRequest"], "limits": default["default"]}


def test_a_container_that_requests_more_than_the_default_limit_must_say_its_limit(access: Access) -> None:
    with pytest.raises(RuntimeError, match=r"1Gi.*must be less than or equal to memory limit of 512Mi"):
        access.dry_run(pod(requests={"memory": "1Gi"}))
    assert access.dry_run(pod(requests={"memory": "1Gi"}, limits={"memory": "1Gi"}))


def test_every_policy_is_taken_as_it_is_written(access: Access) -> None:
    def kept(written: Any, stored: Any) -> bool:
        """Whether all that is written is stored; the API server adds its defaults."""
        if isinstance(written, dict):
            return all(key in stored and kept(value, stored[key]) for key, value in written.items())
        if isinstance(written, list):
            return len(written) == len(stored) and all(map(kept, written, stored))
        return bool(written == stored)

    policies = of_kind(access.overlay, "NetworkPolicy")
    assert policies
    for policy in policies:
        copy = {**policy, "metadata": {"name": "copy"}}
        assert kept(policy["spec"], access.dry_run(copy)["spec"]), policy["metadata"]["name"]


def test_a_field_that_no_policy_has_is_refused(access: Access) -> None:
    policy = {**of_kind(access.overlay, "NetworkPolicy")[0], "metadata": {"name": "copy"}}
    with pytest.raises(RuntimeError, match=r'unknown field "spec.podSelectors"'):
        access.dry_run({**policy, "spec": {**policy["spec"], "podSelectors": {}}})


@pytest.fixture(scope="module")
def pods(access: Access) -> Iterator[None]:
    """A pod at least of each sort, made by the real controllers; what is started here gets no node."""
    started = access.run_of_event("started")
    started["spec"]["workspaces"] = [{"name": "source", "emptyDir": {}}]
    started["spec"]["taskRunTemplate"]["podTemplate"] = {"schedulerName": "nobody"}
    jobs = []
    for name in ("retain", "schedule"):
        words = ("create", "job", f"test-{name}", f"--from=cronjob/jukebox-{name}", "--dry-run=client", "--output=json")
        job = json.loads(access.kubectl(*words))
        job["spec"]["template"]["spec"]["schedulerName"] = "nobody"
        jobs.append(job)
    access.kubectl.apply(started, *jobs)

    def there() -> bool:
        found = sorts(access.kubectl) | sorts(access.runs)
        if set(SORTS) <= found:
            return True
        raise RuntimeError(f"there are {found}")

    node.wait("pods", there)
    yield
    access.kubectl("delete", "pipelinerun/started", *(f"job/test-{name}" for name in ("retain", "schedule")))


# By a label that its controller gives a pod.
SORTS = {
    "listener": "eventlistener=jukebox",
    "listener proxy": "app.kubernetes.io/name=listener-proxy",
    "model server": "serving.kserve.io/inferenceservice=jukebox",
    "checkout": "tekton.dev/pipelineRun=started",
    "retain": "job-name=test-retain",
    "schedule": "job-name=test-schedule",
    "pipeline server": f"app.kubernetes.io/name={deploy.NAME}",
}


def sorts(kubectl: Kubectl, *options: str) -> set[str]:
    """The sorts of those pods of a namespace that options of kubectl select."""
    labels = [
        {f"{key}={value}" for key, value in item["metadata"].get("labels", {}).items()}
        for item in kubectl.get("pods", *options)["items"]
    ]
    return {sort for sort, label in SORTS.items() if any(label in each for each in labels)}


def words(selector: dict[str, Any]) -> str:
    """A selector as kubectl takes it."""
    labels = [f"{key}={value}" for key, value in selector.get("matchLabels", {}).items()]
    for each in selector.get("matchExpressions", []):
        values = f" {each['operator'].lower()} ({','.join(each['values'])})" if "values" in each else ""  # else Exists
        labels.append(f"{each['key']}{values}")
    return ",".join(labels)


@pytest.mark.parametrize(
    ("policy", "selected"),
    [
        ("jukebox-default-deny", set(SORTS)),
        ("jukebox-ci-cluster", {"listener", "checkout", "retain", "schedule"}),
        ("jukebox-ci-git", {"checkout"}),
        ("jukebox-ci-registry", {"checkout"}),
        ("jukebox-ci-retain", {"retain"}),
        ("jukebox-ci-index", set()),
        ("jukebox-ci-schedule", {"schedule"}),
        ("jukebox-ci-metrics", {"listener"}),
        ("jukebox-metrics", {"model server"}),
        ("jukebox-listener", {"listener"}),
        ("jukebox-listener-proxy", {"listener proxy"}),
        ("jukebox-listener-router", {"listener proxy"}),
        ("jukebox-model-server", {"model server"}),
        ("jukebox-model-server-auth-proxy", {"model server"}),
        ("jukebox-model-server-router", {"model server"}),
        ("jukebox-pipeline-server", {"pipeline server"}),
    ],
)
@pytest.mark.usefixtures("pods")
def test_a_policy_selects_the_pods_that_it_is_for(access: Access, policy: str, selected: set[str]) -> None:
    found = set()
    for each in (each for each in of_kind(access.overlay, "NetworkPolicy") if each["metadata"]["name"] == policy):
        space = access.kubectl if "namespace" in each["metadata"] else access.runs
        found |= sorts(space, f"--selector={words(each['spec']['podSelector'])}")
    assert found == selected


@pytest.mark.parametrize(("make", "plural"), [(pod, "pods"), (claim, "persistentvolumeclaims")])
def test_more_in_number_than_the_quota_is_refused(access: Access, make: Any, plural: str) -> None:
    quota, _ = of_kind(access.overlay, "ResourceQuota")
    most = int(quota["spec"]["hard"][plural])
    many = [make(f"many-{number}") for number in range(most + 1)]  # more than fit beside what is there
    try:
        refusal = f"exceeded quota: jukebox, requested: {plural}=1, used: {plural}={most}"
        with pytest.raises(RuntimeError, match=refusal):
            access.kubectl.apply(*({**each, "metadata": {**each["metadata"], "labels": MANY}} for each in many))
    finally:
        access.kubectl("delete", plural, f"--selector={words({'matchLabels': MANY})}", "--wait=false")


MANY = {"jukebox.github.io/test": "many"}
