"""The checks of `jukebox doctor --preflight`: whether a cluster will take an overlay, before any of it is applied.

Nothing is changed, and a tenant's rights suffice, those of `admin` in its namespace: what else there is to see, a
finding says is for others to look at. The pods are tried by dry runs, so that what judges pods there speaks itself.
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

# The oldest and the newest release that is supported; docs/support-matrix.md says the same, and why.
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
# Where these are installed, of which a cluster has one each.
TEKTON = ("openshift-pipelines", "tekton-pipelines")
KSERVE = ("redhat-ods-applications", "opendatahub", "kubeflow", "kserve")
# The modes of KServe in which it makes a Deployment: the name from 0.16 on, and the one before.
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
    "have set-security-context set to true (ConfigMap feature-flags of Tekton's namespace; on OpenShift TektonConfig, "
    "spec.pipeline), or the namespace enforce baseline."
)


class Remedy(NamedTuple):
    """What to do about a pod that is refused with a message like this."""

    pattern: str
    text: str


# The first that fits is said.
REMEDIES = (
    Remedy(
        r"exceeded quota",
        "Ask for a larger quota, or make the pods smaller: step-cpu, step-memory, train-cpu, train-memory.",
    ),
    Remedy(
        r"failed quota: .*must specify",
        "A quota asks for sizes of every container: have a LimitRange made with default and defaultRequest.",
    ),
    Remedy(
        r"(maximum|minimum) .* usage per|limit to request ratio", "Fit the sizes in the settings to the LimitRange."
    ),
    Remedy(
        r"fsGroup|not an allowed group",
        "Take fsGroup out of the pods' securityContext in the overlay: OpenShift gives one of the namespace's range.",
    ),
    Remedy(
        r"runAsUser: Invalid|must be in the ranges",
        "Take runAsUser out of the overlay: OpenShift gives one of the namespace's range.",
    ),
    Remedy(
        rf"(not usable by user or serviceaccount|SCC|security context constraint).*{SCC}|{SCC}.*not (found|usable)",
        f"Have ClusterRole system:openshift:scc:{SCC} bound to group system:authenticated, as OpenShift does.",
    ),
    Remedy(
        r"violates? PodSecurity.*(prepare|place-scripts|working-dir-initializer|affinity-assistant)",
        f"These are Tekton's own containers: {RESTRICT_TEKTON}",
    ),
    Remedy(
        r"violates? PodSecurity.*kube-rbac-proxy",
        "This is OpenShift AI's proxy, which sets no security context: have the namespace enforce baseline.",
    ),
    Remedy(
        r'violates? PodSecurity.*containers? .*"(init|wait|main|kfp-launcher)"',
        "Kubeflow Pipelines makes this pod: have the namespace enforce baseline, or its server be 2.16 or newer.",
    ),
    Remedy(
        r"seccomp", "Let the overlay name seccompProfile RuntimeDefault, or none if an SCC without profiles judges."
    ),
    Remedy(r"capabilit", "Let the overlay drop ALL capabilities, and add none."),
    Remedy(
        r"violates? PodSecurity", "Mend what the message names in the overlay, or have the namespace enforce baseline."
    ),
    Remedy(
        r"ValidatingAdmissionPolicy|admission webhook|denied the request",
        "This is a policy of your cluster: give the pods in the overlay what it asks for, or have it leave them out.",
    ),
)


def checks(project: Project) -> Checks:
    """Return the checks that can be made: where the namespace is not there, those of the cluster alone."""
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
    """A version that knows all that is in the manifests."""
    version = str(project.cluster.get("/version")["gitVersion"])
    minor = re.match(r"v1\.(\d+)", version)
    if minor and _is_openshift(project.cluster):
        # Each release of OpenShift 4 has one of Kubernetes: 4.19 has 1.32.
        yield _judge_version("OpenShift", f"4.{int(minor[1]) - 13}", f"of Kubernetes {version}")
    else:
        yield _judge_version("Kubernetes", version)


def release(cluster: Cluster, definition: str) -> str:
    """Return the release that a definition's labels name, where it may be read and names one."""
    try:
        labels = (cluster.read(DEFINITIONS, definition) or {})["metadata"].get("labels", {})
    except (ClusterRefuses, KeyError):
        return ""
    return next((str(value) for key, value in labels.items() if key.endswith(("/release", "/version"))), "")


