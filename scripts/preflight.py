"""The checks of `jukebox doctor --preflight`: whether a cluster will accept an overlay, before any of it is applied.

They change nothing, and a tenant's rights suffice: `admin` of its namespace. If a check needs more, its finding says
who can run it. Dry runs test the pods, so the cluster's own admission decides.
"""

import re
import ssl
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial, reduce
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
import yaml
from kubernetes.utils.quantity import parse_quantity

from pipeline.core.errors import ClusterRefuses
from pipeline.core.trusted_ca import CONFIG_MAP, FILE
from pipeline.prod_train_save_pipeline import build_pipeline, spec_of
from scripts.apply import VERSIONS
from scripts.clients.kubernetes_api import CLAIMS, SECRETS, Cluster, Kind, Resource
from scripts.clients.pipeline_server import AUDIENCE, TIMEOUT, find_server, said
from scripts.findings import Checks, Finding, Findings, Project, State, allowed, judge
from scripts.pods import STEPS, TASKS, Planned, containers, of_kind, plan, workspaces
from scripts.secrets import values

# The oldest and the newest supported release. docs/support-matrix.md has the same table, with the reasons.
SUPPORTED = {
    "Kubernetes": ("1.30", "1.35"),
    "OpenShift": ("4.19", "4.22"),
    "OpenShift AI": ("3.4", "3.5"),
    "Tekton Pipelines": ("1.3", "1.15"),
    "Kubeflow Pipelines": ("2.16", "2.17"),
}
SCC = "restricted-v2"
ENFORCE = "pod-security.kubernetes.io/enforce"
MODE = "serving.kserve.io/deploymentMode"
# The namespaces in which these may be installed.
TEKTON = ("openshift-pipelines", "tekton-pipelines")
KSERVE = ("redhat-ods-applications", "opendatahub", "kubeflow", "kserve")
# The modes in which KServe creates a Deployment: the name since 0.16, and the earlier one.
PLAIN_MODES = ("Standard", "RawDeployment")

ACCOUNTS = Kind("", "v1", "serviceaccounts")
CONFIG_MAPS = Kind("", "v1", "configmaps")
DEFINITIONS = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
DRIVERS = Kind("storage.k8s.io", "v1", "csidrivers", namespaced=False)
INFERENCE_SERVICES = Kind("serving.kserve.io", "v1beta1", "inferenceservices")
NAMESPACES = Kind("", "v1", "namespaces", namespaced=False)
NODES = Kind("", "v1", "nodes", namespaced=False)
OPENSHIFT_AI = Kind("datasciencecluster.opendatahub.io", "v1", "datascienceclusters", namespaced=False)
PIPELINE_SERVERS = Kind("datasciencepipelinesapplications.opendatahub.io", "v1", "datasciencepipelinesapplications")
PODS = Kind("", "v1", "pods")
QUOTAS = Kind("", "v1", "resourcequotas")
REVIEWS = Kind("authentication.k8s.io", "v1", "tokenreviews", namespaced=False)
STORAGE_CLASSES = Kind("storage.k8s.io", "v1", "storageclasses", namespaced=False)


Sizes = dict[str, Decimal]  # by the names of a quota: pods, requests.cpu


RESTRICT_TEKTON = (
    "set set-security-context to true (ConfigMap feature-flags of Tekton's namespace; on OpenShift TektonConfig, "
    "spec.pipeline), or enforce only baseline in the namespace."
)


class Remedy(NamedTuple):
    """What to do about a pod whose refusal matches the pattern."""

    pattern: str
    text: str


# The first match applies.
REMEDIES = (
    Remedy(
        r"exceeded quota",
        "Ask for a larger quota, or make the pods smaller: step-cpu, step-memory, train-cpu, train-memory.",
    ),
    Remedy(
        r"failed quota: .*must specify",
        "The quota requires sizes for every container. Create a LimitRange with default and defaultRequest.",
    ),
    Remedy(
        r"(maximum|minimum) .* usage per|limit to request ratio",
        "Change the sizes in the settings to fit the LimitRange.",
    ),
    Remedy(
        r"fsGroup|not an allowed group",
        "Remove fsGroup from the pods' securityContext in the overlay: OpenShift assigns one of the namespace's range.",
    ),
    Remedy(
        r"runAsUser: Invalid|must be in the ranges",
        "Remove runAsUser from the overlay: OpenShift assigns one of the namespace's range.",
    ),
    Remedy(
        rf"(not usable by user or serviceaccount|SCC|security context constraint).*{SCC}|{SCC}.*not (found|usable)",
        f"Bind ClusterRole system:openshift:scc:{SCC} to the group system:authenticated, as OpenShift does.",
    ),
    Remedy(
        r"violates? PodSecurity.*(prepare|place-scripts|working-dir-initializer|affinity-assistant)",
        f"These are Tekton's own containers: {RESTRICT_TEKTON}",
    ),
    Remedy(
        r"violates? PodSecurity.*kube-rbac-proxy",
        "This is OpenShift AI's proxy, which sets no security context. Enforce only baseline in the namespace.",
    ),
    Remedy(
        r'violates? PodSecurity.*containers? .*"(init|wait|main|kfp-launcher)"',
        "Kubeflow Pipelines creates this pod. Enforce only baseline in the namespace, or update it to 2.16 or newer.",
    ),
    Remedy(r"seccomp", "Set seccompProfile RuntimeDefault in the overlay, or none if the SCC does not allow profiles."),
    Remedy(r"capabilit", "In the overlay, drop ALL capabilities and add none."),
    Remedy(r"violates? PodSecurity", "Correct these fields in the overlay, or enforce only baseline in the namespace."),
    Remedy(
        r"ValidatingAdmissionPolicy|admission webhook|denied the request",
        "This is a policy of your cluster. Add what it requires to the pods in the overlay, or exempt them.",
    ),
)


