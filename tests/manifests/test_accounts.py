"""The tables of docs/accounts.md say what the manifests say; and no pod mounts what a policy would refuse."""

from pathlib import Path

import pytest

from pipeline.prod_train_save_pipeline import build_pipeline, spec_of
from pipeline.settings import read_settings
from tests.manifests import accounts
from tests.manifests.building import OVERLAYS, of_kind
from tests.tekton.manifests import Resource


def test_the_page_says_what_the_manifests_say(kubectl: str) -> None:
    page = accounts.PAGE.read_text("utf-8")
    meant = "differs from the manifests: run python -m tests.manifests.accounts"
    assert page == accounts.with_tables(page, accounts.tables(kubectl)), f"{accounts.PAGE} {meant}"


def test_the_accounts_that_a_policy_names_are_there(built: dict[str, list[Resource]]) -> None:
    policies = of_kind(built["argocd/platform/argo-cd"], "ValidatingAdmissionPolicy")
    made = {
        each["metadata"]["name"]
        for each in of_kind(built["argocd/tenant/kubeflow"], "ServiceAccount")
        if each["metadata"]["namespace"] == accounts.CI
    }
    assert set(accounts.allowed(policies)) == made - {"jukebox-secrets"}  # as which no pod runs


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_mounts_no_secret_that_the_policy_would_refuse(
    overlay: str, built: dict[str, list[Resource]], repository: Path
) -> None:
    allowed = accounts.allowed(of_kind(built["argocd/platform/argo-cd"], "ValidatingAdmissionPolicy"))
    spec = spec_of(build_pipeline(read_settings(repository / "manifests/settings/settings.yaml")))
    pods = [each for each in accounts.planned(built[overlay], spec) if each.ci]
    mounted = {each.name: accounts.mounted(each.pod) for each in pods}
    assert mounted["checkout"] == {"jukebox-git-host", "jukebox-registry"}
    for each in pods:
        assert mounted[each.name] <= allowed[each.pod["spec"]["serviceAccountName"]], each.name


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ({}, {}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {"a": "2"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": "1"}, False),
    ],
)
def test_a_selector_finds_what_kubernetes_would(
    selector: dict[str, object], labels: dict[str, str], expected: bool
) -> None:
    assert accounts.selects(selector, labels) is expected
