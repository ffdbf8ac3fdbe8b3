"""A whole project on the node: what a team has that has forked the repository, before and after `jukebox bootstrap`.

All tests of a project share this one, in the order of its life (``conftest.ORDER``).

``up`` makes its surroundings: Gitea as the Git host, and as pods of the CI image an S3 server with sample data, a
package index (the node has no way out) and the stand-ins of the pipeline server and the operators; beside them run Argo
CD and KServe. The fork is a clone in ``build/cluster/jukebox``, with the settings of this place. ``bootstrap`` gives it
to Argo CD, which brings up all else; who commits and pushes there then starts a training.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.config import Config

from scripts.pins import PIN, read_pin, render
from tests.active_model import TABLES
from tests.cluster import argocd, build, git_host, images, kserve, kubeflow, node, openshift_ai, stand_ins
from tests.cluster.build import run, say
from tests.cluster.kubectl import Kubectl
from tests.gitea import Gitea
from tests.kfp import deploy
from tests.models.jukebox.small import generate

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
FOLDER = ROOT / "build" / "cluster"
FORK = FOLDER / "jukebox"
SETTINGS = FORK / "manifests" / "settings" / "settings.yaml"
ENVIRONMENT = FOLDER / "env"
KUBECONFIG = FOLDER / "kubeconfig"
KUBEFLOW = os.environ.get("PLATFORM") == "kubeflow"  # else OpenShift AI
NAMESPACE = "ada" if KUBEFLOW else "ada-jukebox"  # that of a Profile has its name
CI_NAMESPACE = f"{NAMESPACE}-ci"
APPLICATION = f"{NAMESPACE}.prod"
TRACKING = "argocd.argoproj.io/tracking-id"
# The kinds that the overlay holds, in words of kubectl.
KINDS = ",".join(
    (
        "configmaps,cronjobs,datasciencepipelinesapplications,deployments,eventlisteners.triggers.tekton.dev,inferenceservices",
        "httproutes.gateway.networking.k8s.io,limitranges,networkpolicies,persistentvolumeclaims,pipelines.tekton.dev,poddisruptionbudgets,podmonitors",
        "prometheusrules,resourcequotas,routes,servicemonitors,services,servingruntimes",
        "tasks.tekton.dev,triggerbindings.triggers.tekton.dev,triggers.triggers.tekton.dev",
        "triggertemplates.triggers.tekton.dev,alertmanagerconfigs,trustyaiservices",
    )
)
OVERLAY = f"manifests/overlays/{'kubeflow' if KUBEFLOW else 'openshift-ai'}/prod"
SURROUNDINGS = "surroundings"
BRANCH, PRODUCTION = "main", "production"  # what the fork trains from, and what its production follows
SERVICES = ("git", "packages", "s3")  # of the surroundings
# What is in the namespace of Tekton, in words of kubectl.
CI = re.compile(
    r"(event|http)?(listener|route)s?(\..*)?/.*|(pipelinerun|taskrun|cronjob|configmap/jukebox-(settings|images|commits)).*"
    r"|(secret|role|rolebinding|serviceaccount)s?/jukebox-(senders|listener|git-host|registry|chat|retain|runs|source|images)"
    r"|(deployment|service)s?/(el-jukebox|jukebox-listener(-proxy)?|way-to-listener)"
)
PROGRAMS = ("forward_proxy.py", "openshift.py", "operators.py", "package_index.py")
DEVELOPER = f"--namespace={SURROUNDINGS}"  # where the account of that name is
Resource = dict[str, Any]

# Of Services that are reached from outside the cluster, where its names are not known: for the latter two that is what
# a router does elsewhere. Kubernetes gives none of a /24 network's first sixteen to a Service that asks for no address.
PIPELINE_SERVER = "10.213.2.11"
LISTENER = "10.213.2.12"
MODEL_SERVER = "10.213.2.13"
MODEL_SERVER_PORTS = (80, 8888) if KUBEFLOW else (443, 8443)
MODEL_SERVER_URL = f"{'http' if KUBEFLOW else 'https'}://{MODEL_SERVER}"  # with the proxy before it, or without
SERVER = deploy.KUBEFLOW if KUBEFLOW else deploy.Place(NAMESPACE)
ROWS = 20_000
ROOM = 15  # GB of disk that it takes on the node, besides the caches
BUCKET = "data"
TRAINING = "jukebox-training"  # the repository of what is built in the cluster
REGISTRY = node.GUARDED_REGISTRY if KUBEFLOW else node.REGISTRY  # of the project's own images
# What `continuous-training` runs of the tests: all of them take minutes, and are run by `make test`.
TESTS = "tests/core/test_options.py"


@dataclass(frozen=True)
class Project:
    """The project whose surroundings ``up`` has made."""

    kubectl: Kubectl

    @property
    def ci(self) -> Kubectl:
        return self.kubectl.within(CI_NAMESPACE)

    def of(self, name: str) -> Kubectl:
        """The namespace, of the project's two, that a resource is in, ``<kind>/<name>``."""
        return self.ci if CI.fullmatch(name) else self.kubectl

    @property
    def surroundings(self) -> Kubectl:
        return self.kubectl.within(SURROUNDINGS)

    @property
    def argocd(self) -> Kubectl:
        return self.kubectl.within(argocd.NAMESPACE)

    def address(self, service: str) -> str:
        """Host and port of a Service, from this machine, when it can be reached."""
        return (self.surroundings if service in SERVICES else self.of(f"service/{service}")).reach(service)

    @cached_property
    def git_host(self) -> Gitea:
        """The Git host, as its administrator."""
        return git_host.reach(self.surroundings)

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the fork."""
        return dict(yaml.safe_load(SETTINGS.read_text())["data"])

    def secret(self, name: str, key: str) -> str:
        """A value of a Secret."""
        return base64.b64decode(self.of(f"secret/{name}").get(f"secret/{name}")["data"][key]).decode()

    @cached_property
    def s3(self) -> Any:
        """A client of the S3 server."""
        return boto3.client(
            "s3",
            endpoint_url=f"http://{self.address('s3')}",
            aws_access_key_id=self.secret("jukebox-s3", "AWS_ACCESS_KEY_ID"),
            aws_secret_access_key=self.secret("jukebox-s3", "AWS_SECRET_ACCESS_KEY"),
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, proxies={}),
        )

    def upload(self, tables: Mapping[str, Path]) -> None:
        """Put the tables where the pipeline finds them."""
        for name, file in tables.items():
            self.s3.upload_file(str(file), BUCKET, f"{name}/{name}.parquet")

    def git(self, *arguments: str) -> str:
        """Git in the fork."""
        return run("git", "-C", FORK, *arguments)

    def commit(self, message: str) -> str:
        """Commit what is changed in the fork; return the commit's hash."""
        self.git("add", "--all")
        self.git("commit", "--quiet", f"--message={message}")
        return self.git("rev-parse", "HEAD").strip()

    def push(self, *branches: str) -> None:
        """Push the fork, by default to the branch that it trains from, of which the Git host tells the listener.

        Of ``PRODUCTION``, which Argo CD follows, nobody is told: nothing is trained.
        """
        for branch in branches or (BRANCH,):  # of a shallow clone, git takes only one new branch at a time
            self.git("push", "--quiet", "origin", f"HEAD:refs/heads/{branch}")

    def pull(self) -> None:
        """Bring the fork to what its branch is at: a pull request was merged."""
        self.git("pull", "--quiet", "--ff-only", "origin", BRANCH)

    def pin(self, version: int) -> None:
        """Commit that production serves a version, with the content that the model store has under its number."""
        pin = read_pin(FORK)
        file = self.kubectl.model_store(f"{pin.model}-model-pvc") / pin.model / str(version) / "model.onnx"
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        (FORK / PIN).write_text(render(replace(pin, version=version, sha256=sha256)))
        self.commit(f"Serve {pin.model} {version}")

    def jukebox(self, *arguments: str, kubeconfig: Path = KUBECONFIG, code: Path = ROOT) -> str:
        """The command line with the fork's settings, as its owner calls it, or who has a kubeconfig.

        Returns what it prints. ``code`` is the checkout that it is of: a model of the fork is known there alone.
        """
        words = {"KUBECONFIG": str(kubeconfig), "JUKEBOX_SETTINGS": str(SETTINGS), "PYTHONPATH": str(code)}
        path = f"{node.KUBECTL.parent}:{os.environ['PATH']}"
        program = Path(sys.executable).parent / "jukebox"
        return node.patiently(lambda: run(program, *arguments, env={**os.environ, **words, "PATH": path}))

    def inside(self, *arguments: str) -> str:
        """The command line in a pod, which reaches the Git host by the name that the settings give it.

        Returns what it prints. It has the project's token.
        """
        name = f"jukebox-{secrets.token_hex(4)}"
        held = {"settings.yaml": SETTINGS.read_text()}
        token = {key: self.secret("jukebox-git-host", key) for key in ("token", "repository")}
        pod = {
            "restartPolicy": "Never",
            "volumes": [
                {"name": "settings", "configMap": {"name": name}},
                {"name": "git-host", "secret": {"secretName": name}},
            ],
            "containers": [
                {
                    "name": "jukebox",
                    "image": self.settings["ci-image"],
                    "command": ["jukebox", *arguments],
                    "env": [
                        {"name": "HOME", "value": "/tmp"},
                        {"name": "JUKEBOX_SETTINGS", "value": "/settings/settings.yaml"},
                    ],
                    "volumeMounts": [
                        {"name": "settings", "mountPath": "/settings"},
                        {"name": "git-host", "mountPath": "/git-host"},
                    ],
                }
            ],
        }
        self.surroundings.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": held},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": token},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod},
        )

        def ended() -> bool:
            return str(self.surroundings.get(f"pod/{name}")["status"]["phase"]) in ("Succeeded", "Failed")

        node.wait(f"end of the pod {name}", ended)
        said = self.surroundings("logs", name)
        assert self.surroundings.get(f"pod/{name}")["status"]["phase"] == "Succeeded", said
        self.surroundings("delete", f"pod/{name}", f"configmap/{name}", f"secret/{name}")
        return said

    def get(self, name: str) -> Any:
        """A resource, or None."""
        text = self.of(name)("get", name, "--ignore-not-found", "--output=json")
        return json.loads(text) if text.strip() else None

    def applied(self) -> dict[str, Resource]:
        """What Argo CD keeps in both namespaces, by kind and name; those of Tekton's with ci/ between them."""
        return {
            f"{item['kind']}/{between}{item['metadata']['name']}": item
            for kubectl, between in ((self.kubectl, ""), (self.ci, "ci/"))
            for item in kubectl.get(KINDS)["items"]
            if item["metadata"].get("annotations", {}).get(TRACKING, "").endswith(f"/{item['metadata']['name']}")
            and not item["metadata"].get("ownerReferences")
        }

    def sync(self) -> None:
        """Wait until Argo CD has applied the commit that the fork is at, and all of it is well."""
        commit = self.git("rev-parse", "HEAD").strip()

        def ready() -> bool:
            if argocd.synced(self.argocd, APPLICATION, commit):
                return True
            raise RuntimeError(json.dumps(argocd.status(self.argocd, APPLICATION))[:2000])

        node.wait(f"sync of {commit}", ready)