def checks(project: Project) -> Checks:
    """Return the checks that are possible: only those of the cluster if the namespace does not exist."""
    openshift_ai = project.data["platform"] == "openshift-ai"
    spec = spec_of(build_pipeline(project.settings))
    restricted = bool(_set_security_context(project.cluster))
    pods = plan(project.overlay, spec, image=project.data["ci-image"], restricted=restricted)
    found: Checks = {
        "Kubernetes": kubernetes,
        **({"OpenShift AI": _openshift_ai, "Monitoring": _monitoring} if openshift_ai else {}),
        "Tekton Pipelines": _tekton,
        "Argo CD": _argo_cd,
        "Kubeflow Pipelines": _pipeline_store,
        "Nodes": _nodes,
        "Storage class": _storage,
        "Address of the pipeline server": _endpoint,
        "Namespace": _namespace,
    }
    if _is_missing(project.cluster) or _is_missing(project.ci):
        return found
    return {
        **found,
        **({"SCC": partial(_scc, pods)} if _is_openshift(project.cluster) else {}),
        **({} if openshift_ai else {"Profile": _profile, "Token for the pipeline server": _token}),
        "Pull secret": _pull_secret,
        "Trusted CA": _trusted_ca,
        "KServe": _kserve,
        "Pods": partial(_pods, pods),
        "Quota": partial(_quota, pods),
    }


def kubernetes(project: Project) -> Findings:
    """The version supports all resources in the manifests."""
    version = str(project.cluster.get("/version")["gitVersion"])
    minor = re.match(r"v1\.(\d+)", version)
    if minor and _is_openshift(project.cluster):
        # Each release of OpenShift 4 has one of Kubernetes: 4.19 has 1.32.
        yield _judge_version("OpenShift", f"4.{int(minor[1]) - 13}", f"of Kubernetes {version}")
    else:
        yield _judge_version("Kubernetes", version)


def release(cluster: Cluster, definition: str) -> str:
    """Return the release that a definition's labels name; empty if it cannot be read or names none."""
    try:
        labels = (cluster.read(DEFINITIONS, definition) or {})["metadata"].get("labels", {})
    except (ClusterRefuses, KeyError):
        return ""
    return next((str(value) for key, value in labels.items() if key.endswith(("/release", "/version"))), "")


def _openshift_ai(project: Project) -> Findings:
    if OPENSHIFT_AI.plural not in _served(project.cluster, f"{OPENSHIFT_AI.group}/{OPENSHIFT_AI.version}"):
        remedy = "Install the operator OpenShift AI, or set platform to kubeflow in the settings."
        yield Finding("OpenShift AI", State.WARN, "the cluster does not serve DataScienceClusters", remedy)
        return
    for each in project.cluster.list(OPENSHIFT_AI):
        version = each.get("status", {}).get("release", {}).get("version", "")
        if version.startswith("2.25."):
            modes = [_mode(service) for service in of_kind(project.overlay, "InferenceService")]
            remedy = "Add the component openshift-ai-2 to the overlay."
            yield judge("OpenShift AI", set(modes) <= {"RawDeployment"}, version, remedy)
        else:
            yield _judge_version("OpenShift AI", version)


# What OpenShift's monitoring needs: namespace and name of a ConfigMap, and the paths of switches in its config.yaml.
MONITORING = {
    ("openshift-monitoring", "cluster-monitoring-config"): (("enableUserWorkload",),),
    ("openshift-user-workload-monitoring", "user-workload-monitoring-config"): (
        ("alertmanager", "enabled"),
        ("alertmanager", "enableAlertmanagerConfig"),
    ),
}


def _monitoring(project: Project) -> Findings:
    """OpenShift monitors user workloads, and its Alertmanager accepts the overlay's configuration."""
    for (namespace, name), switches in MONITORING.items():
        found = _config_map(project.cluster, (namespace,), name)
        where = f"ConfigMap {name} in {namespace}"
        if found is None:
            names = ", ".join(".".join(each) for each in switches)
            remedy = f"Ask a platform administrator to create it and set {names} to true."
            yield Finding("Monitoring", State.WARN, f"{where} does not exist or cannot be read", remedy)
            continue
        held = yaml.safe_load(found.get("config.yaml", "")) or {}
        off = [".".join(each) for each in switches if not reduce(lambda part, key: part.get(key) or {}, each, held)]
        text = f"{where} does not enable {', '.join(off)}" if off else f"{where} enables what is needed"
        remedy = (
            "Ask a platform administrator to set it to true. Otherwise there are no metrics, or alerts do not train."
        )
        yield judge("Monitoring", not off, text, remedy, State.WARN)