def _openshift_ai(project: Project) -> Findings:
    if OPENSHIFT_AI.plural not in _served(project.cluster, f"{OPENSHIFT_AI.group}/{OPENSHIFT_AI.version}"):
        remedy = "Install the operator OpenShift AI, or let platform in the settings say kubeflow."
        yield Finding("OpenShift AI", State.WARN, "the cluster does not know DataScienceClusters", remedy)
        return
    for each in project.cluster.list(OPENSHIFT_AI):
        version = each.get("status", {}).get("release", {}).get("version", "")
        if version.startswith("2.25."):
            modes = [_mode(service) for service in of_kind(project.overlay, "InferenceService")]
            remedy = "Let the overlay name the component openshift-ai-2."
            yield judge("OpenShift AI", modes == ["RawDeployment"], version, remedy)
        else:
            yield _judge_version("OpenShift AI", version)


# What OpenShift's monitoring must be told: namespace and name of a ConfigMap, and where in its config.yaml it stands.
MONITORING = {
    ("openshift-monitoring", "cluster-monitoring-config"): (("enableUserWorkload",),),
    ("openshift-user-workload-monitoring", "user-workload-monitoring-config"): (
        ("alertmanager", "enabled"),
        ("alertmanager", "enableAlertmanagerConfig"),
    ),
}


def _monitoring(project: Project) -> Findings:
    """OpenShift measures what users run, and its Alertmanager takes what the overlay says."""
    for (namespace, name), switches in MONITORING.items():
        found = _config_map(project.cluster, (namespace,), name)
        where = f"ConfigMap {name} in {namespace}"
        if found is None:
            remedy = (
                f"Ask a platform administrator to see that it says {', '.join('.'.join(each) for each in switches)}."
            )
            yield Finding("Monitoring", State.WARN, f"{where} is not there, or cannot be read", remedy)
            continue
        held = yaml.safe_load(found.get("config.yaml", "")) or {}
        off = [".".join(each) for each in switches if not reduce(lambda part, key: part.get(key) or {}, each, held)]
        text = f"{where} leaves {', '.join(off)} off" if off else f"{where} says what is needed"
        remedy = "Have it set to true: else nothing is measured, or no alert asks for a training."
        yield judge("Monitoring", not off, text, remedy, State.WARN)


def _tekton(project: Project) -> Findings:
    """Its version, which everybody may read, and whether its own containers fit Pod Security's strictest level."""
    name = "Tekton Pipelines"
    info = _config_map(project.cluster, TEKTON, "pipelines-info") or {}
    yield _judge_version(name, info.get("version") or release(project.cluster, "tasks.tekton.dev"))
    flag = _set_security_context(project.cluster)
    if flag is None:
        remedy = "Ask somebody who may read ConfigMap feature-flags of Tekton's namespace; here it is taken for false."
        yield Finding(name, State.WARN, "set-security-context cannot be read", remedy)
    else:
        yield Finding(name, State.OK, f"set-security-context is {str(flag).lower()}")


def _argo_cd(project: Project) -> Findings:
    """Its version, by what the API says that the ApplicationSet has."""
    name = "Argo CD"
    path = ("spec", "template", "spec", "syncPolicy", "retry", "refresh")
    declared = _declares(project.cluster, "argoproj.io/v1alpha1", "ApplicationSet", path)
    if declared is not None:
        found = f"ApplicationSets {'have' if declared else 'do not have'} retry.refresh, which is of Argo CD 3.2"
        remedy = "Update it (OpenShift GitOps 1.20): before, a failed sync tries the same commit until it gives up."
        yield judge(name, declared, found, remedy, State.WARN)