def up(kubectl: Kubectl) -> Project:
    """Make the surroundings of the project, unless they are there."""
    project = Project(kubectl.within(NAMESPACE))
    if kubectl("get", "namespace", NAMESPACE, "--ignore-not-found"):
        return project
    # A push shall have something to build; its packages are those of the last, unless they shall come through a proxy.
    images.forget(TRAINING, but=None if KUBEFLOW else "deps-")
    say("installing Argo CD and KServe")
    with ThreadPoolExecutor() as pool:  # each waits for its pods
        installed = [pool.submit(install, kubectl) for install in (argocd.install, kserve.install, stand_ins.install)]
        ci = images.of_containerfile("jukebox-ci", "ci")
        packages = images.packages("jukebox-ci")
        for each in installed:
            each.result()
    say(f"making the surroundings of a project in namespace {NAMESPACE}")
    for space in (project.kubectl, project.ci, project.surroundings):
        space.create_namespace()
    # The Git host is there, and comes to the listener by OpenShift's router elsewhere; Kubeflow's gateway is named so.
    kubectl("label", "namespace", SURROUNDINGS, "policy-group.network.openshift.io/ingress=")
    node.certificate(
        "services",
        "/CN=services",
        f"subjectAltName=DNS:{host('packages')},DNS:{host(openshift_ai.NAME)},DNS:{kubeflow.PACKAGES},"
        f"DNS:{SERVER.name}.{SERVER.namespace}.svc,IP:{PIPELINE_SERVER},IP:{MODEL_SERVER}",
    )
    if KUBEFLOW:
        kubeflow.make_namespace(project.kubectl)
        kubeflow.restrict(project.ci)
        kubeflow.restrict_tekton(kubectl)
    else:
        openshift_ai.mark_namespace(project.kubectl)
        openshift_ai.mark_namespace(project.ci)
    environment(project)
    clone(project, ci)
    project.surroundings.apply(git_host.settings(host(git_host.NAME)), *git_service())
    project.surroundings.wait("condition=Available", f"deployment/{git_host.NAME}")
    keys = secret(project, git_host.populate(project.surroundings))
    project.surroundings.apply(*surroundings(project, keys), *services(ci, packages))
    project.surroundings.wait("condition=Available", "deployment", "--all")
    if not KUBEFLOW:
        project.surroundings.reach(openshift_ai.NAME)
        kubectl.apply(openshift_ai.hook(SURROUNDINGS))  # before there is a pod that it is for
    for space in (project.kubectl, project.ci):
        space.apply(*held(space.namespace))
    kubectl.apply(*pipeline_server(ci))
    kubectl.within(SERVER.namespace).wait("condition=Available", "deployment", "--all")
    project.s3.create_bucket(Bucket=BUCKET)
    folder = FOLDER / "data"
    folder.mkdir(parents=True, exist_ok=True)
    project.upload(generate(folder, rows=ROWS, last_day=date.today(), labels=20))
    first_push(project)
    return project