def _tekton(project: Project) -> Findings:
    """Its version, which everybody may read, and whether its own containers pass Pod Security's strictest level."""
    name = "Tekton Pipelines"
    info = _config_map(project.cluster, TEKTON, "pipelines-info") or {}
    yield _judge_version(name, info.get("version") or release(project.cluster, "tasks.tekton.dev"))
    flag = _set_security_context(project.cluster)
    if flag is None:
        remedy = "Ask somebody who may read ConfigMap feature-flags of Tekton's namespace. The preflight assumes false."
        yield Finding(name, State.WARN, "set-security-context cannot be read", remedy)
    else:
        yield Finding(name, State.OK, f"set-security-context is {str(flag).lower()}")


def _argo_cd(project: Project) -> Findings:
    """Its version, derived from the API's schema of the ApplicationSet."""
    name = "Argo CD"
    path = ("spec", "template", "spec", "syncPolicy", "retry", "refresh")
    declared = _declares(project.cluster, "argoproj.io/v1alpha1", "ApplicationSet", path)
    if declared is not None:
        found = f"ApplicationSets {'have' if declared else 'do not have'} retry.refresh, which Argo CD 3.2 added"
        remedy = "Update it (OpenShift GitOps 1.20). An older one retries a failed sync with the same commit only."
        yield judge(name, declared, found, remedy, State.WARN)


def _pipeline_store(project: Project) -> Findings:
    """PipelineVersions are stored as resources of the cluster, with the platform's part of the steps."""
    name = "Kubeflow Pipelines"
    declared = _declares(
        project.cluster, f"{VERSIONS.group}/{VERSIONS.version}", "PipelineVersion", ("spec", "platformSpec")
    )
    if declared is not None:
        found = f"PipelineVersions {'have' if declared else 'do not have'} platformSpec, which 2.14 added"
        remedy = "Update the pipeline server and its CRD pipelineversions: without it, claims and Secrets are lost."
        yield judge(name, declared, found, remedy)
    if server := project.cluster.read(PIPELINE_SERVERS, "dspa"):
        store = server["spec"].get("apiServer", {}).get("pipelineStore", "database")
        remedy = "Apply the overlay's DataSciencePipelinesApplication, which has pipelineStore kubernetes."
        yield judge("Pipeline store", store == "kubernetes", f"pipelineStore of dspa is {store}", remedy)


def _nodes(project: Project) -> Findings:
    """Each node selector of the settings matches a node."""
    for key in ("nodes", "train-nodes", "store-nodes"):
        if selector := project.data.get(key, ""):
            found = sorted(each["metadata"]["name"] for each in project.cluster.list(NODES, selector))
            text = f"{key}: nodes with {selector}: {', '.join(found[:5]) or 'none'}{' …' if found[5:] else ''}"
            yield judge("Nodes", bool(found), text, f"Label a node, or change {key}: pods would stay pending.")


def _storage(project: Project) -> Findings:
    """The store's class exists, steps may write to its volumes, and all pods can mount them."""
    name = "Storage class"
    claims = {each["metadata"]["name"]: each["spec"] for each in of_kind(project.overlay, "PersistentVolumeClaim")}
    claim = claims.get(project.settings.model_storage_pvc)
    if not project.settings.on_claim or not claim:
        yield Finding(name, State.OK, f"not needed: the model store is {project.settings.model_store}")
        return
    modes = claim["accessModes"]
    wanted = claim.get("storageClassName", "")
    classes = {each["metadata"]["name"]: each for each in project.cluster.list(STORAGE_CLASSES)}
    mark = "storageclass.kubernetes.io/is-default-class"
    defaults = [key for key, each in classes.items() if each["metadata"].get("annotations", {}).get(mark) == "true"]
    [given] = [wanted] if wanted else defaults[:1] or [""]
    if given not in classes:
        text = f"{wanted or 'a default class'} does not exist; classes: {', '.join(sorted(classes)) or 'none'}"
        yield Finding(name, State.FAIL, text, "Set storage-class to one of them, or ask an administrator to create it.")
        return
    provisioner = classes[given]["provisioner"]
    yield Finding(name, State.OK, f"{given} of {provisioner}")
    yield _reachable(project, provisioner, modes)
    yield _writable(project, provisioner, modes)


