"""What holds for everything that is applied: images by digest, limits, restricted pods, labels, the least of rights."""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.prod_train_save_pipeline import S3_KEYS
from tests.manifests.building import OVERLAYS, of_kind, read_settings, walk
from tests.tekton.manifests import ROOT, Resource

DIGEST = re.compile(r"\S+@sha256:[0-9a-f]{64}")
# ClusterRoles, each with the reason for it.
CLUSTER_ROLES = {"jukebox-listener": "the listener watches two kinds that have no namespace"}


@pytest.fixture
def everything(built: dict[str, list[Resource]], laden: dict[str, list[Resource]]) -> list[Resource]:
    return [resource for resources in (*built.values(), *laden.values()) for resource in resources]


def containers(resources: list[Resource]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each container of ours outside Tekton's tasks, whose own tests look at them: its name, itself, its pod."""
    for resource in resources:
        for pod in walk(resource.get("spec")):
            # What the listener runs as is Triggers' image.
            for container in pod.get("containers", []) if resource["kind"] != "EventListener" else []:
                yield f"{resource['kind']}/{resource['metadata']['name']}", container, pod


def test_every_container_is_limited_and_restricted(everything: list[Resource]) -> None:
    found = list(containers(everything))
    assert {name for name, _, _ in found} >= {"ServingRuntime/jukebox-ovms", "CronJob/jukebox-schedule"}
    assert "Deployment/jukebox-listener-proxy" in {name for name, _, _ in found}
    for name, container, pod in found:
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][kind]), name
        security = {**pod.get("securityContext", {}), **container["securityContext"]}
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["runAsNonRoot"] is True, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name


def test_users_and_groups_are_what_the_platform_gives_or_what_it_lacks(built: dict[str, list[Resource]]) -> None:
    for overlay in OVERLAYS:
        given = {
            (key, value)
            for resource in built[overlay]
            for found in walk(resource)
            for key, value in found.items()
            if key in ("fsGroup", "runAsUser", "runAsGroup")
        }
        assert given == (
            set() if overlay.startswith("openshift-ai") else {("fsGroup", 1001), ("fsGroup", 0), ("runAsUser", 5000)}
        )


def test_no_sidecar_of_istios_stands_where_it_could_not_ask_istiod(built: dict[str, list[Resource]]) -> None:
    for environment in ("dev", "prod"):
        overlay = built[f"kubeflow/{environment}"]
        [listener] = of_kind(overlay, "EventListener")
        template = listener["spec"]["resources"]["kubernetesResource"]["spec"]["template"]
        [service] = of_kind(overlay, "InferenceService")
        [proxy] = of_kind(overlay, "Deployment")
        for metadata in (template["metadata"], proxy["spec"]["template"]["metadata"], service["metadata"]):
            assert metadata["labels"]["sidecar.istio.io/inject"] == "false"


