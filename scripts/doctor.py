"""``jukebox doctor``: look at a cluster, and say of each thing that the project needs whether it is there."""

import re
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import requests
import typer
import yaml

from pipeline.core.documents import to_json
from pipeline.core.errors import ClusterRefuses, ServerUnavailable, SingleUser
from pipeline.settings import PIPELINE, read_settings, settings_file
from scripts import preflight as before
from scripts.apply import VERSIONS
from scripts.bootstrap import POLICIES, SETTINGS, checkout, environments, placeholders, read_all_settings
from scripts.clients.kubernetes_api import (
    CLAIMS,
    PODS,
    SECRETS,
    TASK_RUNS,
    Cluster,
    Kind,
    Resource,
    ci_cluster,
    project_cluster,
)
from scripts.clients.pipeline_server import TIMEOUT, find_server, said
from scripts.commit_status import Host, find_api
from scripts.findings import Checks, Finding, Findings, Project, State, allowed, examine, judge, show
from scripts.outcome import REBUILD, STALE, results
from scripts.output import Output
from scripts.preflight import (
    CONFIG_MAPS,
    ENFORCE,
    INFERENCE_SERVICES,
    NAMESPACES,
    PIPELINE_SERVERS,
    STORAGE_CLASSES,
    release,
)
from scripts.render import build
from scripts.replay import SECRET
from scripts.secrets import ALERT, KEYS, SHORTEST, Place, Wanted, clusters, values, wanted

SOON = timedelta(days=14)

ADMISSION_POLICIES = Kind("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", namespaced=False)
ADMISSION_BINDINGS = Kind("admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", namespaced=False)
DEPLOYMENTS = Kind("apps", "v1", "deployments")
HTTP_ROUTES = Kind("gateway.networking.k8s.io", "v1", "httproutes")
LISTENERS = Kind("triggers.tekton.dev", "v1beta1", "eventlisteners")
ROUTES = Kind("route.openshift.io", "v1", "routes")
TASKS = Kind("tekton.dev", "v1", "tasks")
TEMPLATES = Kind("triggers.tekton.dev", "v1beta1", "triggertemplates")

ENFORCED = ("baseline", "restricted")  # the levels below which a pod may reach its node

# Who makes volumes that pods on many nodes may write to; a class does not say it itself.
SHARED = re.compile(r"nfs|cephfs|efs\.|azure.*file|filestore|manila|longhorn|gluster|weka|netapp|portworx")
PINNED = re.compile(r'"versions":\s*\[(\d+)\]')


def command(
    overlay: Annotated[
        Path | None, typer.Option(help="What Git says runs here, as manifests/overlays/openshift-ai/prod.")
    ] = None,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Before anything is applied: whether the cluster will take the overlay.")
    ] = False,
    output: Annotated[Output, typer.Option(help="For people or for programs.")] = Output.TABLE,
) -> None:
    """Look at the cluster: what is there, what is missing, and what to do; end with 1 where something fails.

    No secret is shown. Without an overlay, what is applied is not compared with Git.

    The preflight changes nothing and needs the rights of `admin` in the namespace alone. It compares the versions with
    those that are supported, and tries each pod of the overlay by a dry run. Without an overlay it takes that of the
    platform and of the environment that have a cluster in the settings.

    Example: `jukebox doctor --overlay manifests/overlays/openshift-ai/prod`
    """
    settings = read_settings()
    data = yaml.safe_load(settings_file().read_text("utf-8"))["data"]
    text = ""
    if overlay:
        text = build(overlay)
    elif preflight:
        data = read_all_settings()
        with checkout() as folder:
            text = build(folder / "manifests" / "overlays" / data["platform"] / environments(data)[0])
    resources = [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]
    project = Project(project_cluster(settings), ci_cluster(settings), settings, resources, data)
    checks = {**BEFORE, **before.checks(project)} if preflight else CHECKS
    findings = list(examine(project, checks))
    if output is Output.JSON:
        print(to_json([asdict(finding) for finding in findings], indent=1))
    else:
        show(findings)
    if any(finding.state is State.FAIL for finding in findings):
        raise typer.Exit(1)