def _reachable(project: Project, provisioner: str, modes: list[str]) -> Finding:
    """Whether all pods that mount the claim can run on a node that has its volume."""
    name = "Access mode"
    if "ReadWriteMany" in modes or provisioner in OF_ONE_NODE:
        where = "on all nodes" if "ReadWriteMany" in modes else "on the volume's node, where they are scheduled"
        return Finding(name, State.OK, f"{' '.join(modes)}: pods can mount it {where}")
    selector = project.data.get("store-nodes", "")
    try:
        nodes = sorted(each["metadata"]["name"] for each in project.cluster.list(NODES, selector))
    except ClusterRefuses as error:
        text = f"{' '.join(modes)} works on one node only; nodes cannot be read: {error.reason}"
        return Finding(name, State.WARN, text, "Set store-nodes to a label of one node only, or use ReadWriteMany.")
    text = f"{' '.join(modes)} works on one node only; {selector or 'no store-nodes'} matches {', '.join(nodes)}"
    remedy = (
        "Set store-nodes to a label of one node only, such as kubernetes.io/hostname=NODE, or use ReadWriteMany "
        "or S3. Otherwise a step and the model server may be on different nodes, and one cannot mount the volume."
    )
    return judge(name, len(nodes) == 1, text, remedy)


# Their volumes carry a node affinity. The former honours fsGroup, the latter's volumes are writable by everybody.
OF_ONE_NODE = ("kubernetes.io/no-provisioner", "rancher.io/local-path")


def _writable(project: Project, provisioner: str, modes: list[str]) -> Finding:
    """Whether steps may write to a fresh volume, which belongs to root: it depends on whether fsGroup is honoured."""
    name = "Writing to the store"
    remedy = (
        "Use a class whose driver has fsGroupPolicy File, give the volume's folder group 0 and mode 2775 (all steps "
        "are in group 0), or keep the models in S3 (model-store: s3://…)."
    )
    if provisioner in OF_ONE_NODE:
        return Finding(name, State.OK, f"volumes of {provisioner} can be written")
    if provisioner.startswith("kubernetes.io/"):
        return Finding(name, State.WARN, f"the in-tree {provisioner} does not honour fsGroup", remedy)
    driver = project.cluster.read(DRIVERS, provisioner)
    if not driver:
        return Finding(name, State.WARN, f"{provisioner} is not a CSI driver: fsGroup support is unknown", remedy)
    policy = driver["spec"].get("fsGroupPolicy", "ReadWriteOnceWithFSType")
    honoured = policy == "File" or (policy != "None" and "ReadWriteMany" not in modes)
    text = (
        f"{provisioner} has fsGroupPolicy {policy}: with {' '.join(modes)} steps may{'' if honoured else ' not'} write"
    )
    return judge(name, honoured, text, remedy, State.WARN)


