"""The overlays, built once."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.manifests import building
from tests.tekton import manifests
from tests.tekton.manifests import Resource


@pytest.fixture(scope="session")
def kubectl() -> str:
    program = manifests.kubectl()
    if not program:
        pytest.skip("kubectl is not installed: nothing builds the manifests")
    return program


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what Kustomize reads, with the settings filled in."""
    return building.copy(tmp_path_factory.mktemp("fork"))


@pytest.fixture(scope="session")
def built(kubectl: str, repository: Path) -> dict[str, list[Resource]]:
    """What each overlay, and each folder that bootstrap applies, comes to."""
    names = [*(f"manifests/overlays/{overlay}" for overlay in building.OVERLAYS), *building.BOOTSTRAP]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda name: building.build(kubectl, repository / name), names)
        return {
            name.removeprefix("manifests/overlays/"): resources for name, resources in zip(names, found, strict=True)
        }


@pytest.fixture(scope="session")
def laden(kubectl: str, repository: Path) -> dict[str, list[Resource]]:
    """Each overlay with all components at once."""
    return {
        overlay: building.build(kubectl, building.with_components(repository, overlay, building.COMPONENTS))
        for overlay in building.OVERLAYS
    }


@pytest.fixture
def resources(built: dict[str, list[Resource]]) -> list[Resource]:
    """A copy of an overlay with its accounts, for tests that break something in it."""
    return copy.deepcopy(building.with_rights(built, "openshift-ai/prod"))