# What serves each of these; without Argo CD and the Prometheus Operator a cluster trains and serves all the same.
INSTALLED = {
    "Tekton Pipelines": (TASKS, State.FAIL, "Install Tekton Pipelines; on OpenShift the operator OpenShift Pipelines."),
    "Tekton Triggers": (TEMPLATES, State.FAIL, "Install Tekton Triggers; on OpenShift it comes with Pipelines."),
    "KServe": (INFERENCE_SERVICES, State.FAIL, "Install KServe; on OpenShift the operator OpenShift AI."),
    "Kubeflow Pipelines": (
        VERSIONS,
        State.FAIL,
        "Install Kubeflow Pipelines 2.16 or newer, in its Kubernetes-native variant; or OpenShift AI.",
    ),
    "Argo CD": (
        Kind("argoproj.io", "v1alpha1", "applications"),
        State.WARN,
        "Install Argo CD, unless that of another cluster looks after this one.",
    ),
    "Prometheus Operator": (
        Kind("monitoring.coreos.com", "v1", "podmonitors"),
        State.WARN,
        "Without it nothing is measured, and no alert asks for a training.",
    ),
}


def _installed(project: Project) -> Findings:
    """The kinds of resources that the project is made of, in the versions that it uses."""
    for name, (kind, absent, remedy) in INSTALLED.items():
        served = f"{kind.group}/{kind.version}"
        try:
            there = {each["name"] for each in project.cluster.get(f"/apis/{served}")["resources"]}
        except ClusterRefuses as error:
            if error.status != 404:
                raise
            there = set()
        named = release(project.cluster, f"{kind.plural}.{kind.group}") if kind.plural in there else ""
        if kind.plural in there:
            yield Finding(name, State.OK, f"{served} {named}".strip())
        else:
            yield Finding(name, absent, f"the cluster does not know {kind.plural} of {served}", remedy)


def _storage(project: Project) -> Findings:
    """A claim that runs and model servers on several nodes reach at once."""
    name, remedy = project.settings.model_storage_pvc, "Name a class with ReadWriteMany in storage-class"
    if not project.settings.on_claim:
        yield Finding("Model store", State.OK, project.settings.model_store)
        return
    if claim := project.cluster.read(CLAIMS, name):
        phase, modes = claim.get("status", {}).get("phase", "Pending"), claim["spec"].get("accessModes", [])
        found = (
            f"claim {name} is {phase}, {' '.join(modes)}, of class {claim['spec'].get('storageClassName', 'default')}"
        )
        if phase != "Bound":
            yield Finding("Model store", State.FAIL, found, f"See `kubectl describe pvc {name}`. {remedy}.")
        else:
            many = "ReadWriteMany" in modes
            yield judge(
                "Model store", many, found, f"All its pods go to one node. {remedy} to change that.", State.WARN
            )
        return
    classes = {each["metadata"]["name"]: each["provisioner"] for each in project.cluster.list(STORAGE_CLASSES)}
    shared = sorted(each for each, provisioner in classes.items() if SHARED.search(provisioner))
    found = f"claim {name} is not there; classes: {', '.join(sorted(classes)) or 'none'}"
    advice = f", likely {', '.join(shared)}" if shared else ", or take the component storage-rwo"
    yield Finding(
        "Model store", State.WARN if classes else State.FAIL, found, f"{remedy}{advice}, and apply the overlay."
    )


# What no webhook may let pass. A dry run, so nothing is created where one does.
PROVOCATIONS: dict[str, tuple[Kind, str, Resource]] = {
    "Tekton Pipelines": (TASKS, "Task", {"steps": [{"name": "a", "image": "a", "command": ["$(params.missing)"]}]}),
    "Tekton Triggers": (
        TEMPLATES,
        "TriggerTemplate",
        {
            "resourcetemplates": [
                {
                    "apiVersion": "tekton.dev/v1",
                    "kind": "PipelineRun",
                    "metadata": {"name": "$(tt.params.missing)"},
                    "spec": {"pipelineRef": {"name": "a"}},
                }
            ]
        },
    ),
    "KServe": (INFERENCE_SERVICES, "InferenceService", {"predictor": {"minReplicas": 3, "maxReplicas": 2}}),
    "Kubeflow Pipelines": (
        VERSIONS,
        "PipelineVersion",
        {"pipelineName": "missing", "pipelineSpec": {"pipelineInfo": {"name": PIPELINE}, "schemaVersion": "2.1.0"}},
    ),
}


