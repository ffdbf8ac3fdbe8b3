"""The resources of ``tekton/``, built once."""

import copy

import pytest

from tests.tekton.manifests import Resource, build, kubectl


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Resource]:
    program = kubectl()
    if not program:
        pytest.skip("kubectl is not installed: nothing builds the manifests")
    return build(program, tmp_path_factory.mktemp("tekton"))


@pytest.fixture
def resources(built: list[Resource]) -> list[Resource]:
    """A copy, for tests that break something in it."""
    return copy.deepcopy(built)