def _pipeline_store(project: Project) -> Findings:
    """PipelineVersions are kept as resources of the cluster, with what steps need of the platform."""
    name = "Kubeflow Pipelines"
    declared = _declares(
        project.cluster, f"{VERSIONS.group}/{VERSIONS.version}", "PipelineVersion", ("spec", "platformSpec")
    )
    if declared is not None:
        found = f"PipelineVersions {'have' if declared else 'do not have'} platformSpec, which is of 2.14"
        remedy = "Update the pipeline server, and the CRD pipelineversions with it: else claims and Secrets are lost."
        yield judge(name, declared, found, remedy)
    if server := project.cluster.read(PIPELINE_SERVERS, "dspa"):
        store = server["spec"].get("apiServer", {}).get("pipelineStore", "database")
        remedy = "Let the overlay's DataSciencePipelinesApplication replace it: pipelineStore is kubernetes there."
        yield judge("Pipeline store", store == "kubernetes", f"pipelineStore of dspa is {store}", remedy)


def _nodes(project: Project) -> Findings:
    """Each selector of the settings finds a node."""
    for key in ("nodes", "train-nodes", "store-nodes"):
        if selector := project.data.get(key, ""):
            found = sorted(each["metadata"]["name"] for each in project.cluster.list(NODES, selector))
            text = f"{key}: nodes with {selector}: {', '.join(found[:5]) or 'none'}{' …' if found[5:] else ''}"
            yield judge("Nodes", bool(found), text, f"Label a node, or change {key}: pods would wait for ever.")


def _storage(project: Project) -> Findings:
    """The store's class is there, steps may write to its volumes, and all pods reach them."""
    name = "Storage class"
    claims = {each["metadata"]["name"]: each["spec"] for each in of_kind(project.overlay, "PersistentVolumeClaim")}
    claim = claims.get(project.settings.model_storage_pvc)
    if not project.settings.on_claim or not claim:
        yield Finding(name, State.OK, f"none is needed: the model store is {project.settings.model_store}")
        return
    modes = claim["accessModes"]
    wanted = claim.get("storageClassName", "")
    classes = {each["metadata"]["name"]: each for each in project.cluster.list(STORAGE_CLASSES)}
    mark = "storageclass.kubernetes.io/is-default-class"
    defaults = [key for key, each in classes.items() if each["metadata"].get("annotations", {}).get(mark) == "true"]
    [given] = [wanted] if wanted else defaults[:1] or [""]
    if given not in classes:
        text = f"{wanted or 'a default class'} is not there; classes: {', '.join(sorted(classes)) or 'none'}"
        yield Finding(name, State.FAIL, text, "Name one of them in storage-class, or have it made.")
        return
    provisioner = classes[given]["provisioner"]
    yield Finding(name, State.OK, f"{given} of {provisioner}")
    yield _reachable(project, provisioner, modes)
    yield _writable(project, provisioner, modes)


def _reachable(project: Project, provisioner: str, modes: list[str]) -> Finding:
    """Whether all pods that mount the claim can be where its volume is."""
    name = "Access mode"
    if "ReadWriteMany" in modes or provisioner in OF_ONE_NODE:
        where = "on all nodes" if "ReadWriteMany" in modes else "on the volume's node, which pods follow"
        return Finding(name, State.OK, f"{' '.join(modes)}: pods reach it {where}")
    selector = project.data.get("store-nodes", "")
    try:
        nodes = sorted(each["metadata"]["name"] for each in project.cluster.list(NODES, selector))
    except ClusterRefuses as error:
        text = f"{' '.join(modes)} works on one node only; nodes cannot be read: {error.reason}"
        return Finding(name, State.WARN, text, "Let store-nodes name a label that one node has, or take ReadWriteMany.")
    text = f"{' '.join(modes)} works on one node only; {selector or 'no store-nodes'} leaves {', '.join(nodes)}"
    remedy = (
        "Let store-nodes name a label that one node has, as kubernetes.io/hostname=NODE: else a step and the model "
        "server may be on different nodes, and one waits for the volume for ever. Or take ReadWriteMany, or S3."
    )
    return judge(name, len(nodes) == 1, text, remedy)


# Their volumes say themselves on which node they are. The former honours fsGroup, the latter lets everybody write.
OF_ONE_NODE = ("kubernetes.io/no-provisioner", "rancher.io/local-path")


