"""The cluster's API, as far as the commands need it, with one way to ask for resources of any kind."""

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import urllib3
import yaml
from kubernetes import client, config
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random

from pipeline.core.errors import ClusterAway, ClusterRefuses, ServerUnavailable, SettingsInvalid
from pipeline.settings import Settings
from scripts.clients.pipeline_server import POD, TIMEOUT, find_server

Resource = dict[str, Any]
Resources = list[Resource]  # as a name, since a method is called list
Warnings = list[str]
T = TypeVar("T")

CI_NAMESPACE = "JUKEBOX_CI_NAMESPACE"  # the variable
PREFIX = "jukebox.github.io"  # of labels and annotations of our own
OURS = "app.kubernetes.io/name=continuous-training"  # on every PipelineRun that an event has started
RUN_LABEL = "pipeline/runid"  # on the Workflow and the pods of a run
ENDED = ("Succeeded", "Failed", "Error")  # the last phases of a Workflow


class Kind(NamedTuple):
    """A kind of resources; those without a group are Kubernetes' own."""

    group: str
    version: str
    plural: str
    namespaced: bool = True


CLAIMS = Kind("", "v1", "persistentvolumeclaims")
CONFIG_MAPS = Kind("", "v1", "configmaps")
EVENTS = Kind("", "v1", "events")
PIPELINE_RUNS = Kind("tekton.dev", "v1", "pipelineruns")
PODS = Kind("", "v1", "pods")
SECRETS = Kind("", "v1", "secrets")
TASK_RUNS = Kind("tekton.dev", "v1", "taskruns")
WORKFLOWS = Kind("argoproj.io", "v1alpha1", "workflows")


