"""``jukebox doctor``: check whether a cluster has what the project needs, with a remedy for each problem."""

import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import requests
import typer
import yaml

from pipeline.core.documents import to_json
from pipeline.core.errors import ClusterRefuses, HostRefuses, ServerUnavailable, SingleUser
from pipeline.settings import PIPELINE, read_settings, settings_file
from scripts import preflight as before
from scripts.apply import VERSIONS
from scripts.bootstrap import POLICIES, SETTINGS, checkout, environments, placeholders, read_all_settings
from scripts.clients.git_hosts import connect
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
from scripts.findings import Checks, Finding, Findings, Project, State, allowed, examine, judge, show
from scripts.outcome import REBUILD, STALE, results
from scripts.output import Output
from scripts.pins import PIN, read_pin, render
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

ENFORCED = ("baseline", "restricted")  # any other level lets a pod access its node

# Provisioners whose volumes support ReadWriteMany; the class has no field for it.
SHARED = re.compile(r"nfs|cephfs|efs\.|azure.*file|filestore|manila|longhorn|gluster|weka|netapp|portworx")
PINNED = re.compile(r'"versions":\s*\[\s*(\d+)\s*\]')


def command(
    overlay: Annotated[
        Path | None, typer.Option(help="Compare with this overlay, for example manifests/overlays/openshift-ai/prod.")
    ] = None,
    preflight: Annotated[
        bool,
        typer.Option("--preflight", help="Check before the first apply whether the cluster will accept the overlay."),
    ] = False,
    output: Annotated[Output, typer.Option(help="Output format.")] = Output.TABLE,
) -> None:
    """Check the installation on the cluster and print a remedy for each problem. Exits with 1 if a check fails.

    It never prints secrets. Without an overlay, it does not compare the cluster with Git.

    The preflight changes nothing and needs only the role `admin` in the namespace. It compares the versions with the
    supported ones, and tests each pod of the overlay by a dry run. Without --overlay, it uses the overlay of the
    settings' platform, for the first environment that has a cluster in the settings.

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
            pin = read_pin(folder)
            if pin.version is None:
                # As after the first promotion: it has the model server, which the cluster may not accept.
                (folder / PIN).write_text(render(replace(pin, version=1, sha256="0" * 64)), "utf-8")
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


# The kind that shows that each is installed. Training and serving work without Argo CD and the Prometheus Operator.
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
        "Install Argo CD, unless another cluster's Argo CD manages this one.",
    ),
    "Prometheus Operator": (
        Kind("monitoring.coreos.com", "v1", "podmonitors"),
        State.WARN,
        "Install it if you want metrics, and alerts that start trainings.",
    ),
}


def _installed(project: Project) -> Findings:
    """The cluster serves the kinds of resources that the project uses, in their versions."""
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
            yield Finding(name, absent, f"the cluster does not serve {kind.plural} of {served}", remedy)


def _storage(project: Project) -> Findings:
    """Runs and model servers on several nodes can mount the claim at once."""
    name, remedy = project.settings.model_storage_pvc, "Set storage-class to a class that supports ReadWriteMany"
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
                "Model store", many, found, f"All its pods run on one node. {remedy} to change that.", State.WARN
            )
        return
    classes = {each["metadata"]["name"]: each["provisioner"] for each in project.cluster.list(STORAGE_CLASSES)}
    shared = sorted(each for each, provisioner in classes.items() if SHARED.search(provisioner))
    found = f"claim {name} does not exist; classes: {', '.join(sorted(classes)) or 'none'}"
    advice = f", probably {', '.join(shared)}" if shared else ", or use the component storage-rwo"
    yield Finding(
        "Model store", State.WARN if classes else State.FAIL, found, f"{remedy}{advice}, and apply the overlay."
    )


# Resources that the webhooks must refuse. A dry run creates nothing if one does not.
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
    """The webhooks refuse invalid resources."""
    for owner, (kind, word, spec) in PROVOCATIONS.items():
        resource = {
            "apiVersion": f"{kind.group}/{kind.version}",
            "kind": word,
            "metadata": {"name": "jukebox-doctor"},
            "spec": spec,
        }
        name = f"Admission of {owner}"
        try:
            # In the namespace where the project has resources of the kind.
            cluster = project.ci if "Tekton" in owner else project.cluster
            cluster.create(kind, resource, dry_run=True)
        except ClusterRefuses as error:
            if error.webhook:
                yield Finding(name, State.OK, f"{error.webhook} is up")
            elif error.status == 403:
                yield Finding(
                    name, State.WARN, f"cannot be tested: {error.reason}", "Ask somebody who may create it to run this."
                )
            else:
                yield Finding(name, State.FAIL, error.reason, f"Check the webhook's pods, and that {owner} is running.")
        else:
            remedy = f"Its webhook is missing. Check that {owner} is ready (the pipeline server: oc get dspa)."
            yield Finding(name, State.FAIL, f"an invalid {word} was accepted", remedy)


# Verb, group, resource, subresource and purpose of each right, in Tekton's namespace.
OURS = {
    ("create", "", "secrets", ""): "jukebox secrets",
    ("patch", "", "secrets", ""): "jukebox secrets --rotate",
    ("create", "tekton.dev", "pipelineruns", ""): "a training by hand",
    ("get", "", "pods", "log"): "the log of a step",
}
THEIRS = {
    "jukebox-listener": ("create", "tekton.dev", "pipelineruns", ""),
    "jukebox-release": ("create", "pipelines.kubeflow.org", "pipelineversions", ""),
    "jukebox-retain": ("delete", "tekton.dev", "pipelineruns", ""),
    "jukebox-runs": ("patch", "tekton.dev", "pipelineruns", ""),
}


def _permissions(project: Project) -> Findings:
    """You and the project's accounts have the rights that they need."""
    denied = [
        f"{' '.join(filter(None, right))} ({purpose})"
        for right, purpose in OURS.items()
        if not allowed(project.ci, right)
    ]
    found = f"you may not {', '.join(denied)}" if denied else "you have the rights that the commands need"
    yield judge("Your permissions", not denied, found, "Ask for the role admin in both namespaces.", State.WARN)
    for account, right in THEIRS.items():
        cluster = project.cluster if account == "jukebox-release" else project.ci
        may = allowed(cluster, right, account, of=project.ci.namespace)
        found = f"{account} {'may' if may else 'may not'} {right[0]} {right[2]} in {cluster.namespace}"
        yield judge("Account", may, found, "Run `jukebox bootstrap --part tenant`: its Role or RoleBinding is missing.")
    # It runs pushed code, including its tests.
    for cluster in (project.ci, project.cluster):
        may = allowed(cluster, ("get", "", "secrets"), "jukebox-steps", of=project.ci.namespace)
        found = f"jukebox-steps {'may' if may else 'may not'} read Secrets of {cluster.namespace}"
        yield judge("Account", not may, found, "Revoke that right: this account runs pushed code.")