def _writable(project: Project, provisioner: str, modes: list[str]) -> Finding:
    """Whether steps may write to a fresh volume, which belongs to root: it depends on whether fsGroup is honoured."""
    name = "Writing to the store"
    remedy = (
        "Take a class whose driver has fsGroupPolicy File, have the volume's folder given to group 0 with mode 2775 "
        "(all steps are in group 0), or keep the models in S3 (model-store: s3://…)."
    )
    if provisioner in OF_ONE_NODE:
        return Finding(name, State.OK, f"volumes of {provisioner} can be written")
    if provisioner.startswith("kubernetes.io/"):
        return Finding(name, State.WARN, f"the in-tree {provisioner} does not honour fsGroup", remedy)
    driver = project.cluster.read(DRIVERS, provisioner)
    if not driver:
        return Finding(name, State.WARN, f"{provisioner} is not a CSI driver, so nobody says", remedy)
    policy = driver["spec"].get("fsGroupPolicy", "ReadWriteOnceWithFSType")
    honoured = policy == "File" or (policy != "None" and "ReadWriteMany" not in modes)
    text = (
        f"{provisioner} has fsGroupPolicy {policy}: with {' '.join(modes)} steps may{'' if honoured else ' not'} write"
    )
    return judge(name, honoured, text, remedy, State.WARN)


def _endpoint(project: Project) -> Findings:
    """It speaks what its address says; what is asked there needs no access."""
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
            text = f"{server.host} speaks https, by a certificate that is not trusted here: {said(error)}"
            yield Finding(name, State.WARN, text, "Run this in a pod of the cluster, which trusts its CA.")
        return
    except OSError as error:
        remedy = f"Run this in a pod of the cluster, or forward the server's port and name it in {key}."
        yield Finding(name, State.WARN, f"{server.host} cannot be tried from here: {said(error)}", remedy)
        return
    if host.scheme == "http" and answer.status_code == 400 and "HTTPS" in answer.text:
        yield Finding(name, State.FAIL, f"{server.host} speaks https, not http", f"Set {key} to {there}.")
        return
    said_of_itself = answer.json() if answer.ok and "json" in answer.headers.get("Content-Type", "") else {}
    yield Finding(name, State.OK, f"{server.host} speaks {host.scheme}")
    if version := said_of_itself.get("tag_name", ""):
        yield _judge_version("Kubeflow Pipelines", version)
    if said_of_itself.get("multi_user") is False and project.data["platform"] == "kubeflow":
        text = "it is for a single user, and runs everything in its own namespace"
        remedy = (
            "Have Kubeflow Pipelines installed multi-user: claims, Secrets and versions of the project lie in its own."
        )
        yield Finding("Kubeflow Pipelines", State.FAIL, text, remedy)


def _namespace(project: Project) -> Findings:
    """Both are there, and Pod Security fits Tekton."""
    yield from _is_there(project.cluster, PROFILE if project.data["platform"] == "kubeflow" else BOOTSTRAP)
    yield from _is_there(project.ci, BOOTSTRAP)
    found = project.ci.read(NAMESPACES, project.ci.namespace)
    if not found:
        return
    level = found["metadata"].get("labels", {}).get(ENFORCE, "")
    text = f"{project.ci.namespace} enforces {level or 'no level of its own'}"
    flag = _set_security_context(project.cluster)
    if level == "restricted" and not flag:
        text += ", which Tekton's own containers do not fit" + (" by default" if flag is None else "")
        state = State.WARN if flag is None else State.FAIL
        yield Finding("Pod Security", state, text, f"H{RESTRICT_TEKTON[1:]}")
    else:
        yield Finding("Pod Security", State.OK, text)


PROFILE = "Have a Profile of that name made, which makes it with all that runs need."
BOOTSTRAP = "Have a platform administrator make it (jukebox bootstrap --part platform)."


def _is_there(cluster: Cluster, remedy: str) -> Findings:
    if not cluster.read(NAMESPACES, cluster.namespace):
        found, remedy = f"{cluster.namespace} is not there", f"{remedy} Then run this again: it tries the pods."
        yield Finding("Namespace", State.FAIL, found, remedy)