class Cluster:
    """The cluster of the pod that this runs in, else that of the kubeconfig; one namespace of it.

    Every call raises ClusterRefuses or ClusterAway. Raises ServerUnavailable outside of a pod without a kubeconfig.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        found = client.Configuration()
        # The client's own retries would follow each other at once.
        found.retries = False
        try:
            if (POD / "token").is_file():
                config.load_incluster_config(client_configuration=found)
            else:
                config.load_kube_config(client_configuration=found)
        except (config.ConfigException, yaml.YAMLError, OSError) as error:
            raise ServerUnavailable(
                f"No cluster is configured: {error}.\nLog in (on OpenShift: oc login), or set KUBECONFIG."
            ) from None
        self._api = client.ApiClient(found)

    def read(self, kind: Kind, name: str) -> Resource | None:
        """Return the resource of this name, or None."""
        try:
            return self._call("GET", self._path(kind, name))
        except ClusterRefuses as error:
            if error.status == 404:
                return None
            raise

    def list(self, kind: Kind, selector: str = "", *, fields: str = "") -> Resources:
        """Return the resources of a kind; only those that the label selector and the field selector name."""
        asked = {"labelSelector": selector, "fieldSelector": fields}
        found = self._call("GET", self._path(kind), {key: value for key, value in asked.items() if value})
        return [*found["items"]]

    def get(self, path: str) -> Resource:
        """Return what is answered on a path that is none of a resource."""
        return self._call("GET", path)

    def create(self, kind: Kind, resource: Resource, *, dry_run: bool = False) -> Resource:
        """Create the resource, sent as JSON; return it as it was admitted."""
        return self._call("POST", self._path(kind), {"dryRun": "All"} if dry_run else {}, resource)

    def try_create(self, kind: Kind, resource: Resource) -> tuple[Resource, Warnings]:
        """Create the resource by a dry run; return it as it was admitted, and what the API server warns of."""
        found, headers = self._answer("POST", self._path(kind), {"dryRun": "All"}, resource)
        # As 299 - "would violate PodSecurity …", in which a backslash escapes quotes and backslashes.
        texts = (re.fullmatch(r'299 \S+ "(.*)"', each) for each in headers.getlist("Warning"))
        return found, [re.sub(r"\\(.)", r"\1", text[1]) for text in texts if text]

    def patch(self, kind: Kind, name: str, patch: Resource, *, dry_run: bool = False) -> None:
        """Merge ``patch`` into the resource."""
        self._call("PATCH", self._path(kind, name), {"dryRun": "All"} if dry_run else {}, patch)

    def delete(self, kind: Kind, name: str) -> None:
        """Delete the resource, and in time what it owns; it may be gone already."""
        try:
            self._call("DELETE", self._path(kind, name), {"propagationPolicy": "Background"})
        except ClusterRefuses as error:
            if error.status != 404:
                raise

    def workflows(self, run_id: str) -> Resources:
        """Return the Workflows of a run: one, or more where its creation was tried again."""
        return self.list(WORKFLOWS, f"{RUN_LABEL}={run_id}")

    def pods(self, run_id: str) -> Resources:
        """Return the pods of a run, as the API sends them."""
        return self.list(PODS, f"{RUN_LABEL}={run_id}")

    def events(self, name: str) -> Resources:
        """Return the events about what has this name, of any kind."""
        return self.list(EVENTS, fields=f"involvedObject.name={name}")

    def log(self, pod: str, container: str, lines: int) -> str:
        """Return the last lines of a container's log; what is not UTF-8 in it is replaced."""
        query = {"container": container, "tailLines": str(lines)}
        # Not read by the client: it takes what looks like JSON for JSON, and fails at what is not UTF-8.
        answer, _ = self._answer("GET", f"{self._path(PODS, pod)}/log", query, None, read=False)
        return bytes(answer.data).decode(errors="replace")

    def _path(self, kind: Kind, name: str = "") -> str:
        group = f"apis/{kind.group}" if kind.group else "api"
        namespace = f"namespaces/{self.namespace}/" if kind.namespaced else ""
        return f"/{group}/{kind.version}/{namespace}{kind.plural}" + (f"/{quote(name, safe='')}" if name else "")

    def _call(self, method: str, path: str, query: Mapping[str, str] | None = None, body: object = None) -> Resource:
        found: Resource = self._answer(method, path, query, body)[0]
        return found

    def _answer(
        self, method: str, path: str, query: Mapping[str, str] | None, body: object, *, read: bool = True
    ) -> tuple[Any, urllib3.HTTPHeaderDict]:
        """Return the resource that is answered, or the response as it is if it is not to be read, and its headers."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            found, _, headers = self._api.call_api(
                path,
                method,
                query_params=dict(query or {}),
                header_params={"Accept": "application/json" if read else "*/*", "Content-Type": kind},
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _preload_content=read,
                _request_timeout=TIMEOUT,
            )
        except client.ApiException as error:
            raise ClusterRefuses(int(error.status or 0), *_reason(error)) from None
        except urllib3.exceptions.HTTPError as error:
            raise ClusterAway(f"The cluster's API does not answer: {type(error).__name__}") from None
        return found, headers


def project_cluster(settings: Settings) -> Cluster:
    """Return the cluster, in the namespace of the pipeline's runs; raises SettingsInvalid if none is set."""
    return _named(find_server(settings).namespace, "JUKEBOX_NAMESPACE")


def ci_cluster(settings: Settings) -> Cluster:
    """Return the cluster, in the namespace of Tekton and its Secrets; raises as ``project_cluster``."""
    return _named(os.environ.get(CI_NAMESPACE) or settings.ci_namespace, CI_NAMESPACE)


def _named(namespace: str, variable: str) -> Cluster:
    if "<" in namespace:
        raise SettingsInvalid(
            f"The namespace {namespace} is a placeholder: set yours in manifests/settings/settings.yaml or in "
            f"{variable}"
        )
    return Cluster(namespace)


def find_cluster(namespace: str) -> Cluster | None:
    """Return the cluster for those who can do without, or None where none is known."""
    try:
        return Cluster(namespace)
    except ServerUnavailable:
        return None


def again_while_outrun(attempt: Callable[[], T]) -> T:
    """Try again if another client changes the resource between its read and its write."""
    retrying = Retrying(
        stop=stop_after_attempt(10),
        wait=wait_random(0, 1),
        retry=retry_if_exception(lambda error: isinstance(error, ClusterRefuses) and error.status == 409),
        reraise=True,
    )
    return retrying(attempt)


def _reason(error: client.ApiException) -> tuple[str, str]:
    """What the API says, without the resource that it may quote, and the webhook that says so, if one does."""
    try:
        message = str(json.loads(error.body)["message"])
    except (ValueError, TypeError, KeyError):
        message = str(error.reason)
    found = re.match(r'.*?admission webhook "([^"]*)" denied the request: (.*)', message, re.DOTALL)
    return (found[2][:2000], found[1]) if found else (message[:2000], "")
