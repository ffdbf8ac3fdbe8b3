"""``jukebox bootstrap`` and ``jukebox teardown`` up to the cluster; the cluster tier goes on from there."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline.core.errors import JukeboxError, ServerUnavailable, SettingsInvalid
from scripts import bootstrap
from scripts.cli import app
from tests.manifests import building
from tests.tekton.manifests import kubectl

Jukebox = Callable[..., Result]


@pytest.fixture
def jukebox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jukebox:
    """Run a command with a settings file of its own, some settings changed, on a cluster that is away."""
    if not kubectl():
        pytest.skip("kubectl is not installed: nothing builds the manifests")
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "away",
        "clusters": [{"name": "away", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "away", "context": {"cluster": "away", "user": ""}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def run(*arguments: str, answer: str = "", **settings: str) -> Result:
        changed = {key.replace("_", "-"): value for key, value in settings.items()}
        folder = building.copy(tmp_path / f"fork-{len(list(tmp_path.iterdir()))}", changed)
        own = folder / "settings.yaml"  # which no kustomization is beside
        (folder / "manifests/settings/settings.yaml").rename(own)
        monkeypatch.setenv("JUKEBOX_SETTINGS", str(own))
        return CliRunner().invoke(app, list(arguments), input=answer)

    return run


def failure(result: Result, kind: type[JukeboxError]) -> str:
    assert isinstance(result.exception, kind), result.output
    return str(result.exception)


def test_what_will_be_done_is_printed_and_a_no_does_nothing(jukebox: Jukebox) -> None:
    result = jukebox("bootstrap", answer="n\n")
    assert result.exit_code == 1
    assert "prod: Argo CD will create" in result.output
    assert "1 ServingRuntime" in result.output
    assert "git push origin main:production" in result.output
    assert "https://github.com/acme/jukebox" in result.output
    assert "away at https://127.0.0.1:1" in result.output
    for held in (
        *("Namespace/ada-jukebox", "Namespace/ada-jukebox-ci", "AppProject/ada-jukebox"),
        *("ApplicationSet/ada-jukebox", "ConfigMap/jukebox-settings"),
    ):
        assert f"  {held}\n" in result.output
    assert "Subscription" not in result.output
    assert result.output.endswith("Nothing was done.\n")


def test_the_operators_are_on_demand(jukebox: Jukebox) -> None:
    assert "Subscription/rhods-operator" in jukebox("bootstrap", "--operators", answer="n\n").output


def test_each_part_is_shown_alone(jukebox: Jukebox) -> None:
    platform = jukebox("bootstrap", "--part=platform", answer="n\n").output
    assert "  AppProject/ada-jukebox\n" in platform
    assert "ServiceAccount" not in platform
    tenant = jukebox("bootstrap", "--part=tenant", answer="n\n").output
    assert "  ServiceAccount/jukebox-steps\n" in tenant
    assert "AppProject" not in tenant


def printed(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in yaml.safe_load_all(result.output)}


def test_what_would_be_applied_is_printed_as_it_would_be(jukebox: Jukebox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "nowhere")
    platform, tenant = (printed(jukebox("bootstrap", "--print", f"--part={part}")) for part in ("platform", "tenant"))
    assert {"Namespace/ada-jukebox", "AppProject/ada-jukebox", "ApplicationSet/ada-jukebox"} <= platform.keys()
    assert {"ServiceAccount/jukebox-steps", "RoleBinding/jukebox-runs"} <= tenant.keys()
    assert printed(jukebox("bootstrap", "--print")) == platform | tenant
    assert not {key for key in platform if "argocd-cm" in key or key.startswith("ArgoCD/")}


def test_a_profile_makes_the_namespace_of_the_runs_on_kubeflow_and_the_other_is_labelled_as_one(
    jukebox: Jukebox,
) -> None:
    """By the label Kubeflow's pipeline server knows who may ask it."""
    label = "app.kubernetes.io/part-of"
    found = printed(jukebox("bootstrap", "--print", platform="kubeflow", argo_cd="argo-cd"))
    assert {key for key in found if key.startswith("Namespace/")} == {"Namespace/ada-jukebox-ci"}
    assert found["Namespace/ada-jukebox-ci"]["metadata"]["labels"][label] == "kubeflow-profile"
    elsewhere = printed(jukebox("bootstrap", "--print"))
    assert {elsewhere[f"Namespace/ada-jukebox{ci}"]["metadata"]["labels"][label] for ci in ("", "-ci")} == {"jukebox"}
    [rule, _] = found["Role/jukebox-pipeline-server"]["rules"]
    assert rule["apiGroups"] == ["pipelines.kubeflow.org"]


def test_the_settings_as_they_are_become_what_the_tasks_rely_on(jukebox: Jukebox) -> None:
    made = printed(jukebox("bootstrap", "--print", "--part=tenant", data="cars: s3://nest/*.parquet"))[
        "ConfigMap/jukebox-settings"
    ]
    assert made["metadata"]["namespace"] == "ada-jukebox-ci"
    assert made["data"] == {"settings.yaml": Path(os.environ["JUKEBOX_SETTINGS"]).read_text()}
    assert yaml.safe_load(made["data"]["settings.yaml"])["data"]["data"] == "cars: s3://nest/*.parquet"
    assert "ConfigMap/jukebox-settings" not in printed(jukebox("bootstrap", "--print", "--part=platform"))