def _webhooks(project: Project) -> Findings:
    """The webhooks refuse what they must refuse."""
    for owner, (kind, word, spec) in PROVOCATIONS.items():
        resource = {
            "apiVersion": f"{kind.group}/{kind.version}",
            "kind": word,
            "metadata": {"name": "jukebox-doctor"},
            "spec": spec,
        }
        name = f"Admission of {owner}"
        try:
            # Each where the project has resources of the kind.
            cluster = project.ci if "Tekton" in owner else project.cluster
            cluster.create(kind, resource, dry_run=True)
        except ClusterRefuses as error:
            if error.webhook:
                yield Finding(name, State.OK, f"{error.webhook} is up")
            elif error.status == 403:
                yield Finding(name, State.WARN, f"cannot be tried: {error.reason}", "Ask somebody who may create it.")
            else:
                yield Finding(name, State.FAIL, error.reason, f"See the webhook's pods: is {owner} installed and up?")
        else:
            remedy = f"Its webhook is missing: see whether {owner} is ready (the pipeline server: oc get dspa)."
            yield Finding(name, State.FAIL, f"nothing refuses a wrong {word}", remedy)


# Verb, group, resource and subresource, and what it is for, in the namespace of Tekton.
OURS = {
    ("create", "", "secrets", ""): "jukebox secrets",
    ("patch", "", "secrets", ""): "jukebox secrets --rotate",
    ("create", "tekton.dev", "pipelineruns", ""): "a training by hand",
    ("get", "", "pods", "log"): "the log of a step",
}
THEIRS = {
    "jukebox-listener": ("create", "tekton.dev", "pipelineruns", ""),
    "jukebox-release": ("create", "pipelines.kubeflow.org", "pipelineversions", ""),
    "jukebox-runs": ("patch", "tekton.dev", "pipelineruns", ""),
}


def _permissions(project: Project) -> Findings:
    """What you and the accounts of the project may do."""
    denied = [
        f"{' '.join(filter(None, right))} ({purpose})"
        for right, purpose in OURS.items()
        if not allowed(project.ci, right)
    ]
    found = f"you may not {', '.join(denied)}" if denied else "you may do what the commands do"
    yield judge("Your permissions", not denied, found, "Ask for the role admin of both namespaces.", State.WARN)
    for account, right in THEIRS.items():
        cluster = project.cluster if account == "jukebox-release" else project.ci
        may = allowed(cluster, right, account, of=project.ci.namespace)
        found = f"{account} {'may' if may else 'may not'} {right[0]} {right[2]} in {cluster.namespace}"
        yield judge(
            "Account", may, found, "Run `jukebox bootstrap --part tenant`: its Role or RoleBinding is not there."
        )
    # It runs what was pushed, tests and all.
    for cluster in (project.ci, project.cluster):
        may = allowed(cluster, ("get", "", "secrets"), "jukebox-steps", of=project.ci.namespace)
        found = f"jukebox-steps {'may' if may else 'may not'} read Secrets of {cluster.namespace}"
        yield judge("Account", not may, found, "Take that right away: this account runs whatever is pushed.")


def _relied_on(project: Project) -> Findings:
    """The settings that the tasks rely on are those of the file."""
    held = (project.ci.read(CONFIG_MAPS, SETTINGS) or {}).get("data", {}).get("settings.yaml")
    name, remedy = f"ConfigMap {SETTINGS}", "Run `jukebox bootstrap --part tenant`: the tasks rely on these settings."
    if held is None:
        yield Finding(name, State.FAIL, f"is not there, in {project.ci.namespace}", remedy)
        return
    data = yaml.safe_load(held)["data"]
    other = sorted(key for key in {*data, *project.data} if data.get(key) != project.data.get(key))
    text = f"has another {', '.join(other)} than {settings_file().name}" if other else "is as the settings are"
    yield judge(name, not other, text, remedy, State.WARN)


def _ci_image(project: Project) -> Findings:
    """It has the commands and the lock of the commit that was checked out last, as that checkout, run in it, has told.

    What lies on this machine may be another commit, and the image cannot be read from here.
    """
    told = [each for each in project.ci.list(TASK_RUNS, "tekton.dev/pipelineTask=checkout") if STALE in results(each)]
    if not told:
        yield Finding("CI image", State.OK, "no run has told yet whether it is stale")
        return
    newest = max(told, key=lambda each: str(each["status"].get("completionTime", "")))
    run, stale = newest["metadata"]["labels"]["tekton.dev/pipelineRun"], results(newest)[STALE]
    text = (
        f"the commit of {run} has different versions of {stale}"
        if stale
        else f"has the commands and the lock of {run}'s commit"
    )
    yield judge("CI image", not stale, text, f"{REBUILD} The next run tells whether it is still stale.", State.WARN)