def first_push(project: Project) -> None:
    """Push the fork to where production finds it, too, and let the Git host tell the listener of what comes later."""
    gitea = project.git_host
    project.git("remote", "set-url", "origin", f"{gitea.url}/{git_host.REPOSITORY}.git")
    with (FORK / ".git" / "config").open("a") as file:  # an argument would show it
        file.write(f'[http "{gitea.url}/"]\n\textraHeader = {gitea.header}\n')
    project.push(BRANCH, PRODUCTION)
    listener = f"http://jukebox-listener-proxy.{CI_NAMESPACE}.svc:8080"
    gitea.webhook(git_host.REPOSITORY, listener, project.secret("jukebox-senders", "gitea"))


def bootstrap(project: Project) -> None:
    """Give the project to Argo CD as its owner does, and wait until a push can start a training."""
    say(project.jukebox("bootstrap", "--health-checks", "--yes"))
    ready(project)


def ready(project: Project) -> None:
    """Wait until a push can start a training."""
    # The model store is in Argo CD's last wave.
    node.wait("model store", lambda: project.kubectl("get", "persistentvolumeclaim/jukebox-model-pvc"))
    node.wait("listener", lambda: project.ci("get", "deployment/el-jukebox", "service/el-jukebox"))
    project.ci.wait("condition=Available", "deployment/el-jukebox", "deployment/jukebox-listener-proxy")
    project.address("jukebox-listener-proxy")