def _scc(pods: list[Planned], project: Project) -> Findings:
    """You and the accounts may use the SCC that all pods fit."""
    use = ("use", "security.openshift.io", "securitycontextconstraints", "", SCC)
    remedy = f"Have the ClusterRole system:openshift:scc:{SCC} bound to you and the accounts."
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
    """Kubeflow's server lets the namespace in, and what its controllers put there for runs is there."""
    found = (project.cluster.read(NAMESPACES, project.cluster.namespace) or {}).get("metadata", {})
    label, value = "app.kubernetes.io/part-of", "kubeflow-profile"
    remedy = "Have a Profile of this name make the namespace: it does not take over one that exists."
    has = found.get("labels", {}).get(label, "")
    text = f"the namespace's label {label} is {has or 'missing'}; the NetworkPolicy ml-pipeline lets {value} in alone"
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
    text = f"{', '.join(missing)} is missing: runs wait or fail" if missing else "what runs need is there"
    yield judge(
        "Profile", not missing, text, f"{remedy} Label pipelines.kubeflow.org/enabled: true brings the artifacts'."
    )


def _token(project: Project) -> Findings:
    """The cluster makes tokens for the server's audience, and they are taken."""
    name = "Token for the pipeline server"
    account = "jukebox-release" if project.ci.read(ACCOUNTS, "jukebox-release") else "default"
    # Of a request for a token nothing is kept, and this one is good for ten minutes.
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
        text = f"{account} has one; TokenReview cannot be read: {error.reason}"
        yield Finding(name, State.WARN, text, "Ask somebody with ClusterRole system:auth-delegator to run this.")
        return
    good = bool(status.get("authenticated")) and AUDIENCE in status.get("audiences", ())
    text = f"TokenReview {'takes' if good else 'does not take'} one of {account} for {AUDIENCE}"
    remedy = (
        f"See {status.get('error') or 'the API server'}: --service-account-issuer and its keys must fit the tokens."
    )
    yield judge(name, good, text, remedy)


def _pull_secret(project: Project) -> Findings:
    """It is there, as the kubelet takes it."""
    name = project.data.get("pull-secret", "")
    if not name:
        yield Finding("Pull secret", State.OK, "none is named")
        return
    kind = "kubernetes.io/dockerconfigjson"
    make = (
        f"kubectl create secret docker-registry {name} --docker-server=REGISTRY --docker-username=… --docker-password=…"
    )
    for cluster in (project.cluster, project.ci):
        secret = cluster.read(SECRETS, name)
        where = f"Secret {name} in {cluster.namespace}"
        if not secret:
            yield Finding("Pull secret", State.FAIL, f"{where} is not there", f"Make it: {make}")
        else:
            good = secret.get("type") == kind and bool(values(secret).get(".dockerconfigjson"))
            text = f"{where} is of type {secret.get('type', 'Opaque')}"
            yield judge("Pull secret", good, text, f"Nodes take {kind} only: delete it, and make it anew: {make}")


def _trusted_ca(project: Project) -> Findings:
    """What pods shall trust are certificates, which are still good."""
    for cluster in (project.cluster, project.ci):
        yield _trusted(cluster)


def _trusted(cluster: Cluster) -> Finding:
    name = f"ConfigMap {CONFIG_MAP} in {cluster.namespace}"
    found = cluster.read(CONFIG_MAPS, CONFIG_MAP)
    if not found:
        return Finding("Trusted CA", State.OK, f"{name} is not there: pods trust public CAs alone")
    remedy = f"Put your CA's certificates into its key {FILE.name}, as PEM, and take out what has expired."
    # What stands between them may be of any alphabet, which ssl does not take.
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
    """It takes the overlay's InferenceService in a mode that makes a Deployment, and as a change of the live one."""
    for service in of_kind(project.overlay, "InferenceService"):
        name = service["metadata"]["name"]
        word = _mode(service)
        remedy = (
            f"Let the overlay's annotation {MODE} say the word that this KServe has for a Deployment: Standard, before "
            "0.16 RawDeployment. Without the annotation, have its default mode changed to that."
        )
        tried = {**service, "metadata": {**service["metadata"], "name": f"{name[:50]}-preflight"}}
        try:
            admitted, _ = project.cluster.try_create(INFERENCE_SERVICES, tried)
        except ClusterRefuses as error:
            state, text, remedy = _refused(error, remedy)
            yield Finding("KServe", state, f"InferenceService {name}: {text}", remedy)
        else:
            # Its webhook writes down the default mode, unless that is Knative.
            mode = _mode(admitted)
            found = f"InferenceService {name} is admitted, of mode {mode or 'Knative'}"
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
                    f"Take the annotation {MODE} out of the overlay, so that it stays as it is; or delete the "
                    f"InferenceService, which interrupts the service, and let Argo CD make it anew."
                )
                state, text, remedy = _refused(error, remedy)
                text = f"the live InferenceService {name}, of mode {live}: {text}"
                yield Finding("KServe", state, text, remedy)
            else:
                yield Finding("KServe", State.OK, f"the live InferenceService {name} is of mode {live}")