def test_the_model_server_writes_nothing_and_has_no_token(built: dict[str, list[Resource]]) -> None:
    for overlay in OVERLAYS:
        [runtime] = of_kind(built[overlay], "ServingRuntime")
        [container] = runtime["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["readinessProbe"]["httpGet"]["path"] == "/v2/models/{{.Name}}/ready"
        assert "--file_system_poll_wait_seconds=1" in container["args"]
        assert '--plugin_config={"INFERENCE_PRECISION_HINT":"f32"}' in container["args"]
        assert "--metrics_enable" in container["args"]
        [service] = of_kind(built[overlay], "InferenceService")
        assert service["spec"]["predictor"]["automountServiceAccountToken"] is False
        modes = {"openshift-ai": None, "kubeflow": "Standard"}  # whose word depends on the platform's KServe
        mode = service["metadata"]["annotations"].get("serving.kserve.io/deploymentMode")
        assert mode == modes[overlay.partition("/")[0]]
        assert "canaryTrafficPercent" not in service["spec"]["predictor"]
        assert 1 <= service["spec"]["predictor"]["minReplicas"] <= service["spec"]["predictor"]["maxReplicas"]


def test_images_are_named_by_digest(built: dict[str, list[Resource]]) -> None:
    [runtime] = of_kind(built["kubeflow/prod"], "ServingRuntime")
    assert DIGEST.fullmatch(runtime["spec"]["containers"][0]["image"])
    setting = read_settings(ROOT)["model-server-image"]
    assert DIGEST.fullmatch(setting) or setting.endswith("@sha256:<DIGEST>"), "the model server's image has no digest"


def test_no_image_is_the_latest(everything: list[Resource]) -> None:
    for resource in everything:
        for found in walk(resource):
            image = found.get("image")
            assert not (isinstance(image, str) and image.endswith(":latest")), resource["metadata"]["name"]


def test_nothing_in_git_is_a_secret(everything: list[Resource]) -> None:
    assert of_kind(everything, "Secret") == []
    for resource in of_kind(everything, "SealedSecret"):
        assert set(resource["spec"]["encryptedData"].values()) == {"<SEALED>"}


def test_everything_is_labelled_and_nothing_by_instance(everything: list[Resource]) -> None:
    for resource in everything:
        name = f"{resource['kind']}/{resource['metadata']['name']}"
        if name == "ConfigMap/argocd-cm":
            continue  # not ours: it is added to
        labels = resource["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "jukebox", name
        assert {"app.kubernetes.io/name", "app.kubernetes.io/component"} <= set(labels), name
        assert not any("app.kubernetes.io/instance" in found for found in walk(resource)), name


def test_rights_are_the_least_that_work(everything: list[Resource]) -> None:
    names = {role["metadata"]["name"].partition(".")[0] for role in of_kind(everything, "ClusterRole")}
    assert names == set(CLUSTER_ROLES)
    for role in of_kind(everything, "Role", "ClusterRole"):
        for rule in role["rules"]:
            parts = [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            assert "*" not in parts, role["metadata"]["name"]
            assert not {"secrets", "pods/exec"} & set(rule["resources"]), role["metadata"]["name"]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), role["metadata"]["name"]


def test_every_pod_is_denied_by_default_and_every_flow_has_its_reason(built: dict[str, list[Resource]]) -> None:
    for overlay in OVERLAYS:
        found = of_kind(built[overlay], "NetworkPolicy")
        denying = [each for each in found if each["metadata"]["name"] == "jukebox-default-deny"]
        assert {each["metadata"].get("namespace") for each in denying} == {None, "ada-jukebox-ci"}
        for each in denying:
            assert each["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        policies = {each["metadata"]["name"]: each["spec"] for each in found if "namespace" not in each["metadata"]}
        # It asks nobody; on OpenShift AI the proxy before it asks the API server.
        assert "egress" not in policies["jukebox-model-server"]
        assert ("jukebox-model-server-auth-proxy" in policies) == overlay.startswith("openshift-ai")
    for path in (ROOT / "manifests/base").rglob("networkpolicy-*.yaml"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if re.match(r"    - (from|to|ports|\{)", line):
                assert lines[number - 1].strip().startswith("#"), f"{path.name}:{number + 1} says not why"


def test_what_argo_cd_may_do_is_what_there_is_and_no_right_is_among_it(
    built: dict[str, list[Resource]], laden: dict[str, list[Resource]]
) -> None:
    used = {
        (resource["apiVersion"].rpartition("/")[0], resource["kind"])
        for overlays in (built, laden)
        for name, resources in overlays.items()
        if not name.startswith("argocd/")
        for resource in resources
    }
    for flavour in ("argo-cd", "openshift-gitops"):
        [project] = of_kind(built[f"argocd/platform/{flavour}"], "AppProject")
        assert project["spec"]["clusterResourceWhitelist"] == []
        allowed = [(entry["group"], entry["kind"]) for entry in project["spec"]["namespaceResourceWhitelist"]]
        assert sorted(allowed) == sorted(used)
        assert {kind for _, kind in allowed} & {"PipelineRun", "PipelineVersion", "Secret", "ServiceAccount"} == set()
        assert "rbac.authorization.k8s.io" not in {group for group, _ in allowed}
        assert project["spec"]["sourceRepos"] == ["https://github.com/acme/jukebox"]
        destinations = {tuple(sorted(entry.items())) for entry in project["spec"]["destinations"]}
        clusters = {read_settings(ROOT)[f"{environment}-cluster"] for environment in ("dev", "prod")}
        expected = itertools.product([("namespace", "ada-jukebox"), ("namespace", "ada-jukebox-ci")], clusters)
        assert destinations == {(namespace, ("server", cluster)) for namespace, cluster in expected}


def test_the_listener_may_start_what_its_template_holds(built: dict[str, list[Resource]]) -> None:
    [run] = of_kind(built["kubeflow/prod"], "TriggerTemplate")[0]["spec"]["resourcetemplates"]
    given = {each["pipelineTaskName"]: each["serviceAccountName"] for each in run["spec"]["taskRunSpecs"]}
    for flavour in ("argo-cd", "openshift-gitops"):
        policies = {
            each["metadata"]["name"]: each
            for each in of_kind(built[f"argocd/platform/{flavour}"], "ValidatingAdmissionPolicy")
        }
        variables = policies["jukebox-listener.ada-jukebox"]["spec"]["variables"]
        [accounts] = [each["expression"] for each in variables if each["name"] == "accounts"]
        assert dict(re.findall(r"'([\w-]+)': '([\w-]+)'", accounts)) == given


def test_no_variable_that_the_product_reads_is_gits_to_set_where_a_credential_is(
    built: dict[str, list[Resource]],
) -> None:
    """A Task that is pushed would have it read other settings, or send its token elsewhere."""
    [policy] = [
        each
        for each in of_kind(built["argocd/platform/argo-cd"], "ValidatingAdmissionPolicy")
        if each["metadata"]["name"].startswith("jukebox-ci-pods.")
    ]
    [words] = re.findall(r"!e\.name\.matches\('([^']+)'\)", json.dumps(policy))
    reads = re.compile(r"""environ(?:\.get\(|\[)"([A-Z_]+)\"""")
    code = "".join(path.read_text() for part in ("pipeline", "scripts") for path in (ROOT / part).rglob("*.py"))
    by_others = {"KUBECONFIG", "KUBERNETES_SERVICE_HOST", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", *S3_KEYS}
    read = by_others | set(reads.findall(code))
    assert {"JUKEBOX_SETTINGS", "KFP_ENDPOINT"} <= read
    harmless = {"ORT_DISABLE_TELEMETRY"}
    assert {name for name in read if not re.fullmatch(words, name)} == harmless


def test_data_outlives_git(laden: dict[str, list[Resource]]) -> None:
    for resources in laden.values():
        for resource in of_kind(
            resources, "PersistentVolumeClaim", "ObjectBucketClaim", "DataSciencePipelinesApplication", "ModelRegistry"
        ):
            options = resource["metadata"]["annotations"]["argocd.argoproj.io/sync-options"]
            assert set(options.split(",")) == {"Prune=false", "Delete=false"}, resource["kind"]
        [service] = of_kind(resources, "InferenceService")
        assert "sync-wave" not in str(service["metadata"]), "KServe would copy it onto the pods"


def test_the_application_heals_prunes_and_tries_again(built: dict[str, list[Resource]]) -> None:
    [applications] = of_kind(built["argocd/platform/argo-cd"], "ApplicationSet")
    spec = applications["spec"]["template"]["spec"]
    assert spec["syncPolicy"]["automated"] == {"prune": True, "selfHeal": True}
    assert spec["syncPolicy"]["retry"]["limit"] > 0
    assert "ignoreDifferences" not in spec
    for element in applications["spec"]["generators"][0]["list"]["elements"]:
        path = f"manifests/overlays/{element['platform']}/{element['environment']}/kustomization.yaml"
        assert (ROOT / path).is_file()


def test_nothing_of_an_argo_cd_that_others_share_is_changed_unasked(built: dict[str, list[Resource]]) -> None:
    for flavour in ("argo-cd", "openshift-gitops"):
        assert of_kind(built[f"argocd/platform/{flavour}"], "ConfigMap", "ArgoCD") == []


def test_the_tenants_part_is_what_the_role_admin_of_a_namespace_may_apply(built: dict[str, list[Resource]]) -> None:
    for platform in ("kubeflow", "openshift-ai"):
        for resource in built[f"argocd/tenant/{platform}"]:
            assert resource["kind"] in ("ConfigMap", "ServiceAccount", "Role", "RoleBinding")
            assert resource["metadata"]["namespace"] in ("ada-jukebox", "ada-jukebox-ci")


def test_no_pod_security_level_below_baseline_is_enforced(built: dict[str, list[Resource]]) -> None:
    for flavour in ("argo-cd", "openshift-gitops"):
        namespaces = of_kind(built[f"argocd/platform/{flavour}"], "Namespace")
        assert {each["metadata"]["name"] for each in namespaces} == {"ada-jukebox", "ada-jukebox-ci"}
        for each in namespaces:
            assert each["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] in ("baseline", "restricted")


def test_a_pod_connects_to_what_the_settings_say_and_never_to_a_link_local_address(
    built: dict[str, list[Resource]], laden: dict[str, list[Resource]]
) -> None:
    for resources in (*built.values(), *laden.values()):
        for policy in of_kind(resources, "NetworkPolicy"):
            for rule in policy["spec"].get("egress", []):
                assert rule.get("to"), f"{policy['metadata']['name']} lets its pods connect to any address"
                blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
                assert all("169.254.0.0/16" in block["except"] for block in blocks), policy["metadata"]["name"]