def down(kubectl: Kubectl) -> None:
    """Take the project and its surroundings out of the node, where they are there."""
    project = Project(kubectl.within(NAMESPACE))
    if kubectl("get", "namespace", NAMESPACE, CI_NAMESPACE, "--ignore-not-found"):
        say(project.jukebox("teardown", "--data", "--yes"))
    kubectl("delete", "namespace", SURROUNDINGS, "--ignore-not-found")


def environment(project: Project) -> None:
    """Write ``ENVIRONMENT``, which lets a shell of this machine use the project, with a kubeconfig of its own."""
    # In a namespace that outlives the project: who takes that out shall see the end of it.
    project.surroundings.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "developer"}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"developer.{NAMESPACE}"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "developer", "namespace": SURROUNDINGS}],
        },
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    project.kubectl.log_in("developer", KUBECONFIG, DEVELOPER, "--duration=24h")
    variables = {
        "KUBECONFIG": KUBECONFIG,
        "PATH": f"{node.KUBECTL.parent}:{Path(sys.executable).parent}:$PATH",
        "JUKEBOX_SETTINGS": SETTINGS,
        "JUKEBOX_LISTENER": f"http://{LISTENER}",
        "KFP_ENDPOINT": f"{'http' if KUBEFLOW else 'https'}://{PIPELINE_SERVER}:{SERVER.port}",
        "MODEL_SERVER": MODEL_SERVER_URL,
    }
    ENVIRONMENT.write_text("".join(f'export {name}="{value}"\n' for name, value in variables.items()))


