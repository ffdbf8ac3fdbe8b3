"""A stand-in for what OpenShift and OpenShift AI do to each pod of a project before it is created.

A model server that asks for token authentication gets the proxy of OpenShift AI (the real kube-rbac-proxy); then a
security context constraint (SCC) admits the pod and fills in what the pod leaves open, or the pod is refused in the
words of OpenShift. The constraints are those of a stock cluster (openshift/cluster-kube-apiserver-operator,
``bindata/bootkube/scc-manifests``; tektoncd/operator for ``pipelines-scc``), the rules those of
openshift/apiserver-library-go, ``pkg/securitycontextconstraints``. Left out: what no pod here can have, such as host
ports, user namespaces (``restricted-v3``), Windows or annotations for seccomp.

It is a mutating webhook in a pod of the CI image, as ``python3 openshift.py CERTIFICATE KEY``.
"""

import base64
import copy
import json
import os
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kubernetes import client, config

Json = dict[str, Any]

RANGES = "openshift.io/sa.scc."  # of the annotations of a namespace
AUTH = "security.opendatahub.io/enable-auth"
PROXY = "kube-rbac-proxy"
VOLUMES = "configMap csi downwardAPI emptyDir ephemeral image persistentVolumeClaim projected secret".split()


@dataclass(frozen=True)
class Scc:
    """A SecurityContextConstraints, as far as stock ones differ.

    Attributes:
        user: ``range`` of the namespace, ``non-root`` or ``any``.
        group: whether fsGroup must be the namespace's.
        seccomp: the profiles that a pod may name; none: it may name none.
        everything: whether it is ``privileged``.
    """

    name: str
    user: str
    group: bool
    drop: tuple[str, ...]
    add: tuple[str, ...] = ()
    seccomp: tuple[str, ...] = ()
    escalation: bool = False
    everything: bool = False


V1 = ("KILL", "MKNOD", "SETUID", "SETGID")
V2: Json = {"drop": ("ALL",), "add": ("NET_BIND_SERVICE",), "seccomp": ("runtime/default",)}
# In the order in which they are tried: by priority, then the strictest, then by name.
STOCK = (
    Scc("anyuid", "any", group=False, drop=("MKNOD",), escalation=True),
    Scc("pipelines-scc", "any", group=True, drop=("MKNOD",), add=("SETFCAP",)),
    Scc("restricted-v2", "range", group=True, **V2),
    Scc("restricted", "range", group=True, drop=V1, escalation=True),
    Scc("nonroot-v2", "non-root", group=False, **V2),
    Scc("nonroot", "non-root", group=False, drop=V1, escalation=True),
    Scc("privileged", "any", group=False, drop=(), escalation=True, everything=True),
)


class Refused(Exception):
    """No constraint admits the pod; the message is OpenShift's."""


def admit(pod: Json, ranges: Json, may_use: Callable[[str], str]) -> Json:
    """Return the pod as the first constraint admits it that fits; raises Refused with what each has against it.

    Args:
        ranges: annotations of the namespace.
        may_use: for whom a constraint may be used, ``serviceaccount`` or ``user``; empty: for nobody.
    """
    pinned = pod["metadata"].get("annotations", {}).get("openshift.io/required-scc")
    against = []
    for scc in STOCK:
        if pinned not in (None, scc.name):
            continue
        whom = may_use(scc.name)
        if not whom:
            against.append(f'provider "{scc.name}": Forbidden: not usable by user or serviceaccount')
            continue
        admitted = copy.deepcopy(pod)
        if wrong := [f"provider {scc.name}: .{each}" for each in assign(scc, admitted, ranges)]:
            against += wrong
            continue
        found = {"openshift.io/scc": scc.name, "security.openshift.io/validated-scc-subject-type": whom}
        admitted["metadata"].setdefault("annotations", {}).update(found)
        return admitted
    name = pod["metadata"].get("name") or pod["metadata"].get("generateName", "")
    raise Refused(
        f'pods "{name}" is forbidden: unable to validate against any security context constraint: '
        f"[{', '.join(against)}]"
    )


