"""Every document is valid against its real schema, unknown fields refused."""

import sys

import pytest

from tests.manifests import schemas
from tests.tekton.manifests import Resource


@pytest.fixture(autouse=True)
def crds() -> None:
    if not schemas.CRDS.is_dir():
        pytest.skip("the CRDs are not here: the cluster tier asks the real API")


def test_every_document_is_valid(built: dict[str, list[Resource]], capsys: pytest.CaptureFixture[str]) -> None:
    skipped: dict[str, list[str]] = {}
    for name, resources in built.items():
        report = schemas.check(resources)
        assert report.invalid == [], name
        skipped[name] = report.skipped
        with capsys.disabled():
            print(f"\n{name}: {report}", end="", file=sys.stderr)  # which xdist lets through
    assert {name: found for name, found in skipped.items() if found} == {}


def test_every_component_is_valid(laden: dict[str, list[Resource]]) -> None:
    for name, resources in laden.items():
        report = schemas.check(resources)
        assert report.invalid == [], name
        assert {skip.partition("/")[0] for skip in report.skipped} == {"LocalQueue", "ObjectBucketClaim"}


def test_an_unknown_field_is_refused_in_every_kind(laden: dict[str, list[Resource]]) -> None:
    for resource in laden["openshift-ai/prod"]:
        if resource["kind"] in schemas.UNKNOWN or resource["kind"] in ("ConfigMap", "ServiceAccount"):
            continue
        body = resource.get("spec", resource)
        if resource["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            body = resource["roleRef"]
        spoiled = {**resource, **({"spec": {**body, "specc": {}}} if "spec" in resource else {"specc": {}})}
        assert schemas.problems(spoiled), resource["kind"]
