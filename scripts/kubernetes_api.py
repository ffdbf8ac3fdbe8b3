"""The cluster's API, as far as the commands need it: resources that are applied, and what became of a run's pods."""

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

import urllib3
import yaml
from kubernetes import client, config

from pipeline.errors import ServerUnavailable
from pipeline.server import POD, TIMEOUT

Resource = dict[str, Any]
T = TypeVar("T")

RUN_LABEL = "pipeline/runid"  # on the Workflow and the pods of a run
ENDED = ("Succeeded", "Failed", "Error")  # the last phases of a Workflow
WORKFLOWS = ("argoproj.io", "v1alpha1", "workflows")


class ClusterRefuses(ServerUnavailable):
    """The cluster's API refuses a request; ``status`` is the HTTP status, ``reason`` what it says."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"The cluster refuses: {reason}")
        self.status = status
        self.reason = reason


class ClusterAway(ServerUnavailable):
    """The cluster's API does not answer."""


class Cluster:
    """The cluster of the pod that this runs in, else that of the kubeconfig; one namespace of it.

    Every call raises ClusterRefuses or ClusterAway. Raises ServerUnavailable where there is neither pod nor kubeconfig.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
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
                f"No cluster is known: {error}.\nLog in (oc login), or name a kubeconfig in KUBECONFIG."
            ) from None
        api = client.ApiClient(found)
        self._objects = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)

    def read(self, kind: tuple[str, str, str], name: str) -> Resource | None:
        """Return the resource of this name, or None; ``kind`` is group, version and plural."""
        group, version, plural = kind
        try:
            found: Resource = _call(
                lambda: self._objects.get_namespaced_custom_object(
                    group, version, self._namespace, plural, name, _request_timeout=TIMEOUT
                )
            )
        except ClusterRefuses as error:
            if error.status == 404:
                return None
            raise
        return found

    def create(self, kind: tuple[str, str, str], resource: Resource, *, dry_run: bool = False) -> Resource:
        """Create the resource, sent as JSON; return it as it was admitted."""
        group, version, plural = kind
        options = {"dry_run": "All"} if dry_run else {}
        created: Resource = _call(
            lambda: self._objects.create_namespaced_custom_object(
                group, version, self._namespace, plural, resource, _request_timeout=TIMEOUT, **options
            )
        )
        return created

    def patch(self, kind: tuple[str, str, str], name: str, patch: Resource) -> None:
        """Merge ``patch`` into the resource."""
        group, version, plural = kind
        _call(
            lambda: self._objects.patch_namespaced_custom_object(
                group, version, self._namespace, plural, name, patch, _request_timeout=TIMEOUT
            )
        )

    def workflows(self, run_id: str) -> list[Resource]:
        """Return the Workflows of a run: one, or more where its creation was tried again."""
        group, version, plural = WORKFLOWS
        found = _call(
            lambda: self._objects.list_namespaced_custom_object(
                group,
                version,
                self._namespace,
                plural,
                label_selector=f"{RUN_LABEL}={run_id}",
                _request_timeout=TIMEOUT,
            )
        )
        return list(found["items"])

    def pods(self, run_id: str) -> list[Resource]:
        """Return the pods of a run, as the API sends them."""
        answer = _call(
            lambda: self._core.list_namespaced_pod(
                self._namespace,
                label_selector=f"{RUN_LABEL}={run_id}",
                _request_timeout=TIMEOUT,
                _preload_content=False,
            )
        )
        return list(json.loads(answer.data)["items"])


def find_cluster(namespace: str) -> Cluster | None:
    """Return the cluster for those who can do without, or None where none is known."""
    try:
        return Cluster(namespace)
    except ServerUnavailable:
        return None


def _call(action: Callable[[], T]) -> T:
    try:
        return action()
    except client.ApiException as error:
        raise ClusterRefuses(int(error.status or 0), _reason(error)) from None
    except urllib3.exceptions.HTTPError as error:
        raise ClusterAway(f"The cluster's API does not answer: {type(error).__name__}") from None


def _reason(error: client.ApiException) -> str:
    """What the API says, without which webhook says so and without the resource that it may quote."""
    try:
        message = str(json.loads(error.body)["message"])
    except (ValueError, TypeError, KeyError):
        message = str(error.reason)
    return re.sub(r'^.*?admission webhook "[^"]*" denied the request: ', "", message, flags=re.DOTALL)[:2000]