def _relied_on(project: Project) -> Findings:
    """The tasks use the same settings as the file."""
    held = (project.ci.read(CONFIG_MAPS, SETTINGS) or {}).get("data", {}).get("settings.yaml")
    name, remedy = f"ConfigMap {SETTINGS}", "Run `jukebox bootstrap --part tenant`: the tasks use these settings."
    if held is None:
        yield Finding(name, State.FAIL, f"does not exist in {project.ci.namespace}", remedy)
        return
    data = yaml.safe_load(held)["data"]
    other = sorted(key for key in {*data, *project.data} if data.get(key) != project.data.get(key))
    text = f"differs from {settings_file().name} in {', '.join(other)}" if other else "equals the settings"
    yield judge(name, not other, text, remedy, State.WARN)


def _ci_image(project: Project) -> Findings:
    """It has the commands and the lock of the last commit, by the result of the newest checkout task.

    The task runs in the image. This machine may have another commit, and cannot read the image.
    """
    told = [each for each in project.ci.list(TASK_RUNS, "tekton.dev/pipelineTask=checkout") if STALE in results(each)]
    if not told:
        yield Finding("CI image", State.OK, "no run has reported yet whether it is stale")
        return
    newest = max(told, key=lambda each: str(each["status"].get("completionTime", "")))
    run, stale = newest["metadata"]["labels"]["tekton.dev/pipelineRun"], results(newest)[STALE]
    text = (
        f"the commit of {run} has different versions of {stale}"
        if stale
        else f"has the commands and the lock of {run}'s commit"
    )
    yield judge("CI image", not stale, text, f"{REBUILD} The next run reports whether it is still stale.", State.WARN)