def assign(scc: Scc, pod: Json, ranges: Json) -> Iterator[str]:
    """Fill in what a pod leaves open, and yield what the constraint forbids."""
    first, size = map(int, ranges[f"{RANGES}uid-range"].split("/"))
    group = int(ranges.get(f"{RANGES}supplemental-groups", f"{first}/1").split("/")[0])
    spec = pod["spec"]
    whole = spec.setdefault("securityContext", {})
    if scc.group:
        whole.setdefault("fsGroup", group)
        if whole["fsGroup"] != group:
            at = "spec.securityContext.fsGroup: Invalid value"
            yield f"{at}: []int64{{{whole['fsGroup']}}}: {whole['fsGroup']} is not an allowed group"
    if not scc.everything:
        label = {"level": ranges[f"{RANGES}mcs"]}
        whole.setdefault("seLinuxOptions", label)
        for volume in spec.get("volumes", ()):
            [kind] = [key for key in volume if key != "name"] or ["emptyDir"]
            if kind not in VOLUMES:
                yield f'spec.volumes: Invalid value: "{kind}": {kind} volumes are not allowed to be used'
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                yield f"spec.securityContext.{key}: Invalid value: true: {key} is not allowed to be used"
        if scc.seccomp:
            whole.setdefault("seccompProfile", {"type": "RuntimeDefault"})
        yield from check_profile(scc, whole)
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for place, container in enumerate(spec.get(kind, ())):
            for wrong in contain(scc, container.setdefault("securityContext", {}), whole, (first, first + size - 1)):
                yield f"spec.{kind}[{place}].{wrong}"


def contain(scc: Scc, own: Json, whole: Json, users: tuple[int, int]) -> Iterator[str]:
    """The same for a container; ``own`` and ``whole`` are its and its pod's security context."""
    if scc.user == "range" and "runAsUser" not in own and "runAsUser" not in whole:
        own["runAsUser"] = users[0]
    user: int | None = own.get("runAsUser", whole.get("runAsUser"))
    non_root = own.get("runAsNonRoot", whole.get("runAsNonRoot"))
    if non_root is None and (user or (user is None and scc.user == "non-root")):
        non_root = own["runAsNonRoot"] = True
    if scc.user == "range" and user is not None and not users[0] <= user <= users[1]:
        yield f"runAsUser: Invalid value: {user}: must be in the ranges: [{users[0]}, {users[1]}]"
    if scc.user == "non-root" and (user == 0 or not non_root):
        yield f"runAsUser: Invalid value: {user}: running with the root UID is forbidden"
    if scc.everything:
        return
    capabilities = own.setdefault("capabilities", {})
    for each in capabilities.get("add", ()):
        if each not in scc.add:
            yield f'capabilities.add: Invalid value: "{each}": capability may not be added'
    capabilities["drop"] = sorted({*capabilities.get("drop", ()), *scc.drop})
    if not scc.escalation and own.setdefault("allowPrivilegeEscalation", False):
        yield (
            "allowPrivilegeEscalation: Invalid value: true: Allowing privilege escalation for containers is not allowed"
        )
    if own.get("privileged"):
        yield "privileged: Invalid value: true: Privileged containers are not allowed"
    if "seccompProfile" in own:
        yield from check_profile(scc, own)


def check_profile(scc: Scc, context: Json) -> Iterator[str]:
    kind = context.get("seccompProfile", {}).get("type")
    if kind is None:
        return
    name = {"RuntimeDefault": "runtime/default", "Unconfined": "unconfined"}.get(kind, kind)
    if not scc.seccomp:
        yield "seccomp: Forbidden: seccomp may not be set"
    elif name not in scc.seccomp:
        yield f"seccomp: Forbidden: {name} is not an allowed seccomp profile. Valid values are {[*scc.seccomp]}"