def _endpoint(project: Project) -> Findings:
    """The server uses the protocol of its address. The request needs no access rights."""
    name = "Address of the pipeline server"
    server = find_server(project.settings)
    host, other = urlsplit(server.host), {"http": "https", "https": "http"}
    there = f"{other[host.scheme]}://{host.netloc}"
    key = "KFP_ENDPOINT or kfp-endpoint"
    try:
        answer = requests.get(
            f"{server.host}/apis/v2beta1/healthz", timeout=TIMEOUT, verify=server.ca or True, allow_redirects=False
        )
    except requests.exceptions.SSLError as error:
        if re.search(r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE", str(error)):
            yield Finding(name, State.FAIL, f"{server.host} speaks http, not https", f"Set {key} to {there}.")
        else:
            text = f"{server.host} speaks https, but its certificate is not trusted here: {said(error)}"
            yield Finding(name, State.WARN, text, "Run this in a pod of the cluster, which trusts its CA.")
        return
    except OSError as error:
        remedy = f"Run this in a pod of the cluster, or forward the server's port and name it in {key}."
        yield Finding(name, State.WARN, f"{server.host} cannot be reached from here: {said(error)}", remedy)
        return
    if host.scheme == "http" and answer.status_code == 400 and "HTTPS" in answer.text:
        yield Finding(name, State.FAIL, f"{server.host} speaks https, not http", f"Set {key} to {there}.")
        return
    said_of_itself = answer.json() if answer.ok and "json" in answer.headers.get("Content-Type", "") else {}
    yield Finding(name, State.OK, f"{server.host} speaks {host.scheme}")
    if version := said_of_itself.get("tag_name", ""):
        yield _judge_version("Kubeflow Pipelines", version)
    if said_of_itself.get("multi_user") is False and project.data["platform"] == "kubeflow":
        text = "it is single-user and runs everything in its own namespace"
        remedy = "Install Kubeflow Pipelines in multi-user mode: the project has its own namespace."
        yield Finding("Kubeflow Pipelines", State.FAIL, text, remedy)


def _namespace(project: Project) -> Findings:
    """Both namespaces exist, and Tekton's containers pass their Pod Security level."""
    yield from _is_there(project.cluster, PROFILE if project.data["platform"] == "kubeflow" else BOOTSTRAP)
    yield from _is_there(project.ci, BOOTSTRAP)
    found = project.ci.read(NAMESPACES, project.ci.namespace)
    if not found:
        return
    level = found["metadata"].get("labels", {}).get(ENFORCE, "")
    text = f"{project.ci.namespace} enforces {level or 'no level'}"
    flag = _set_security_context(project.cluster)
    if level == "restricted" and not flag:
        text += ", which refuses Tekton's own containers" + (" by default" if flag is None else "")
        state = State.WARN if flag is None else State.FAIL
        yield Finding("Pod Security", state, text, f"S{RESTRICT_TEKTON[1:]}")
    else:
        yield Finding("Pod Security", State.OK, text)


PROFILE = "Create a Profile of that name. Kubeflow then creates the namespace with all that runs need."
BOOTSTRAP = "Ask a platform administrator to create it (jukebox bootstrap --part platform)."


def _is_there(cluster: Cluster, remedy: str) -> Findings:
    if not cluster.read(NAMESPACES, cluster.namespace):
        found, remedy = f"{cluster.namespace} does not exist", f"{remedy} Then run this again to test the pods."
        yield Finding("Namespace", State.FAIL, found, remedy)


def _scc(pods: list[Planned], project: Project) -> Findings:
    """You and the accounts may use the SCC that the pods are written for."""
    use = ("use", "security.openshift.io", "securitycontextconstraints", "", SCC)
    remedy = f"Bind ClusterRole system:openshift:scc:{SCC} to you and the accounts."
    for cluster, mine in _by_namespace(project, pods):
        may = allowed(cluster, use)
        yield judge("SCC", may, f"you may{'' if may else ' not'} use {SCC} in {cluster.namespace}", remedy)
        accounts = sorted({each.pod["spec"].get("serviceAccountName", "default") for each in mine})
        denied = [each for each in accounts if not allowed(cluster, use, each)]
        found = f"{', '.join(denied or accounts)} may{' not' if denied else ''} use {SCC}"
        yield judge("SCC", not denied, found, remedy)


def _by_namespace(project: Project, pods: list[Planned]) -> list[tuple[Cluster, list[Planned]]]:
    """The pods of each of the project's namespaces."""
    return [
        (cluster, [each for each in pods if each.ci is ci])
        for cluster, ci in ((project.cluster, False), (project.ci, True))
    ]


def _profile(project: Project) -> Findings:
    """Kubeflow's server accepts traffic from the namespace, which has what its controllers create for runs."""
    found = (project.cluster.read(NAMESPACES, project.cluster.namespace) or {}).get("metadata", {})
    label, value = "app.kubernetes.io/part-of", "kubeflow-profile"
    remedy = "Create the namespace by a Profile of this name; a Profile does not adopt an existing namespace."
    has = found.get("labels", {}).get(label, "")
    text = f"the namespace's label {label} is {has or 'missing'}; the NetworkPolicy ml-pipeline admits only {value}"
    yield judge("Profile", has == value, text, remedy)
    owned = any(each["kind"] == "Profile" for each in found.get("ownerReferences", ()))
    text = f"{'a' if owned else 'no'} Profile owns the namespace"
    yield judge("Profile", owned, text, remedy, State.WARN)
    needed = {
        "ServiceAccount default-editor": (ACCOUNTS, "default-editor"),
        "Secret mlpipeline-minio-artifact": (SECRETS, "mlpipeline-minio-artifact"),
        "ConfigMap kfp-launcher": (CONFIG_MAPS, "kfp-launcher"),
    }
    missing = [text for text, (kind, name) in needed.items() if not project.cluster.read(kind, name)]
    text = f"missing, so runs wait or fail: {', '.join(missing)}" if missing else "has what runs need"
    yield judge(
        "Profile", not missing, text, f"{remedy} Label pipelines.kubeflow.org/enabled=true adds what artifacts need."
    )


def _token(project: Project) -> Findings:
    """The cluster issues tokens for the server's audience, and they are valid."""
    name = "Token for the pipeline server"
    account = "jukebox-release" if project.ci.read(ACCOUNTS, "jukebox-release") else "default"
    # The cluster stores nothing of a token request. This token is valid for ten minutes.
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": [AUDIENCE], "expirationSeconds": 600},
    }
    path = Kind("", "v1", f"serviceaccounts/{account}/token")
    token = project.ci.create(path, request)["status"]["token"]
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [AUDIENCE]},
    }
    try:
        status = project.cluster.create(REVIEWS, review)["status"]
    except ClusterRefuses as error:
        if error.status != 403:
            raise
        text = f"{account} has one, but its TokenReview cannot be read: {error.reason}"
        yield Finding(name, State.WARN, text, "Ask somebody with ClusterRole system:auth-delegator to run this.")
        return
    good = bool(status.get("authenticated")) and AUDIENCE in status.get("audiences", ())
    text = f"TokenReview {'accepts' if good else 'rejects'} a token of {account} for {AUDIENCE}"
    remedy = (
        f"See {status.get('error') or 'the API server'}: check the API server's --service-account-issuer and its keys."
    )
    yield judge(name, good, text, remedy)