def _policies(project: Project) -> Findings:
    """Pod Security and the admission policies are enforced. The project works without them, but so do attacks."""
    remedy = f"Label the namespace {ENFORCE}=baseline. bootstrap does this if nobody else manages the label."
    for cluster in (project.cluster, project.ci):
        namespace = cluster.read(NAMESPACES, cluster.namespace) or {"metadata": {}}
        level = namespace["metadata"].get("labels", {}).get(ENFORCE, "")
        found = f"{cluster.namespace} enforces {level or 'no level'}"
        yield judge("Pod Security", level in ENFORCED, found, remedy, State.WARN)
    for policy in POLICIES:
        name = f"{policy}.{project.cluster.namespace}"
        binding = project.cluster.read(ADMISSION_BINDINGS, name)
        if not project.cluster.read(ADMISSION_POLICIES, name):
            found = "does not exist"
        elif not binding:
            found = "has no binding"
        else:
            actions = binding["spec"]["validationActions"]
            found = "" if "Deny" in actions else f"does not deny, its actions are {', '.join(actions)}"
        text = f"{name} {found or 'denies'}"
        yield judge("Admission policy", not found, text, "Run `jukebox bootstrap --part platform` again.", State.WARN)


def _secrets(project: Project) -> Findings:
    """They exist with their keys, and pushed code cannot read those of the CI."""
    places = clusters(project.settings)
    for each in wanted(project.settings):
        for cluster in places[each.place]:
            yield _secret(each, cluster)
        if each.place is Place.CI and project.cluster.read(SECRETS, each.name):
            found = f"is also in {project.cluster.namespace}, where pushed code may read it"
            yield Finding(f"Secret {each.name}", State.FAIL, found, "Run `jukebox secrets`, which moves it.")
    token = values(project.ci.read(SECRETS, SECRET)).get("alert", "")
    if not token:
        return  # reported as a finding of that Secret
    shown = values(project.cluster.read(SECRETS, ALERT)).get("token", "")
    found = (
        f"contains {'the' if shown == token else 'another'} token"
        if shown
        else "does not exist, so alerts do not start trainings"
    )
    yield judge(f"Secret {ALERT}", bool(shown) and shown == token, found, "Run `jukebox secrets`.")


def _secret(each: Wanted, cluster: Cluster) -> Finding:
    name = f"Secret {each.name}"
    secret = cluster.read(SECRETS, each.name)
    remedy = f"Run `jukebox secrets{f' {each.option} FILE' if each.option else ''}`."
    held = values(secret)
    missing = [key for key in each.keys if not held.get(key)]
    short = [] if each.option else [key for key in KEYS if 0 < len(held.get(key, "")) < SHORTEST]
    if secret is None and not each.needed:
        return Finding(name, State.OK, f"does not exist and is optional; it {each.purpose}")
    if secret is None:
        return Finding(name, State.FAIL, f"does not exist in {cluster.namespace}; {each.purpose}", remedy)
    if missing or short:
        found = [f"{key} is missing or empty" for key in missing]
        found += [f"{key} has fewer than {SHORTEST} characters" for key in short]
        return Finding(name, State.FAIL, ", ".join(found), remedy)
    return Finding(name, State.OK, ", ".join(each.keys))