def _policies(project: Project) -> Findings:
    """What is there for safety is in force; without it all works the same, for whoever breaks in as well."""
    remedy = f"Label the namespace {ENFORCE}=baseline; bootstrap does, unless a Profile or somebody else decides it."
    for cluster in (project.cluster, project.ci):
        namespace = cluster.read(NAMESPACES, cluster.namespace) or {"metadata": {}}
        level = namespace["metadata"].get("labels", {}).get(ENFORCE, "")
        found = f"enforced in {cluster.namespace} is {level or 'nothing'}"
        yield judge("Pod Security", level in ENFORCED, found, remedy, State.WARN)
    for policy in POLICIES:
        name = f"{policy}.{project.cluster.namespace}"
        binding = project.cluster.read(ADMISSION_BINDINGS, name)
        if not project.cluster.read(ADMISSION_POLICIES, name):
            found = "is not there"
        elif not binding:
            found = "has no binding"
        else:
            actions = binding["spec"]["validationActions"]
            found = "" if "Deny" in actions else f"denies nothing: {', '.join(actions)}"
        text = f"{name} {found or 'denies'}"
        yield judge("Admission policy", not found, text, "Run `jukebox bootstrap --part platform` again.", State.WARN)


def _secrets(project: Project) -> Findings:
    """They are there and hold their keys; and none of the CI's is where what is pushed could read it."""
    places = clusters(project.settings)
    for each in wanted(project.settings):
        for cluster in places[each.place]:
            yield _secret(each, cluster)
        if each.place is Place.CI and project.cluster.read(SECRETS, each.name):
            found = f"is in {project.cluster.namespace} as well, where what is pushed may read it"
            yield Finding(f"Secret {each.name}", State.FAIL, found, "jukebox secrets, which moves it")
    token = values(project.ci.read(SECRETS, SECRET)).get("alert", "")
    if not token:
        return  # which is said of that Secret
    shown = values(project.cluster.read(SECRETS, ALERT)).get("token", "")
    found = (
        f"holds {'the' if shown == token else 'another'} token" if shown else "is not there; alerts start no training"
    )
    yield judge(f"Secret {ALERT}", bool(shown) and shown == token, found, "jukebox secrets")


def _secret(each: Wanted, cluster: Cluster) -> Finding:
    name = f"Secret {each.name}"
    secret = cluster.read(SECRETS, each.name)
    remedy = f"jukebox secrets{f' {each.option} FILE' if each.option else ''}"
    held = values(secret)
    missing = [key for key in each.keys if not held.get(key)]
    short = [] if each.option else [key for key in KEYS if 0 < len(held.get(key, "")) < SHORTEST]
    if secret is None and not each.needed:
        return Finding(name, State.OK, f"not there, and not needed; it {each.purpose}")
    if secret is None:
        return Finding(name, State.FAIL, f"not there, in {cluster.namespace}; {each.purpose}", remedy)
    if missing or short:
        found = [f"{key} is missing or empty" for key in missing]
        found += [f"{key} has fewer than {SHORTEST} characters" for key in short]
        return Finding(name, State.FAIL, ", ".join(found), remedy)
    return Finding(name, State.OK, ", ".join(each.keys))


def _token(project: Project) -> Findings:
    """It takes the token, for some time still."""
    name = "Token of the Git host"
    held = values(project.ci.read(SECRETS, "jukebox-git-host"))
    token = held.get("token", "")
    repository = held.get("repository", "")
    if not token or not repository:
        return  # which is a finding of the Secret
    if repository != project.settings.repository:
        text = f"it is for {repository}, and the settings name {project.settings.repository}: it is sent to neither"
        yield Finding(name, State.FAIL, text, "jukebox secrets --git-token-file FILE, which notes what it is for")
        return
    if "<" in project.settings.repository:
        remedy = "Put yours into manifests/settings/settings.yaml."
        yield Finding(name, State.WARN, f"cannot be tried: the repository is {project.settings.repository}", remedy)
        return
    host = Host(project.settings.git_host)
    url, headers = find_api(host, project.settings.repository, token)
    if host is Host.GITLAB:  # which tells of the token itself, and of no one else's
        url = f"{url.partition('/projects/')[0]}/personal_access_tokens/self"
    try:
        answer = requests.get(url, headers=headers, timeout=TIMEOUT, allow_redirects=False)
    except OSError as error:
        yield Finding(name, State.WARN, f"{url} does not answer from here: {said(error)}", "Try it from elsewhere.")
        return
    remedy = "Make a new token there, and give it with `jukebox secrets --git-token-file FILE`."
    expires = _expiry(answer)
    if not answer.ok:
        yield Finding(name, State.FAIL, f"{url} answers {answer.status_code}: it has expired, or may not read", remedy)
    elif expires and expires < datetime.now(UTC) + SOON:
        yield Finding(name, State.WARN, f"expires at {expires:%Y-%m-%d %H:%M} UTC", remedy)
    else:
        yield Finding(name, State.OK, f"taken, until {expires:%Y-%m-%d}" if expires else "taken")