def tenant(project: Project) -> Path:
    """Write a kubeconfig of somebody who has the role admin of the project's two namespaces, and no other right."""
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "tenant"}}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"}
    subject = {"kind": "ServiceAccount", "name": "tenant", "namespace": SURROUNDINGS}
    project.surroundings.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "tenant"}})
    for space in (project.kubectl, project.ci):
        space.apply({**rbac, "kind": "RoleBinding", "roleRef": role, "subjects": [subject]})
    file = FOLDER / "tenant"
    project.surroundings.log_in("tenant", file)
    return file


def host(service: str) -> str:
    """The name of a Service of the surroundings, in the cluster."""
    return f"{service}.{SURROUNDINGS}.svc"


def settings(ci: str) -> dict[str, str]:
    """What the fork has in its settings."""
    return {
        **(kubeflow.settings(host("proxy")) if KUBEFLOW else {}),
        "repository": f"http://{host(git_host.NAME)}/{git_host.REPOSITORY}",
        "git-host": "gitea",
        "namespace": NAMESPACE,
        "ci-namespace": CI_NAMESPACE,
        "cluster-domain": "cluster.local",
        "argo-cd": "argo-cd",
        "image": f"{REGISTRY}/{TRAINING}",
        "ci-image": ci.replace(node.REGISTRY, REGISTRY),
        "base-image": f"{REGISTRY}/library/{images.PYTHON}",
        "package-index": f"https://{kubeflow.PACKAGES if KUBEFLOW else host('packages')}/simple",
        "model-server-image": kserve.model_server().replace(node.REGISTRY, REGISTRY),
        "data": "".join(f"{name}: s3://{BUCKET}/{name}/*.parquet\n" for name in TABLES),
        "storage-class": "standard",
        "storage-size": "1Gi",
        "s3-host": f"{host('s3')}:8333",
        "s3-bucket": BUCKET,
        # What is in its surroundings may be replaced by another pod.
        **{f"{place}-cidr": node.PODS for place in ("git", "index", "data", "s3")},
        **{f"{place}-cidr": f"{node.ADDRESS}/32" for place in ("api", "registry")},
    }


def clone(project: Project, ci: str) -> None:
    """Clone the repository to ``FORK``, and fill in the settings."""
    shutil.rmtree(FORK, ignore_errors=True)
    run("git", "clone", "--quiet", ROOT, FORK)
    document = yaml.safe_load(SETTINGS.read_text())
    document["data"] |= settings(ci)
    SETTINGS.write_text(yaml.safe_dump(document, sort_keys=False))
    params = yaml.safe_load((FORK / "tekton/pipelines/continuous-training.yaml").read_text())["spec"]["params"]
    [place] = [place for place, param in enumerate(params) if param["name"] == "tests"]
    few = {"op": "replace", "path": f"/spec/params/{place}/default", "value": TESTS}
    patch(FORK / OVERLAY, Pipeline=[few], ServingRuntime=SMALL)
    for name, value in {"user.name": "Ada", "user.email": "ada@example.com"}.items():
        project.git("config", name, value)
    project.commit("Fill in the settings")


# A model server that leaves room for others on two cores.
SMALL = [
    {
        "op": "replace",
        "path": "/spec/containers/0/resources",
        "value": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
    }
]


def patch(overlay: Path, **operations: list[Resource]) -> None:
    """Give an overlay patches: JSON patches by the kind that they are for."""
    file = overlay / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    patches = [{"target": {"kind": kind}, "patch": json.dumps(each)} for kind, each in operations.items()]
    file.write_text(yaml.safe_dump({**kustomization, "patches": patches}, sort_keys=False))


# What an identity may do, in the words of the S3 server, by the option that gives its keys. The model store is a claim.
IDENTITIES = {"data": [f"Read:{BUCKET}", f"List:{BUCKET}"], "s3": ["Admin"]}


