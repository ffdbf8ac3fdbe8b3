"""No name dangles in any overlay; and the check that says so sees when one does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.manifests.building import COMPONENTS, OVERLAYS, build, read_settings, with_components, with_rights
from tests.manifests.references import problems
from tests.tekton.manifests import Resource

Find = Callable[[str, str], Any]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_name_dangles(overlay: str, built: dict[str, list[Resource]], repository: Path) -> None:
    assert problems(with_rights(built, overlay), read_settings(repository)) == []


@pytest.mark.parametrize("component", sorted({*COMPONENTS} - {"s3-serving"}))
def test_a_component_adds_something_and_nothing_of_it_dangles(
    component: str, built: dict[str, list[Resource]], kubectl: str, repository: Path
) -> None:
    resources = build(kubectl, with_components(repository, "openshift-ai/prod", [component]))
    assert resources != built["openshift-ai/prod"]
    found = with_rights({**built, "openshift-ai/prod": resources}, "openshift-ai/prod")
    assert problems(found, read_settings(repository)) == []


def misname_account(find: Find) -> None:
    find("TriggerTemplate", "continuous-training")["spec"]["resourcetemplates"][0]["spec"]["taskRunSpecs"][0][
        "serviceAccountName"
    ] = "jukebox-bild"


def misname_role(find: Find) -> None:
    find("RoleBinding", "jukebox-release")["roleRef"]["name"] = "release"


def misname_subject(find: Find) -> None:
    find("RoleBinding", "jukebox-listener")["subjects"][0]["name"] = "listener"


def misname_secret(find: Find) -> None:
    find("AlertmanagerConfig", "jukebox")["spec"]["receivers"][0]["webhookConfigs"][0]["httpConfig"]["authorization"][
        "credentials"
    ]["name"] = "senders"


def misname_key(find: Find) -> None:
    external = find("DataSciencePipelinesApplication", "dspa")["spec"]["objectStorage"]["externalStorage"]
    external["s3CredentialsSecret"]["accessKey"] = "accesskey"


def misname_claim(find: Find) -> None:
    find("PersistentVolumeClaim", "jukebox-model-pvc")["metadata"]["name"] = "models"


def misname_runtime(find: Find) -> None:
    find("ServingRuntime", "jukebox-ovms")["metadata"]["name"] = "ovms"


def forget_format(find: Find) -> None:
    find("ServingRuntime", "jukebox-ovms")["spec"]["supportedModelFormats"][0]["version"] = "2"


def move_model(find: Find) -> None:
    find("InferenceService", "jukebox")["spec"]["predictor"]["model"]["storageUri"] = "pvc://jukebox-model-pvc"


def rename_port(find: Find) -> None:
    find("ServingRuntime", "jukebox-ovms")["spec"]["containers"][0]["ports"][0]["name"] = "rest"


def move_port(find: Find) -> None:
    find("ServingRuntime", "jukebox-ovms")["spec"]["containers"][0]["ports"][0]["containerPort"] = 8080


def scrape_elsewhere(find: Find) -> None:
    find("ServiceMonitor", "jukebox-listener")["spec"]["endpoints"][0]["port"] = "metrics"


def allow_elsewhere(find: Find) -> None:
    find("NetworkPolicy", "jukebox-model-server")["spec"]["ingress"][0]["ports"][0]["port"] = 9999


def rename_model(find: Find) -> None:
    find("InferenceService", "jukebox")["metadata"]["name"] = "songbird"


def rename_listener(find: Find) -> None:
    find("EventListener", "jukebox")["metadata"]["name"] = "events"


def rename_proxy(find: Find) -> None:
    find("Service", "jukebox-listener-proxy")["metadata"]["name"] = "proxy"


def rename_the_way_of_the_proxy(find: Find) -> None:
    find("Service", "jukebox-listener")["metadata"]["name"] = "listener"


def go_past_the_proxy(find: Find) -> None:
    find("Route", "jukebox-listener")["spec"]["to"]["name"] = "jukebox-listener"


def relabel_proxy(find: Find) -> None:
    find("Deployment", "jukebox-listener-proxy")["spec"]["template"]["metadata"]["labels"].clear()


def retrain_another(find: Find) -> None:
    find("AlertmanagerConfig", "jukebox")["spec"]["route"]["matchers"][0]["value"] = "songbird"


def misname_metric(find: Find) -> None:
    rule = find("PrometheusRule", "jukebox")["spec"]["groups"][0]["rules"][0]
    rule["expr"] = rule["expr"].replace("ovms_requests_fail", "ovms_requests_failed")


def alert_for_all(find: Find) -> None:
    find("PrometheusRule", "jukebox-training")["spec"]["groups"][0]["rules"][0]["expr"] = "kube_pod_created > 1"


def alert_for_another(find: Find) -> None:
    """Of what there is in the other namespace."""
    find("PrometheusRule", "jukebox-training")["metadata"].pop("namespace")


def move_account(find: Find) -> None:
    find("ServiceAccount", "jukebox-schedule")["metadata"]["namespace"] = "ada-jukebox"


def move_role(find: Find) -> None:
    find("Role", "jukebox-runs")["metadata"]["namespace"] = "ada-jukebox"


def bind_a_namesake(find: Find) -> None:
    """To the account of the same name in the other namespace, which is not there."""
    find("RoleBinding", "jukebox-release")["subjects"][0]["namespace"] = "ada-jukebox"


def move_proxy(find: Find) -> None:
    find("Service", "jukebox-listener-proxy")["metadata"].pop("namespace")


def read_the_secrets_of_the_ci(find: Find) -> None:
    find("AlertmanagerConfig", "jukebox")["spec"]["receivers"][0]["webhookConfigs"][0]["httpConfig"]["authorization"][
        "credentials"
    ] = {"name": "jukebox-senders", "key": "alert"}


def misname_metric_in_dashboard(find: Find) -> None:
    dashboard = find("ConfigMap", "jukebox-dashboard")["data"]
    dashboard["dashboard.json"] = dashboard["dashboard.json"].replace("jukebox:version", "jukebox:versions")


BROKEN: dict[Callable[[Find], None], str] = {
    misname_account: "runs as the ServiceAccount jukebox-bild",
    misname_role: "gives the Role release",
    misname_subject: "is for the ServiceAccount listener",
    misname_secret: "reads the Secret senders",
    misname_key: "reads the key accesskey",
    misname_claim: "reads the claim jukebox-model-pvc",
    misname_runtime: "runs in the ServingRuntime jukebox-ovms",
    forget_format: "which the ServingRuntime jukebox-ovms does not serve",
    move_model: "where no run publishes",
    rename_port: "asks at the port http",
    move_port: "does not listen at its port http",
    scrape_elsewhere: "asks at the port metrics",
    allow_elsewhere: "allows the port 9999",
    rename_model: "selects serving.kserve.io/inferenceservice=jukebox",
    rename_listener: "selects eventlistener=jukebox",
    rename_proxy: "leads to the Service jukebox-listener-proxy",
    rename_the_way_of_the_proxy: "hands on to the Service jukebox-listener",
    go_past_the_proxy: "leads to the Service jukebox-listener, which",
    relabel_proxy: "Service jukebox-listener-proxy leads to no pod",
    retrain_another: "waits for retrain=songbird",
    misname_metric: "uses the metric ovms_requests_failed",
    alert_for_another: "is not about its own namespace",
    move_account: "CronJob jukebox-schedule runs as the ServiceAccount jukebox-schedule",
    move_role: "gives the Role jukebox-runs, which is not there",
    bind_a_namesake: "is for the ServiceAccount jukebox-release, which is not there",
    move_proxy: "calls http://jukebox-listener-proxy.ada-jukebox-ci.svc:8080, where nobody listens",
    read_the_secrets_of_the_ci: "reads the Secret jukebox-senders, which nobody creates",
    alert_for_all: "is not about its own namespace",
    misname_metric_in_dashboard: "uses the metric jukebox:versions",
}


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
def test_a_broken_name_is_named(spoil: Callable[[Find], None], resources: list[Resource], repository: Path) -> None:
    def find(kind: str, name: str) -> Any:
        return next(r for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, name))

    spoil(find)
    found = problems(resources, read_settings(repository))
    assert any(BROKEN[spoil] in problem for problem in found), found