@pytest.mark.parametrize(
    ("platform", "missing", "maker"),
    [
        (
            "openshift-ai",
            "ada-jukebox",
            "ask a platform administrator to run `jukebox bootstrap --part platform`, which creates it",
        ),
        (
            "openshift-ai",
            "ada-jukebox-ci",
            "ask a platform administrator to run `jukebox bootstrap --part platform`, which creates it",
        ),
        ("kubeflow", "ada-jukebox", "its Profile creates it: create the Profile of that name"),
        (
            "kubeflow",
            "ada-jukebox-ci",
            "ask a platform administrator to run `jukebox bootstrap --part platform`, which creates it",
        ),
    ],
)
def test_a_tenant_is_told_who_makes_each_namespace_that_is_not_there(
    jukebox: Jukebox, monkeypatch: pytest.MonkeyPatch, platform: str, missing: str, maker: str
) -> None:
    there = {"ada-jukebox", "ada-jukebox-ci"} - {missing}
    monkeypatch.setattr(bootstrap, "_read", lambda kind, name: {} if name not in there else {"kind": kind})
    settings = {"platform": platform, "argo_cd": "argo-cd"}
    said = failure(jukebox("bootstrap", "--yes", "--part=tenant", **settings), ServerUnavailable)
    assert f"The namespace {missing} does not exist: {maker}" in said


def test_health_checks_are_on_demand_in_the_words_of_each_argo_cd(jukebox: Jukebox) -> None:
    plain = printed(jukebox("bootstrap", "--print", "--health-checks", argo_cd="argo-cd"))["ConfigMap/argocd-cm"]
    assert plain["metadata"]["namespace"] == "argocd"
    openshift = printed(jukebox("bootstrap", "--print", "--health-checks"))["ArgoCD/openshift-gitops"]
    checks = openshift["spec"]["resourceHealthChecks"]
    assert [each["kind"] for each in checks] == ["DataSciencePipelinesApplication", "EventListener"]
    assert {f"{bootstrap.HEALTH}{each['group']}_{each['kind']}": each["check"] for each in checks} == plain["data"]


def test_a_list_that_others_own_is_merged() -> None:
    theirs = [{"group": "", "kind": "Pod", "check": "theirs"}, {"group": "a", "kind": "B", "check": "old"}]
    ours = [{"group": "a", "kind": "B", "check": "new"}, {"group": "c", "kind": "B", "check": "ours"}]
    assert bootstrap.merged(ours, theirs) == [theirs[0], *ours]
    assert bootstrap.merged(ours, bootstrap.merged(ours, theirs)) == bootstrap.merged(ours, theirs)


def namespace(**labels: str) -> dict[str, Any]:
    return {"kind": "Namespace", "metadata": {"name": "ada-jukebox", "labels": labels}}