def secret(project: Project, token: str) -> dict[str, dict[str, str]]:
    """Make the project's Secrets, with its token of the Git host, as its owner does; return the keys of S3."""
    keys = {
        identity: {
            "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
            "AWS_S3_ENDPOINT": f"http://{host('s3')}:8333",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for identity in IDENTITIES
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {"git-token": token}
        for identity, held in keys.items():
            files[identity] = "".join(f"{name}={value}\n" for name, value in held.items())
        if KUBEFLOW:
            login = json.dumps({"auths": {node.GUARDED_REGISTRY: {"auth": node.REGISTRY_LOGIN}}})
            files |= {"registry": login, "pull": login}
        for name, text in files.items():
            Path(folder, name).write_text(text)
        project.jukebox("secrets", *(f"--{name}-file={Path(folder, name)}" for name in files))
    return keys


def held(namespace: str) -> Iterable[Resource]:
    """What a namespace of the project holds before Argo CD looks at it: the CA that is trusted, and a way in."""
    trusted = {"ca-bundle.crt": node.CA.read_text()}
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "jukebox-trusted-ca"}, "data": trusted}
    if namespace == NAMESPACE:
        yield from around_model_server("jukebox")
    else:
        yield way_in("way-to-listener", LISTENER, 80, 8080, {"app.kubernetes.io/name": "listener-proxy"})
    # The operators see and set what is there.
    everything = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "patch"]}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "operators"}}
    yield {**rbac, "kind": "Role", "rules": [everything]}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operators"}
    account = {"kind": "ServiceAccount", "name": "default", "namespace": SURROUNDINGS}
    yield {**rbac, "kind": "RoleBinding", "roleRef": role, "subjects": [account]}


def around_model_server(model: str) -> Iterable[Resource]:
    """A way in to a model's server, and on OpenShift AI what the proxy before it needs."""
    labels = {"serving.kserve.io/inferenceservice": model}
    yield way_in("way-to-model-server", MODEL_SERVER, *MODEL_SERVER_PORTS, labels)
    if not KUBEFLOW:
        yield from openshift_ai.before_model_server(model, NAMESPACE, *pem()[:2])


def way_in(name: str, address: str, port: int, target: int, labels: dict[str, str]) -> Resource:
    """A Service with an address that this machine knows."""
    spec = {"clusterIP": address, "selector": labels, "ports": [{"port": port, "targetPort": target}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def pipeline_server(ci: str) -> Iterable[Resource]:
    """The pipeline server, in the project's namespace or in its own, with the policy that its operator brings."""
    labels = {"component": "data-science-pipelines"}
    for resource in deploy.resources(NAMESPACE, ci, *pem(), place=SERVER):
        if resource["kind"] == "Service":
            resource["spec"]["clusterIP"] = PIPELINE_SERVER
        if resource["kind"] == "Deployment":
            metadata = resource["spec"]["template"]["metadata"]
            metadata["labels"] = metadata["labels"] | labels
        yield resource
    yield {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "ds-pipelines-dspa", "namespace": SERVER.namespace},
        "spec": {
            "podSelector": {"matchLabels": labels},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": SERVER.port}]}],
        },
    }


def surroundings(project: Project, keys: dict[str, dict[str, str]]) -> Iterable[Resource]:
    """What the services need."""

    def secret(name: str, **data: str) -> Resource:
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}

    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": held["AWS_ACCESS_KEY_ID"], "secretKey": held["AWS_SECRET_ACCESS_KEY"]}],
            "actions": IDENTITIES[name],
        }
        for name, held in keys.items()
    ]
    yield secret("s3", **{"s3.json": json.dumps({"identities": identities})})
    certificate, private, _ = (each.decode() for each in pem())
    for name in ("packages", openshift_ai.NAME):
        yield secret(name, **{"tls.crt": certificate, "tls.key": private})
    yield from openshift_ai.grants({"kind": "ServiceAccount", "name": openshift_ai.NAME, "namespace": SURROUNDINGS})
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": openshift_ai.NAME}}


