"""A stand-in for the operators of OpenShift AI, for OpenShift's router and for a gateway, in some namespaces.

The pipeline server is ready when its pod is; a route of either kind is admitted at once. It runs in a pod of the CI
image, as ``python3 operators.py NAMESPACE …``.
"""

import sys
import time

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

DSPA = ("datasciencepipelinesapplications.opendatahub.io", "v1")
ROUTE = ("route.openshift.io", "v1")
HTTP_ROUTE = ("gateway.networking.k8s.io", "v1")
SERVER = "ds-pipeline-dspa"


def look(namespace: str) -> None:
    """Bring each status to what it should be."""
    resources = client.CustomObjectsApi()

    def tell(api: tuple[str, str], plural: str, status: dict[str, object]) -> None:
        for each in resources.list_namespaced_custom_object(*api, namespace, plural)["items"]:
            if each.get("status") != status:
                name = each["metadata"]["name"]
                resources.patch_namespaced_custom_object_status(*api, namespace, plural, name, {"status": status})

    servers = client.AppsV1Api().list_namespaced_deployment(namespace).items
    up = any(each.metadata.name == SERVER and each.status.available_replicas for each in servers)
    ready = {"type": "Ready", "status": "True" if up else "False"}
    tell(DSPA, "datasciencepipelinesapplications", {"conditions": [ready]})
    tell(ROUTE, "routes", {"ingress": [{"conditions": [{"type": "Admitted", "status": "True"}]}]})
    accepted = {"controllerName": "jukebox.test/gateway", "conditions": [{"type": "Accepted", "status": "True"}]}
    tell(HTTP_ROUTE, "httproutes", {"parents": [{**accepted, "parentRef": {"name": "front"}}]})


def main() -> None:
    config.load_incluster_config()
    while True:
        try:
            for namespace in sys.argv[1:]:
                look(namespace)
        except ApiException as error:
            print(error.status, error.reason, flush=True)
        time.sleep(1)


if __name__ == "__main__":
    main()