def _expiry(answer: requests.Response) -> datetime | None:
    """When the host says that the token expires: GitHub in a header, GitLab in the answer."""
    text = answer.headers.get("GitHub-Authentication-Token-Expiration", "")
    if not text and "json" in answer.headers.get("Content-Type", ""):
        found = answer.json()
        text = (found.get("expires_at") or "") if isinstance(found, dict) else ""
    try:
        # 2026-12-24, or 2026-12-24 09:40:00 with UTC or +0100 behind it.
        found = datetime.fromisoformat(text.replace(" ", "T", 1).replace(" ", "").replace("UTC", "+00:00"))
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _pipeline_server(project: Project) -> Findings:
    """It is ready. Kubeflow's is not in the project's namespace: only the way to it shows that."""
    if project.settings.platform == "kubeflow":
        return
    server = project.cluster.read(PIPELINE_SERVERS, "dspa")
    if not server:
        remedy = "Apply the overlay; on plain Kubeflow set platform to kubeflow in the settings."
        yield Finding("Pipeline server", State.FAIL, "DataSciencePipelinesApplication dspa is not there", remedy)
    else:
        yield _ready("Pipeline server", server, "See `oc describe dspa dspa`, and the pods whose names hold dspa.")


def _way_to_pipeline_server(project: Project) -> Findings:
    """It lets you in; and what it runs for you is in the project's namespace."""
    found = find_server(project.settings)
    try:
        found.probe()
    except ServerUnavailable as error:
        what, _, remedy = str(error).partition("\n")
        # Who looks may be elsewhere, or somebody else, than who starts runs; what the server is, it is for all.
        state = State.FAIL if isinstance(error, SingleUser) else State.WARN
        yield Finding("Way to the pipeline server", state, f"{found.host}: {what}", remedy)
    else:
        yield Finding("Way to the pipeline server", State.OK, found.host)


def _ready(name: str, resource: Resource, remedy: str) -> Finding:
    conditions = resource.get("status", {}).get("conditions", [])
    ready = next((each for each in conditions if each["type"] == "Ready"), {"status": "not said"})
    words = (ready["status"], ready.get("reason", ""), ready.get("message", ""))
    return judge(name, ready["status"] == "True", f"Ready is {' '.join(filter(None, words))}", remedy)


def _listener(project: Project) -> Findings:
    """It runs, so does its proxy, and the world reaches it."""
    listener = project.ci.read(LISTENERS, "jukebox")
    deployment = project.ci.read(DEPLOYMENTS, "el-jukebox")
    if not listener or not deployment:
        yield Finding("Listener", State.FAIL, "EventListener jukebox has no Deployment", "Apply the overlay.")
        return
    available = deployment.get("status", {}).get("availableReplicas", 0)
    remedy = "See `kubectl describe deployment el-jukebox`: a Secret, an account or the image may be missing."
    yield judge("Listener", available > 0, f"{available} pods available", remedy)
    proxy = project.ci.read(DEPLOYMENTS, "jukebox-listener-proxy")
    available = (proxy or {}).get("status", {}).get("availableReplicas", 0)
    found = f"{available} pods available" if proxy else "Deployment jukebox-listener-proxy is not there"
    remedy = (
        "See `kubectl describe deployment jukebox-listener-proxy`: its account may be missing, or nginx in the CI "
        "image, which is to be built anew from this Containerfile."
    )
    yield judge("Proxy of the listener", available > 0, found, remedy if proxy else "Apply the overlay.")
    hosts = list(_hosts(project.ci))
    if not hosts:
        yield Finding("Way to the listener", State.WARN, "no Route and no HTTPRoute", "Apply the overlay.")
    for host in hosts:
        url = f"https://{host}/live"
        try:
            answer = requests.get(url, timeout=TIMEOUT, allow_redirects=False)
            found, reached = f"{url} answers {answer.status_code}", answer.status_code == 200
        except OSError as error:
            found, reached = f"{url} does not answer: {said(error)}", False
        yield judge("Way to the listener", reached, found, "Check DNS, the certificate and the route's status.")