def git_service() -> Iterable[Resource]:
    """The Git host, at port 80."""
    image = git_host.image()
    # Its user has no name in the image.
    environment = {"USER": {"value": "git"}, "HOME": {"value": "/data"}}
    yield from service(git_host.NAME, image, 80, git_host.START, git_host.PORT, git_host.VOLUMES, **environment)


def services(ci: str, packages: Path) -> Iterable[Resource]:
    """What a real project finds in its surroundings, besides the Git host."""
    programs = {file: (HERE / file).read_text() for file in PROGRAMS}
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "programs"}, "data": programs}
    mounted = {"programs": {"configMap": {"name": "programs"}}}
    weed = "weed server -ip=127.0.0.1 -ip.bind=0.0.0.0 -dir=/data -volume.max=100 -master.volumeSizeLimitMB=64"
    weed += " -master.telemetry=false -master.peers=none -s3 -s3.config=/s3/s3.json -s3.iam=false"
    yield from service(
        *("s3", ci, 8333),
        f"{weed} -s3.port.iceberg=0 -s3.port.lance=0".split(),
        8333,
        {"s3": {"secret": {"secretName": "s3"}}, "data": {"emptyDir": {}}},
    )
    yield from service(
        *("packages", ci, 443),
        ["python3", "/programs/package_index.py", "/files", "/tls", "8443"],
        8443,
        {
            **mounted,
            "tls": {"secret": {"secretName": "packages"}},
            "files": {"hostPath": {"path": str(packages).replace(str(build.CACHE), "/mnt", 1), "type": "Directory"}},
        },
    )
    yield from (proxy(ci, mounted) if KUBEFLOW else admission(ci, mounted))
    yield deployment("operators", ci, ["python3", "/programs/operators.py", NAMESPACE, CI_NAMESPACE], mounted)


def proxy(ci: str, mounted: Resource) -> Iterable[Resource]:
    """The only way out of a company's network."""
    known = f"{kubeflow.PACKAGES}={host('packages')}"
    program = ["python3", "/programs/forward_proxy.py", "3128", known]
    yield from service("proxy", ci, 3128, program, 3128, mounted)


def admission(ci: str, mounted: Resource) -> Iterable[Resource]:
    """OpenShift's admission, which may ask the API server."""
    for resource in service(
        *(openshift_ai.NAME, ci, 443),
        ["python3", "/programs/openshift.py", "/tls/tls.crt", "/tls/tls.key"],
        8443,
        {**mounted, "tls": {"secret": {"secretName": openshift_ai.NAME}}},
        PROXY_IMAGE={"value": openshift_ai.proxy()},
    ):
        if resource["kind"] == "Deployment":
            account = {"serviceAccountName": openshift_ai.NAME, "automountServiceAccountToken": True}
            resource["spec"]["template"]["spec"].update(account)
        yield resource


def pem() -> list[bytes]:
    """Certificate and key of the services, and the CA."""
    return [(node.STATE / "pki" / name).read_bytes() for name in ("services.crt", "services.key", "ca.crt")]


def service(
    name: str, image: str, port: int, command: list[str], target: int, volumes: Resource, **environment: Resource
) -> Iterable[Resource]:
    """A Deployment whose pod listens at ``target``, and its Service, which does at ``port``."""
    made = deployment(name, image, command, volumes, **environment)
    pod = made["spec"]["template"]["spec"]
    pod["automountServiceAccountToken"] = False
    [container] = pod["containers"]
    container["readinessProbe"] = {"tcpSocket": {"port": target}, "periodSeconds": 1}
    yield made
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": made["spec"]["selector"]["matchLabels"],
            "ports": [{"port": port, "targetPort": target}],
        },
    }


def deployment(name: str, image: str, command: list[str], volumes: Resource, **environment: Resource) -> Resource:
    """A Deployment of one pod with these volumes, each at /<its name>."""
    labels = {"app.kubernetes.io/name": name}
    container = {
        "name": name,
        "image": image,
        "command": command,
        "env": [{"name": key, **value} for key, value in environment.items()],
        "volumeMounts": [{"name": volume, "mountPath": f"/{volume}"} for volume in volumes],
    }
    pod = {
        "enableServiceLinks": False,  # a server may take S3_PORT for an option
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"fsGroup": 1001},
        "containers": [container],
        "volumes": [{"name": volume, **source} for volume, source in volumes.items()],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