def test_labels_that_somebody_else_has_set_stay_theirs() -> None:
    ours = namespace(part="jukebox", enforce="baseline")
    live = namespace(part="kubeflow-profile", enforce="privileged")
    live["metadata"]["managedFields"] = [
        {"manager": "profiles", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:part": {}}}}},
        {"manager": "jukebox", "fieldsV1": {"f:metadata": {"f:labels": {"f:enforce": {}}}}},
        {"manager": "kube-controller-manager", "fieldsV1": {"f:status": {}}},
    ]
    assert bootstrap.fitted(ours, live) == namespace(enforce="baseline")
    assert bootstrap.fitted(ours, None) == ours


def definition(*known: str) -> dict[str, Any]:
    """The part of Argo CD's definition of an ApplicationSet that says how a sync is tried again."""
    schema: dict[str, Any] = {"properties": {key: {} for key in known}}
    for key in ("retry", "syncPolicy", "spec", "template", "spec"):
        schema = {"properties": {key: schema}}
    return {"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}}


def test_an_older_argo_cd_is_not_told_what_it_does_not_know(jukebox: Jukebox) -> None:
    resources = list(printed(jukebox("bootstrap", "--print", "--part=platform")).values())

    def retry(*known: str) -> Any:
        [found] = [each for each in bootstrap.suited(resources, definition(*known)) if each["kind"] == "ApplicationSet"]
        return found["spec"]["template"]["spec"]["syncPolicy"]["retry"]

    assert retry("limit", "backoff", "refresh")["refresh"] is True
    assert set(retry("limit", "backoff")) == {"limit", "backoff"}


def test_a_cluster_without_argo_cd_gets_what_is_its_own(jukebox: Jukebox, capsys: pytest.CaptureFixture[str]) -> None:
    resources = list(printed(jukebox("bootstrap", "--print", "--part=platform")).values())
    kinds = {each["kind"] for each in resources} - {each["kind"] for each in bootstrap.suited(resources, None)}
    assert kinds == {"AppProject", "ApplicationSet"}
    assert "This cluster has no Argo CD" in capsys.readouterr().out


def test_the_token_for_a_private_repository_becomes_a_secret_and_is_never_printed(
    jukebox: Jukebox, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("hidden-token\n")
    option = f"--git-token-file={token}"
    result = jukebox("bootstrap", option, answer="n\n")
    assert "  Secret/ada-jukebox-git-host\n" in result.output
    assert "hidden" not in result.output
    assert "hidden" not in failure(jukebox("bootstrap", "--yes", option), ServerUnavailable)
    assert "--print does not print Secrets" in failure(jukebox("bootstrap", "--print", option), SettingsInvalid)
    made = bootstrap.credential(bootstrap.read_all_settings(), token)
    assert made["metadata"]["namespace"] == "openshift-gitops"
    assert made["metadata"]["labels"]["argocd.argoproj.io/secret-type"] == "repository"
    assert made["stringData"] == {
        "type": "git",
        "url": "https://github.com/acme/jukebox",
        "username": "git",
        "password": "hidden-token",
        "project": "ada-jukebox",
    }


@pytest.mark.parametrize(("text", "message"), [("", "holds 0 words"), ("two words", "holds 2 words"), (None, "cannot")])
def test_a_file_that_holds_no_token_is_refused(
    jukebox: Jukebox, tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "token").write_text(text)
    said = failure(jukebox("bootstrap", "--yes", f"--git-token-file={tmp_path / 'token'}"), SettingsInvalid)
    assert message in said
    assert "two" not in said


def test_what_is_of_the_platforms_part_is_refused_with_the_tenants(jukebox: Jukebox) -> None:
    said = failure(jukebox("bootstrap", "--part=tenant", "--health-checks"), SettingsInvalid)
    assert "belong to --part platform" in said


def test_a_command_line_without_its_checkout_says_so(jukebox: Jukebox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "SETTINGS_FILE", Path("/usr/lib/python3/manifests/settings/settings.yaml"))
    said = failure(jukebox("bootstrap", "--print"), SettingsInvalid)
    assert "/usr/lib/python3 has no argocd, manifests, tekton" in said


def test_each_environment_with_a_cluster_is_shown(jukebox: Jukebox) -> None:
    output = jukebox(
        "bootstrap", answer="n\n", platform="kubeflow", argo_cd="argo-cd", dev_cluster="https://dev.example.com"
    ).output
    assert "dev: Argo CD will create" in output
    assert "prod: Argo CD will create" in output


def test_a_yes_goes_to_the_cluster(jukebox: Jukebox) -> None:
    assert "kubectl get failed" in failure(jukebox("bootstrap", "--yes"), ServerUnavailable)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"namespace": "<USER_NAME>-jukebox"}, "argocd/tenant/openshift-ai holds <USER_NAME>; put values in"),
        ({"storage_class": "<CLASS>"}, "manifests/overlays/openshift-ai/prod holds <CLASS>; put values in"),
        ({"platform": "openshift"}, "platform is 'openshift', expected kubeflow or openshift-ai"),
        (
            {"ci_namespace": "ada-jukebox"},
            "namespace and ci-namespace are both ada-jukebox: pushed code",
        ),
        ({"argo_cd": "flux"}, "argo-cd is 'flux', expected argo-cd or openshift-gitops"),
        ({"prod_cluster": ""}, "dev-cluster and prod-cluster are both empty; name a cluster"),
        ({"dev_cluster": "https://kubernetes.default.svc"}, "dev-cluster and prod-cluster are both https"),
    ],
)
def test_settings_that_cannot_work_are_refused(jukebox: Jukebox, settings: dict[str, str], message: str) -> None:
    assert message in failure(jukebox("bootstrap", "--yes", **settings), SettingsInvalid)


def test_teardown_says_what_goes_and_what_stays(jukebox: Jukebox) -> None:
    result = jukebox("teardown", answer="n\n")
    assert result.exit_code == 1
    assert "ApplicationSet, Applications and AppProject ada-jukebox" in result.output
    assert "Models and Secrets are kept." in result.output
    assert result.output.endswith("Nothing was done.\n")
    both = "its admission policies, and namespace/ada-jukebox-ci and namespace/ada-jukebox with all that is in it"
    assert both in jukebox("teardown", "--data", answer="n\n").output


def test_teardown_takes_a_part_alone_and_leaves_a_profile_its_namespace(jukebox: Jukebox) -> None:
    platform = jukebox("teardown", "--part=platform", answer="n\n").output
    assert "AppProject ada-jukebox" in platform
    assert "PipelineRuns" not in platform
    tenant = jukebox("teardown", "--part=tenant", answer="n\n").output
    assert "the PipelineRuns in ada-jukebox-ci, its accounts and their rights" in tenant
    assert "AppProject" not in tenant
    kubeflow = jukebox("teardown", "--data", answer="n\n", platform="kubeflow").output
    assert "policies, and namespace/ada-jukebox-ci with all" in kubeflow


def test_teardown_goes_to_the_cluster(jukebox: Jukebox) -> None:
    assert "kubectl delete failed" in failure(jukebox("teardown", "--yes"), ServerUnavailable)