def _mode(service: Resource) -> str:
    """The deployment mode that an InferenceService names, if it does."""
    return str(service["metadata"].get("annotations", {}).get(MODE, ""))


def _default_mode(cluster: Cluster) -> Findings:
    """What its ConfigMap says of who names no mode."""
    found = _config_map(cluster, KSERVE, "inferenceservice-config")
    if found is None:
        remedy = "Ask somebody who may read ConfigMap inferenceservice-config; the dry run above shows what it says."
        yield Finding("KServe", State.WARN, "its default mode cannot be read", remedy)
        return
    mode = re.search(r'"defaultDeploymentMode"\s*:\s*"(\w+)"', found.get("deploy", ""))
    text = f"its default mode is {mode[1] if mode else 'not said, so Knative'}"
    remedy = f"Let the overlay's annotation {MODE} say Standard (before KServe 0.16: RawDeployment)."
    yield judge("KServe", bool(mode) and mode[1] in PLAIN_MODES, text, remedy)  # type: ignore[index]


def _pods(pods: list[Planned], project: Project) -> Findings:
    """The pods are admitted; those that are judged in the same words are one finding."""
    openshift = _is_openshift(project.cluster)
    outcomes: dict[tuple[str, State, str, str], list[str]] = {}
    absent = set()
    for cluster, mine in _by_namespace(project, pods):
        there = {each["metadata"]["name"] for each in cluster.list(ACCOUNTS)}
        for each in mine:
            account = each.pod["spec"].get("serviceAccountName", "default")
            if account not in there:
                # The API server refuses a pod whose account is not there before anybody else sees it.
                absent.add(account)
                account = "default"
            for outcome in _outcomes(cluster, each.pod, account, openshift):
                outcomes.setdefault((each.group, *outcome), []).append(each.name)
    for (group, state, text, remedy), names in outcomes.items():
        yield Finding(group, state, f"{', '.join(names)}: {text}", remedy)
    if absent:
        found = f"{', '.join(sorted(absent))} are not there yet: their pods were tried as account default"
        yield Finding("Accounts", State.OK, found)


def _outcomes(cluster: Cluster, pod: Resource, account: str, openshift: bool) -> Iterable[tuple[State, str, str]]:
    """What becomes of a pod of an account: state, text and remedy."""
    pod = {**pod, "spec": {**pod["spec"], "serviceAccountName": account}}
    if openshift:
        # So that no wider SCC, which you may use and the controllers may not, lets it pass.
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
    """What is said of a refusal, state, text and remedy: of who may not even ask, that it cannot be tried."""
    if re.search(r'User "[^"]*" cannot ', error.reason):
        remedy = "Ask somebody with ClusterRole admin of the namespace to run this."
        return State.WARN, f"cannot be tried: {error.reason}", remedy
    reason = re.sub(r'^pods "jukebox-preflight" is (forbidden|invalid): ', "", error.reason)
    return State.FAIL, f"refused{f' by {error.webhook}' if error.webhook else ''}: {reason}", remedy


def _remedy(message: str) -> str:
    """What to do about a pod that is refused, or warned of, in these words."""
    fitting = (each.text for each in REMEDIES if re.search(each.pattern, message, re.DOTALL))
    return next(fitting, "Show this to whoever runs the cluster.")