def with_proxy(pod: Json, image: str) -> Json:
    """A model server's pod with the proxy, if it asks for one: as OpenShift AI 3 adds it, on 8443 before its 8888."""
    metadata, spec = pod["metadata"], pod["spec"]
    if metadata.get("annotations", {}).get(AUTH) != "true" or any(each["name"] == PROXY for each in spec["containers"]):
        return pod
    service = metadata["labels"]["serving.kserve.io/inferenceservice"]
    files = {"proxy-config": {"configMap": {"name": f"{service}-{PROXY}-sar-config"}}}
    files["proxy-tls"] = {"secret": {"secretName": f"{service}-serving-cert"}}
    made = copy.deepcopy(pod)
    made["spec"]["automountServiceAccountToken"] = True
    made["spec"]["volumes"] = [*spec.get("volumes", ()), *({"name": name, **each} for name, each in files.items())]
    made["spec"]["containers"].append(
        {
            "name": PROXY,
            "image": image,
            "args": [
                "--secure-listen-address=0.0.0.0:8443",
                "--proxy-endpoints-port=8643",
                "--upstream=http://localhost:8888/",
                "--auth-header-fields-enabled=true",
                "--config-file=/etc/proxy-config/config-file.yaml",
                "--tls-cert-file=/etc/proxy-tls/tls.crt",
                "--tls-private-key-file=/etc/proxy-tls/tls.key",
            ],
            "ports": [{"containerPort": 8443, "name": "https"}, {"containerPort": 8643, "name": "proxy"}],
            "readinessProbe": {
                "httpGet": {"path": "/healthz", "port": 8643, "scheme": "HTTPS"},
                "periodSeconds": 1,
            },
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}},
            "volumeMounts": [
                *({"name": name, "mountPath": f"/etc/{name}", "readOnly": True} for name in files),
                {
                    "name": TOKEN,
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                    "readOnly": True,
                },
            ],
        }
    )
    # The API server adds the token before it asks a webhook, and then there is none to be had.
    made["spec"]["volumes"].append({"name": TOKEN, "projected": {"sources": [*TOKEN_SOURCES]}})
    return made


TOKEN = "proxy-token"
TOKEN_SOURCES: tuple[Json, ...] = (
    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    {
        "downwardAPI": {
            "items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]
        }
    },
)


def allowed(namespace: str, name: str, user: str, groups: list[str]) -> bool:
    """Whether somebody may ``use`` a constraint in a namespace."""
    attributes = {
        "namespace": namespace,
        "verb": "use",
        "name": name,
        "group": "security.openshift.io",
        "resource": "securitycontextconstraints",
    }
    review = client.V1SubjectAccessReview(spec={"user": user, "groups": groups, "resourceAttributes": attributes})
    return bool(client.AuthorizationV1Api().create_subject_access_review(review).status.allowed)


def answer(request: Json, image: str) -> Json:
    """What the webhook says of an AdmissionRequest."""
    namespace, pod = request["namespace"], request["object"]
    account = f"system:serviceaccount:{namespace}:{pod['spec'].get('serviceAccountName') or 'default'}"
    ranges = client.CoreV1Api().read_namespace(namespace).metadata.annotations or {}
    # An account counts without system:authenticated, to which everybody's constraint is bound: it comes by the creator.
    whom = {
        "serviceaccount": (account, ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"]),
        "user": (request["userInfo"]["username"], request["userInfo"].get("groups", [])),
    }

    def may_use(name: str) -> str:
        return next((kind for kind, who in whom.items() if allowed(namespace, name, *who)), "")

    try:
        admitted = admit(with_proxy(pod, image), ranges, may_use)
    except Refused as refused:
        print(namespace, refused, flush=True)
        return {"uid": request["uid"], "allowed": False, "status": {"message": str(refused), "code": 403}}
    patch = [
        {"op": "add", "path": "/metadata/annotations", "value": admitted["metadata"]["annotations"]},
        {"op": "replace", "path": "/spec", "value": admitted["spec"]},
    ]
    encoded = base64.b64encode(json.dumps(patch).encode()).decode()
    return {"uid": request["uid"], "allowed": True, "patchType": "JSONPatch", "patch": encoded}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        response = answer(review["request"], os.environ["PROXY_IMAGE"])
        body = json.dumps({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
        pass


def main() -> None:
    config.load_incluster_config()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*sys.argv[1:])
    server = ThreadingHTTPServer(("", 8443), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


if __name__ == "__main__":
    main()