def _pull_secret(project: Project) -> Findings:
    """It exists in the form that the kubelet accepts."""
    name = project.data.get("pull-secret", "")
    if not name:
        yield Finding("Pull secret", State.OK, "not set")
        return
    kind = "kubernetes.io/dockerconfigjson"
    make = (
        f"kubectl create secret docker-registry {name} --docker-server=REGISTRY --docker-username=… --docker-password=…"
    )
    for cluster in (project.cluster, project.ci):
        secret = cluster.read(SECRETS, name)
        where = f"Secret {name} in {cluster.namespace}"
        if not secret:
            yield Finding("Pull secret", State.FAIL, f"{where} does not exist", f"Create it: {make}")
        else:
            good = secret.get("type") == kind and bool(values(secret).get(".dockerconfigjson"))
            text = f"{where} is of type {secret.get('type', 'Opaque')}"
            yield judge("Pull secret", good, text, f"Nodes accept only {kind}. Delete it and create it again: {make}")


def _trusted_ca(project: Project) -> Findings:
    """The CAs that pods shall trust are valid certificates."""
    for cluster in (project.cluster, project.ci):
        yield _trusted(cluster)


def _trusted(cluster: Cluster) -> Finding:
    name = f"ConfigMap {CONFIG_MAP} in {cluster.namespace}"
    found = cluster.read(CONFIG_MAPS, CONFIG_MAP)
    if not found:
        return Finding("Trusted CA", State.OK, f"{name} does not exist: pods trust only public CAs")
    remedy = f"Put your CA's certificates into its key {FILE.name}, as PEM, and remove expired ones."
    # Text between them may be non-ASCII, which ssl rejects.
    text = found.get("data", {}).get(FILE.name, "")
    pem = "\n".join(re.findall(r"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----", text))
    store = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if pem:
            store.load_verify_locations(cadata=pem)
    except ssl.SSLError:
        pem = ""
    if not pem:
        what = f"{FILE.name} of {name} is not PEM" if text else f"{name} has no {FILE.name}"
        return Finding("Trusted CA", State.FAIL, what, remedy)
    now = datetime.now(UTC).timestamp()
    certificates = store.get_ca_certs()
    old = [each for each in certificates if ssl.cert_time_to_seconds(str(each["notAfter"])) < now]
    text = f"{name} has {len(certificates)} certificates of CAs"
    if old:
        text += f"; expired: {'; '.join(_subject(each) for each in old)}"
    return judge("Trusted CA", bool(certificates) and not old, text, remedy, State.WARN)


def _subject(certificate: Mapping[str, Any]) -> str:
    return ", ".join(value for part in certificate["subject"] for _, value in part)


def _kserve(project: Project) -> Findings:
    """It accepts the overlay's InferenceService in a mode with a Deployment, and as a change of the live one."""
    for service in of_kind(project.overlay, "InferenceService"):
        name = service["metadata"]["name"]
        word = _mode(service)
        remedy = (
            f"Set the annotation {MODE} in the overlay to this KServe's name for a Deployment: Standard, or "
            "RawDeployment before 0.16. Or ask an administrator to make that the default mode."
        )
        tried = {**service, "metadata": {**service["metadata"], "name": f"{name[:50]}-preflight"}}
        try:
            admitted, _ = project.cluster.try_create(INFERENCE_SERVICES, tried)
        except ClusterRefuses as error:
            state, text, remedy = _refused(error, remedy)
            yield Finding("KServe", state, f"InferenceService {name}: {text}", remedy)
        else:
            # Its webhook adds the default mode, unless that is Knative.
            mode = _mode(admitted)
            found = f"InferenceService {name} is admitted, with mode {mode or 'Knative'}"
            yield judge("KServe", mode in PLAIN_MODES, found, remedy)
        if not word:
            yield from _default_mode(project.cluster)
        live = (project.cluster.read(INFERENCE_SERVICES, name) or {}).get("status", {}).get("deploymentMode", "")
        if live and word:
            try:
                change = {"metadata": {"annotations": {MODE: word}}}
                project.cluster.patch(INFERENCE_SERVICES, name, change, dry_run=True)
            except ClusterRefuses as error:
                remedy = (
                    f"Remove the annotation {MODE} from the overlay to keep the mode, or delete the InferenceService. "
                    "Argo CD then creates it again; the service is interrupted."
                )
                state, text, remedy = _refused(error, remedy)
                text = f"the live InferenceService {name}, with mode {live}: {text}"
                yield Finding("KServe", state, text, remedy)
            else:
                yield Finding("KServe", State.OK, f"the live InferenceService {name} has mode {live}")


def _mode(service: Resource) -> str:
    """The deployment mode that an InferenceService names, if it does."""
    return str(service["metadata"].get("annotations", {}).get(MODE, ""))


def _default_mode(cluster: Cluster) -> Findings:
    """The mode that its ConfigMap gives an InferenceService without the annotation."""
    found = _config_map(cluster, KSERVE, "inferenceservice-config")
    if found is None:
        remedy = "Ask somebody who may read ConfigMap inferenceservice-config. The dry run above shows its effect."
        yield Finding("KServe", State.WARN, "its default mode cannot be read", remedy)
        return
    mode = re.search(r'"defaultDeploymentMode"\s*:\s*"(\w+)"', found.get("deploy", ""))
    text = f"its default mode is {mode[1] if mode else 'not set, so Knative'}"
    remedy = f"Set the annotation {MODE} in the overlay to Standard (before KServe 0.16: RawDeployment)."
    yield judge("KServe", bool(mode) and mode[1] in PLAIN_MODES, text, remedy)  # type: ignore[index]