def _quota(pods: list[Planned], project: Project) -> Findings:
    """The quotas leave room for one run, and for what runs all the time unless it does already."""
    serving = project.cluster.read(INFERENCE_SERVICES, project.settings.model_name)
    there = project.cluster.read(CLAIMS, project.settings.model_storage_pvc)
    claims = [] if there else [each["spec"] for each in of_kind(project.overlay, "PersistentVolumeClaim")]
    for cluster, mine in _by_namespace(project, pods):
        ci = cluster is project.ci
        need = _sum([_run(mine), *(_asked(each.pod, each.replicas) for each in mine if ci or not serving)])
        for claim in workspaces(project.overlay) if ci else claims:
            size = parse_quantity(claim["resources"]["requests"]["storage"])
            need = _sum([need, {"persistentvolumeclaims": Decimal(1), "requests.storage": size}])
        # The overlay's own comes in the first wave; one that is there already says what is used of it.
        own = [each for each in of_kind(project.overlay, "ResourceQuota") if ("namespace" in each["metadata"]) is ci]
        yield from _room([*own, *cluster.list(QUOTAS)], need, cluster.namespace)


def _room(quotas: list[Resource], need: Sizes, namespace: str) -> Findings:
    for name, quota in {each["metadata"]["name"]: each for each in quotas}.items():
        if quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"):
            continue  # which is of some pods alone
        used = quota.get("status", {}).get("used", {})
        short = []
        for key, bound in quota["spec"].get("hard", {}).items():
            room = parse_quantity(bound) - parse_quantity(used.get(key, "0"))
            if need.get(key, 0) > room:
                short.append(f"{key} {_shown(need[key])}, where {_shown(max(room, Decimal(0)))} are left")
        where = f"{name} of {namespace}"
        found = f"{where}: one run needs {'; '.join(short)}" if short else f"{where} leaves room for one run"
        remedy = "Ask for a larger quota (quota-cpu, quota-memory, quota-storage), or make the steps smaller."
        yield judge("Quota", not short, found, remedy)


def _run(pods: list[Planned]) -> Sizes:
    """What a run asks of a namespace's quota at most: three tasks side by side, and in its own the largest step."""
    tasks = [_asked(each.pod) for each in pods if each.group == TASKS]
    steps = [_asked(each.pod) for each in pods if each.group == STEPS]
    need = {}
    for key in {key for each in [*tasks, *steps] for key in each}:
        three = sum(sorted((each.get(key, Decimal(0)) for each in tasks), reverse=True)[:3], Decimal(0))
        need[key] = three + max((each.get(key, Decimal(0)) for each in steps), default=Decimal(0))
    return need


def _asked(pod: Resource, replicas: int = 1) -> Sizes:
    """What so many pods ask of a quota, each for the sum of its containers, or the largest of those that come first."""
    first = len(pod["spec"].get("initContainers", ()))
    sizes = [each.get("resources", {}) for each in containers(pod)]
    asked = {"pods": Decimal(1)}
    for kind in ("requests", "limits"):
        # Who names a limit alone requests as much.
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
    """The resources that the API has of a group's version."""
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
    """Whether a kind has a field, by what the API says of itself to everybody; None: there is no such kind."""
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
    """Whether what a schema describes may have a field."""
    if not path or schema.get("x-kubernetes-preserve-unknown-fields"):
        return True
    below = schema.get("properties", {}).get(path[0])
    return below is not None and _has(below, path[1:])


def _config_map(cluster: Cluster, namespaces: Iterable[str], name: str) -> Mapping[str, str] | None:
    """The data of a ConfigMap in the first of the namespaces that has it; None where it is not to be seen."""
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
    """Tekton's feature flag; None where it is not to be seen."""
    flags = _config_map(cluster, TEKTON, "feature-flags")
    return None if flags is None else flags.get("set-security-context", "false") == "true"


def _judge_version(name: str, version: str, more: str = "") -> Finding:
    """Whether a release is between the oldest and the newest that is supported."""
    oldest, newest = SUPPORTED[name]
    found = re.match(r"v?(\d+)\.(\d+)", version)
    text = f"{version} {more}".strip()
    if not found:
        remedy = f"Ask somebody who may look: supported is {oldest} to {newest}."
        return Finding(name, State.WARN, f"its version cannot be read{f': {text}' if text else ''}", remedy)
    number = int(found[1]), int(found[2])
    if number < _number(oldest):
        return Finding(name, State.FAIL, text, f"Update it to {oldest} or newer.")
    if number > _number(newest):
        remedy = f"Nobody has tried it: supported is {oldest} to {newest}, see docs/support-matrix.md."
        return Finding(name, State.WARN, text, remedy)
    return Finding(name, State.OK, text)


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