def _hosts(cluster: Cluster) -> Iterator[str]:
    # Of a kind that it does not know, the cluster says that there is none.
    if route := cluster.read(ROUTES, "jukebox-listener"):
        yield route["spec"]["host"]
    if route := cluster.read(HTTP_ROUTES, "jukebox-listener"):
        yield from route["spec"].get("hostnames", [])


def _overlay(project: Project) -> Findings:
    """Nothing is left to be filled in: in the overlay, and in what the tasks alone take from the settings."""
    left = placeholders(to_json(project.overlay) + project.settings.image)
    if project.overlay:
        found = f"{', '.join(left)} is not filled in" if left else "all are filled in"
        yield judge("Settings", not left, found, "Put yours into manifests/settings/settings.yaml.")


def _model(project: Project) -> Findings:
    """What is served is what Git says."""
    name = project.settings.model_name
    service = project.cluster.read(INFERENCE_SERVICES, name)
    if not service:
        yield Finding("Model server", State.FAIL, f"InferenceService {name} is not there", "Apply the overlay.")
        return
    remedy = f"See `kubectl describe inferenceservice {name}`; before the first training there is no model to load."
    yield _ready("Model server", service, remedy)
    served, why = _served(project.cluster, name)
    pins = [each for each in project.overlay if each["kind"] == "InferenceService"]
    pinned = _pinned(pins[0]) if pins else _pinned(service)
    source = "Git" if pins else "the cluster"
    text = f"served is {', '.join(served) or f'unknown: {why}'}; {source} pins {pinned or 'none'}"
    if pins and pinned != _pinned(service):
        text += f", the cluster {_pinned(service) or 'none'}"
        yield Finding("Model", State.FAIL, text, "See whether Argo CD has synced, and what hinders it.")
    elif not served:
        yield Finding("Model", State.WARN, text, "Ask the model server itself: GET /v2/models/NAME.")
    else:
        remedy = "Was the version published, and is it in the store? See the model server's log."
        yield judge("Model", not pinned or served == [pinned], text, remedy)


def _pinned(service: Resource) -> str:
    """The one version that an InferenceService asks for, or nothing."""
    found = PINNED.search(" ".join(service["spec"]["predictor"].get("model", {}).get("args", [])))
    return found[1] if found else ""


def _served(cluster: Cluster, name: str) -> tuple[list[str], str]:
    """The versions that the model server's pods have loaded; or none, and why it is not known.

    A pod that is not ready answers nobody: one that waits for a version that is not there leaves the others serving.
    """
    pods = cluster.list(PODS, f"serving.kserve.io/inferenceservice={name}")
    ready = [pod["metadata"]["name"] for pod in pods if _is_ready(pod)]
    versions: set[str] = set()
    try:
        for pod in ready:
            path = f"/api/v1/namespaces/{cluster.namespace}/pods/{pod}:8888/proxy/v2/models/{name}"
            versions |= {str(version) for version in cluster.get(path).get("versions", [])}
    except ClusterRefuses as error:
        return [], error.reason
    why = "the server names no version" if ready else "no pod is ready"
    return sorted(versions, key=lambda version: (len(version), version)), why


def _is_ready(pod: Resource) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)


# What is looked at before anything is applied, besides what the preflight itself does.
BEFORE: Checks = {"What is installed": _installed, "Settings": _overlay}
CHECKS: Checks = {
    "Kubernetes": before.kubernetes,
    "What is installed": _installed,
    "Admission": _webhooks,
    "Model store": _storage,
    "Settings": _overlay,
    "Permissions": _permissions,
    "Admission policies": _policies,
    "Settings that the tasks rely on": _relied_on,
    "CI image": _ci_image,
    "Secrets": _secrets,
    "Token of the Git host": _token,
    "Pipeline server": _pipeline_server,
    "Way to the pipeline server": _way_to_pipeline_server,
    "Listener": _listener,
    "Model": _model,
}