def _token(project: Project) -> Findings:
    """The Git host accepts the token, which does not expire soon."""
    name = "Token of the Git host"
    held = values(project.ci.read(SECRETS, "jukebox-git-host"))
    token = held.get("token", "")
    repository = held.get("repository", "")
    if not token or not repository:
        return  # reported as a finding of the Secret
    if repository != project.settings.repository:
        text = f"it is for {repository}, but the settings name {project.settings.repository}, so it is not sent"
        yield Finding(
            name, State.FAIL, text, "Run `jukebox secrets --git-token-file FILE` with a token for the latter."
        )
        return
    if "<" in project.settings.repository:
        remedy = "Set repository in manifests/settings/settings.yaml."
        yield Finding(name, State.WARN, f"cannot be tested: the repository is {project.settings.repository}", remedy)
        return
    host = connect(project.settings, token)
    remedy = "Create a new token there, and store it with `jukebox secrets --git-token-file FILE`."
    try:
        expires, lacking = host.expires(), host.rights()
    except HostRefuses as error:
        # You may have another network than the tasks.
        away = Finding(name, State.WARN, str(error), "Run this on another machine.")
        yield Finding(name, State.FAIL, str(error), remedy) if error.status else away
        return
    if lacking:
        yield Finding(
            name,
            State.FAIL,
            f"lacks {', '.join(lacking)}",
            f"{remedy} docs/install/environment.md says which rights it needs.",
        )
    elif expires and expires < datetime.now(UTC) + SOON:
        yield Finding(name, State.WARN, f"expires at {expires:%Y-%m-%d %H:%M} UTC", remedy)
    else:
        yield Finding(name, State.OK, f"valid until {expires:%Y-%m-%d}" if expires else "valid")


def _pipeline_server(project: Project) -> Findings:
    """It is ready. Kubeflow's is not in the project's namespace: for that, only the connection is checked."""
    if project.settings.platform == "kubeflow":
        return
    server = project.cluster.read(PIPELINE_SERVERS, "dspa")
    if not server:
        remedy = "Apply the overlay; on plain Kubeflow set platform to kubeflow in the settings."
        yield Finding("Pipeline server", State.FAIL, "DataSciencePipelinesApplication dspa does not exist", remedy)
    else:
        yield _ready("Pipeline server", server, "See `oc describe dspa dspa` and the pods with dspa in their names.")


def _way_to_pipeline_server(project: Project) -> Findings:
    """It accepts your credentials, and runs pipelines in the project's namespace."""
    found = find_server(project.settings)
    try:
        found.probe()
    except ServerUnavailable as error:
        what, _, remedy = str(error).partition("\n")
        # You may have another network or account than the tasks. A single-user server is wrong for everybody.
        state = State.FAIL if isinstance(error, SingleUser) else State.WARN
        yield Finding("Connection to the pipeline server", state, f"{found.host}: {what}", remedy)
    else:
        yield Finding("Connection to the pipeline server", State.OK, found.host)


def _ready(name: str, resource: Resource, remedy: str) -> Finding:
    conditions = resource.get("status", {}).get("conditions", [])
    ready = next((each for each in conditions if each["type"] == "Ready"), {"status": "not set"})
    words = (ready["status"], ready.get("reason", ""), ready.get("message", ""))
    return judge(name, ready["status"] == "True", f"Ready is {' '.join(filter(None, words))}", remedy)


