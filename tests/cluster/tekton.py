"""Tekton Pipelines and Triggers, from the manifests that their own modules keep.

They are applied as they are, with what a release fills in: each ``ko://`` name becomes the image that was built from
that package, and the shell image is one that the node has. The registry's CA goes into the ConfigMap that Tekton
has for it. Left out are the remote resolvers, whose image needs more than a binary: without them a Pipeline names
Tasks of its own namespace. So is the controller that sends events to a sink, as there is none.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import build, images, node
from tests.cluster.kubectl import Kubectl

PROJECTS = ("github.com/tektoncd/pipeline", "github.com/tektoncd/triggers")
FOLDERS = ("100-namespace", ".", "300-crds", "interceptors")


def install(kubectl: Kubectl, shell: str) -> None:
    """Apply Tekton, and wait until its webhooks judge and its interceptors answer.

    Args:
        shell: the image with a POSIX shell that puts a step's script in place.
    """
    built = build.build("tekton")
    names = {
        str(program.relative_to(built)): images.of_binary(str(program.relative_to(built)), program)
        for project in PROJECTS
        for program in (built / project / "cmd").iterdir()
    }

    def filled(file: Path) -> list[dict[str, Any]]:
        text = re.sub(r"ko://([\w./-]+)", lambda found: names[found[1]], file.read_text())
        text = re.sub(r"cgr\.dev/chainguard/busybox@sha256:\w+", shell, text)
        return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]

    documents = [
        document
        for project in PROJECTS
        for folder in FOLDERS
        for file in sorted((built / "config" / project / folder).glob("*.yaml"))
        if file.name != "events.yaml"
        for document in filled(file)
    ]
    for document in documents:
        if document["metadata"]["name"] == "config-registry-cert":
            document["data"] = {"cert": node.CA.read_text()}
        if document["kind"] == "Deployment":
            quicken(document["spec"]["template"]["spec"])

    # Triggers' webhook admits the interceptors, and their server gives its CA to those that are there when it starts,
    # or a minute later.
    first = ("Namespace", "CustomResourceDefinition")
    last = [document for document in documents if document["kind"] == "ClusterInterceptor"]
    last += [document for document in documents if document["metadata"]["name"] == "tekton-triggers-core-interceptors"]
    system = kubectl.within("tekton-pipelines")
    for kind in first:
        kubectl.apply(*(document for document in documents if document["kind"] == kind))
    kubectl.apply(*(document for document in documents if document["kind"] not in first and document not in last))
    system.wait("condition=Available", "deployment", "--all")
    node.wait("Tekton's webhooks", lambda: admitting(kubectl))
    kubectl.apply(*last)
    system.wait("condition=Available", "deployment", "--all")
    node.wait("Tekton's interceptors", lambda: intercepting(kubectl))


# By default its controller asks the API server for ten things a second, for which a run with a dozen tasks waits.
PIPELINES = {"-kube-api-qps": "50", "-kube-api-burst": "50"}
# Whether a listener is ready; as many seconds as before, it may be too busy to say.
TRIGGERS = {"-period-seconds": "1", "-failure-threshold": "30"}


def quicken(pod: dict[str, Any]) -> None:
    """Have a controller of Tekton work, and be asked whether it is ready, as often as a test wants to know."""
    for container in pod["containers"]:
        if probe := container.get("readinessProbe"):
            probe.update(initialDelaySeconds=0, periodSeconds=1)
        flags = {"tekton-pipelines-controller": PIPELINES, "tekton-triggers-controller": TRIGGERS}
        for flag, value in flags.get(container["name"], {}).items():
            container["args"] += [flag, value]  # the last counts


def admitting(kubectl: Kubectl) -> bool:
    """Whether all of Tekton's webhooks have set themselves up: until then the API server does not ask them."""
    configurations = kubectl.get("validatingwebhookconfigurations,mutatingwebhookconfigurations")["items"]
    hooks = [hook for configuration in configurations for hook in configuration["webhooks"]]
    conversions = [
        crd["spec"]["conversion"]["webhook"]
        for crd in kubectl.get("customresourcedefinitions")["items"]
        if crd["spec"].get("conversion", {}).get("strategy") == "Webhook"
    ]
    return all(hook.get("rules") for hook in hooks) and all(
        hook["clientConfig"].get("caBundle") for hook in hooks + conversions
    )


def intercepting(kubectl: Kubectl) -> bool:
    """Whether all interceptors have published their certificate: an EventListener waits for it."""
    return all(one["spec"]["clientConfig"].get("caBundle") for one in kubectl.get("clusterinterceptors")["items"])