def _pods(pods: list[Planned], project: Project) -> Findings:
    """The pods are admitted; pods with the same outcome are one finding."""
    openshift = _is_openshift(project.cluster)
    outcomes: dict[tuple[str, State, str, str], list[str]] = {}
    absent = set()
    for cluster, mine in _by_namespace(project, pods):
        there = {each["metadata"]["name"] for each in cluster.list(ACCOUNTS)}
        for each in mine:
            account = each.pod["spec"].get("serviceAccountName", "default")
            if account not in there:
                # The API server refuses a pod whose account does not exist before other admission sees it.
                absent.add(account)
                account = "default"
            for outcome in _outcomes(cluster, each.pod, account, openshift):
                outcomes.setdefault((each.group, *outcome), []).append(each.name)
    for (group, state, text, remedy), names in outcomes.items():
        yield Finding(group, state, f"{', '.join(names)}: {text}", remedy)
    if absent:
        found = f"{', '.join(sorted(absent))} do not exist yet: their pods were tested with account default"
        yield Finding("Accounts", State.OK, found)


def _outcomes(cluster: Cluster, pod: Resource, account: str, openshift: bool) -> Iterable[tuple[State, str, str]]:
    """The outcome of a dry run of a pod with an account: state, text and remedy."""
    pod = {**pod, "spec": {**pod["spec"], "serviceAccountName": account}}
    if openshift:
        # Otherwise a wider SCC that you may use, but the controllers may not, could admit it.
        annotations = {**pod["metadata"]["annotations"], "openshift.io/required-scc": SCC}
        pod = {**pod, "metadata": {**pod["metadata"], "annotations": annotations}}
    try:
        admitted, warnings = cluster.try_create(PODS, pod)
    except ClusterRefuses as error:
        yield _refused(error, _remedy(f"{'admission webhook ' if error.webhook else ''}{error.reason}"))
        return
    by = admitted["metadata"].get("annotations", {}).get("openshift.io/scc", "")
    yield State.OK, f"admitted{f' by {by}' if by else ''}", ""
    for warning in warnings:
        yield State.WARN, f"admitted with a warning: {warning}", _remedy(warning)


def _refused(error: ClusterRefuses, remedy: str) -> tuple[State, str, str]:
    """State, text and remedy for a refusal; a warning if you have no right to try."""
    if re.search(r'User "[^"]*" cannot ', error.reason):
        remedy = "Ask somebody with ClusterRole admin of the namespace to run this."
        return State.WARN, f"cannot be tested: {error.reason}", remedy
    reason = re.sub(r'^pods "jukebox-preflight" is (forbidden|invalid): ', "", error.reason)
    return State.FAIL, f"refused{f' by {error.webhook}' if error.webhook else ''}: {reason}", remedy


def _remedy(message: str) -> str:
    """The remedy for a pod's refusal or warning."""
    fitting = (each.text for each in REMEDIES if re.search(each.pattern, message, re.DOTALL))
    return next(fitting, "Show this to the cluster's administrator.")


def _quota(pods: list[Planned], project: Project) -> Findings:
    """The quotas leave room for one run, and for what always runs if it is not installed yet."""
    serving = project.cluster.read(INFERENCE_SERVICES, project.settings.model_name)
    there = project.cluster.read(CLAIMS, project.settings.model_storage_pvc)
    claims = [] if there else [each["spec"] for each in of_kind(project.overlay, "PersistentVolumeClaim")]
    for cluster, mine in _by_namespace(project, pods):
        ci = cluster is project.ci
        need = _sum([_run(mine), *(_asked(each.pod, each.replicas) for each in mine if ci or not serving)])
        for claim in workspaces(project.overlay) if ci else claims:
            size = parse_quantity(claim["resources"]["requests"]["storage"])
            need = _sum([need, {"persistentvolumeclaims": Decimal(1), "requests.storage": size}])
        # The overlay's own quota is applied in the first wave; an existing one tells its usage.
        own = [each for each in of_kind(project.overlay, "ResourceQuota") if ("namespace" in each["metadata"]) is ci]
        yield from _room([*own, *cluster.list(QUOTAS)], need, cluster.namespace)


def _room(quotas: list[Resource], need: Sizes, namespace: str) -> Findings:
    for name, quota in {each["metadata"]["name"]: each for each in quotas}.items():
        if quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"):
            continue  # which counts only some pods
        used = quota.get("status", {}).get("used", {})
        short = []
        for key, bound in quota["spec"].get("hard", {}).items():
            room = parse_quantity(bound) - parse_quantity(used.get(key, "0"))
            if need.get(key, 0) > room:
                short.append(f"{key} {_shown(need[key])}, but {_shown(max(room, Decimal(0)))} are left")
        where = f"{name} of {namespace}"
        found = f"{where}: one run needs {'; '.join(short)}" if short else f"{where} leaves room for one run"
        remedy = "Ask for a larger quota (quota-cpu, quota-memory, quota-storage), or make the steps smaller."
        yield judge("Quota", not short, found, remedy)