def _listener(project: Project) -> Findings:
    """It and its proxy run, and it is reachable from outside."""
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
    found = f"{available} pods available" if proxy else "Deployment jukebox-listener-proxy does not exist"
    remedy = (
        "See `kubectl describe deployment jukebox-listener-proxy`: its account may be missing, or the CI image may "
        "lack nginx. In that case, build it again from this Containerfile."
    )
    yield judge("Proxy of the listener", available > 0, found, remedy if proxy else "Apply the overlay.")
    hosts = list(_hosts(project.ci))
    if not hosts:
        yield Finding("Connection to the listener", State.WARN, "no Route and no HTTPRoute", "Apply the overlay.")
    for host in hosts:
        url = f"https://{host}/live"
        try:
            answer = requests.get(url, timeout=TIMEOUT, allow_redirects=False)
            found, reached = f"{url} answers {answer.status_code}", answer.status_code == 200
        except OSError as error:
            found, reached = f"{url} does not answer: {said(error)}", False
        yield judge("Connection to the listener", reached, found, "Check DNS, the certificate and the route's status.")


def _hosts(cluster: Cluster) -> Iterator[str]:
    # For a kind that the cluster does not serve, read returns nothing.
    if route := cluster.read(ROUTES, "jukebox-listener"):
        yield route["spec"]["host"]
    if route := cluster.read(HTTP_ROUTES, "jukebox-listener"):
        yield from route["spec"].get("hostnames", [])


def _overlay(project: Project) -> Findings:
    """No placeholder is left in the overlay, or in the settings that only the tasks read."""
    left = placeholders(to_json(project.overlay) + project.settings.image)
    if project.overlay:
        found = f"without a value: {', '.join(left)}" if left else "all have values"
        yield judge("Settings", not left, found, "Set them in manifests/settings/settings.yaml.")


def _model(project: Project) -> Findings:
    """The served version is the one that Git pins."""
    name = project.settings.model_name
    service = project.cluster.read(INFERENCE_SERVICES, name)
    pins = [each for each in project.overlay if each["kind"] == "InferenceService"]
    if project.overlay and not pins:
        text = "Git pins no version" + (f", but the InferenceService {name} exists" if service else ": none is served")
        yield judge("Model server", not service, text, "Check in Argo CD whether the last sync succeeded.")
        return
    if not service:
        yield Finding("Model server", State.FAIL, f"InferenceService {name} does not exist", "Apply the overlay.")
        return
    remedy = f"See `kubectl describe inferenceservice {name}`. Before the first training there is no model to load."
    yield _ready("Model server", service, remedy)
    served, why = _served(project.cluster, name)
    pinned = _pinned(pins[0]) if pins else _pinned(service)
    source = "Git" if pins else "the cluster"
    text = f"serves {', '.join(served) or f'an unknown version: {why}'}; {source} pins {pinned or 'none'}"
    if pins and pinned != _pinned(service):
        text += f", the cluster {_pinned(service) or 'none'}"
        yield Finding("Model", State.FAIL, text, "Check in Argo CD whether the last sync succeeded.")
    elif not served:
        yield Finding("Model", State.WARN, text, "Query the model server: GET /v2/models/NAME.")
    else:
        remedy = "Check that the version was published and is in the store, and see the model server's log."
        yield judge("Model", not pinned or served == [pinned], text, remedy)


def _pinned(service: Resource) -> str:
    """The version that an InferenceService pins; empty if there is none."""
    found = PINNED.search(" ".join(service["spec"]["predictor"].get("model", {}).get("args", [])))
    return found[1] if found else ""


def _served(cluster: Cluster, name: str) -> tuple[list[str], str]:
    """The versions that the model server's pods have loaded, or none and the reason.

    Only ready pods are asked: one that waits for a missing version does not stop the others.
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
    why = "the server reports no version" if ready else "no pod is ready"
    return sorted(versions, key=lambda version: (len(version), version)), why


def _is_ready(pod: Resource) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)


# The checks that run before the first apply, in addition to the preflight's own.
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
    "Connection to the pipeline server": _way_to_pipeline_server,
    "Listener": _listener,
    "Model": _model,
}