def _run(pods: list[Planned]) -> Sizes:
    """The most that a run uses of a namespace's quota: three parallel tasks, or the largest step."""
    tasks = [_asked(each.pod) for each in pods if each.group == TASKS]
    steps = [_asked(each.pod) for each in pods if each.group == STEPS]
    need = {}
    for key in {key for each in [*tasks, *steps] for key in each}:
        three = sum(sorted((each.get(key, Decimal(0)) for each in tasks), reverse=True)[:3], Decimal(0))
        need[key] = three + max((each.get(key, Decimal(0)) for each in steps), default=Decimal(0))
    return need


def _asked(pod: Resource, replicas: int = 1) -> Sizes:
    """What these pods use of a quota: each the sum of its containers, or its largest init container if that is more."""
    first = len(pod["spec"].get("initContainers", ()))
    sizes = [each.get("resources", {}) for each in containers(pod)]
    asked = {"pods": Decimal(1)}
    for kind in ("requests", "limits"):
        # A limit without a request is the request as well.
        given = [{**(each.get("limits", {}) if kind == "requests" else {}), **each.get(kind, {})} for each in sizes]
        for key in {key for each in given for key in each}:
            numbers = [parse_quantity(each.get(key, "0")) for each in given]
            asked[f"{kind}.{key}"] = max(sum(numbers[first:], Decimal(0)), *numbers[:first], Decimal(0))
            if kind == "requests":
                asked[key] = asked[f"requests.{key}"]
    return {key: value * replicas for key, value in asked.items()}


def _sum(sizes: Iterable[Sizes]) -> Sizes:
    found: Sizes = {}
    for each in sizes:
        for key, value in each.items():
            found[key] = found.get(key, Decimal(0)) + value
    return found


def _shown(quantity: Decimal) -> str:
    """A quantity for people: 1.5, 4Gi."""
    for power, unit in ((3, "Gi"), (2, "Mi")):
        if quantity >= 1 << (10 * power):
            return f"{float(quantity) / (1 << (10 * power)):.3g}{unit}"
    return f"{float(quantity):.3g}"


def _is_openshift(cluster: Cluster) -> bool:
    return "securitycontextconstraints" in _served(cluster, "security.openshift.io/v1")


def _served(cluster: Cluster, version: str) -> set[str]:
    """The resources that the API serves in a group's version."""
    try:
        return {each["name"] for each in cluster.get(f"/apis/{version}")["resources"]}
    except ClusterRefuses as error:
        if error.status != 404:
            raise
        return set()


def _is_missing(cluster: Cluster) -> bool:
    try:
        return cluster.read(NAMESPACES, cluster.namespace) is None
    except ClusterRefuses:
        return False


def _declares(cluster: Cluster, version: str, kind: str, path: tuple[str, ...]) -> bool | None:
    """Whether a kind has a field, by the API's public schema; None: there is no such kind."""
    try:
        schemas = cluster.get(f"/openapi/v3/apis/{version}")["components"]["schemas"].values()
    except ClusterRefuses as error:
        if error.status != 404:
            raise
        return None
    for schema in schemas:
        if any(each["kind"] == kind for each in schema.get("x-kubernetes-group-version-kind", ())):
            return _has(schema, path)
    return None


def _has(schema: Resource, path: tuple[str, ...]) -> bool:
    """Whether a schema allows a field."""
    if not path or schema.get("x-kubernetes-preserve-unknown-fields"):
        return True
    below = schema.get("properties", {}).get(path[0])
    return below is not None and _has(below, path[1:])


def _config_map(cluster: Cluster, namespaces: Iterable[str], name: str) -> Mapping[str, str] | None:
    """The data of a ConfigMap in the first of the namespaces that has it; None if it cannot be read."""
    for namespace in namespaces:
        try:
            data: Mapping[str, str] = cluster.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}").get("data", {})
        except ClusterRefuses as error:
            if error.status not in (403, 404):
                raise
        else:
            return data
    return None


def _set_security_context(cluster: Cluster) -> bool | None:
    """Tekton's feature flag; None if it cannot be read."""
    flags = _config_map(cluster, TEKTON, "feature-flags")
    return None if flags is None else flags.get("set-security-context", "false") == "true"


def _judge_version(name: str, version: str, more: str = "") -> Finding:
    """Whether a release is between the oldest and the newest supported one."""
    oldest, newest = SUPPORTED[name]
    found = re.match(r"v?(\d+)\.(\d+)", version)
    text = f"{version} {more}".strip()
    if not found:
        remedy = f"Ask somebody who may read it. Supported: {oldest} to {newest}."
        return Finding(name, State.WARN, f"its version cannot be read{f': {text}' if text else ''}", remedy)
    number = int(found[1]), int(found[2])
    if number < _number(oldest):
        return Finding(name, State.FAIL, text, f"Update it to {oldest} or newer.")
    if number > _number(newest):
        remedy = f"It is untested. Supported: {oldest} to {newest}, see docs/support-matrix.md."
        return Finding(name, State.WARN, text, remedy)
    return Finding(name, State.OK, text)


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
