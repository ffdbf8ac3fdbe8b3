"""``jukebox render``: what is built is shown, and what is wrong with it is said; the diff is kubectl's own."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline.core.errors import SettingsInvalid
from scripts.cli import app
from tests.kfp.world import World

pytest_plugins = ("tests.kfp.fixtures",)
ROOT = Path(__file__).parents[2]


def render(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["render", *arguments])


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """An overlay of one ConfigMap."""
    folder = tmp_path / "overlay"
    folder.mkdir()
    resource = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"key": "new"}}
    (folder / "one.yaml").write_text(json.dumps(resource))
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["one.yaml"],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return folder


def test_an_overlay_is_shown_as_it_is_built(overlay: Path) -> None:
    result = render(str(overlay))
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(result.output)["data"] == {"key": "new"}


def test_the_projects_own_resources_are_built() -> None:
    kinds = {each["kind"] for each in yaml.safe_load_all(render(str(ROOT / "tekton")).output)}
    assert {"Task", "Pipeline", "EventListener"} <= kinds


def test_what_cannot_be_built_is_said_in_kustomizes_words(overlay: Path) -> None:
    (overlay / "one.yaml").unlink()
    result = render(str(overlay))
    assert isinstance(result.exception, SettingsInvalid)
    assert "one.yaml" in str(result.exception)


def test_without_kubectl_it_is_asked_for(overlay: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    result = render(str(overlay))
    assert isinstance(result.exception, SettingsInvalid)
    assert "kubectl is not installed" in str(result.exception)


def test_a_diff_that_cannot_be_made_ends_with_2(
    world: World, overlay: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The cluster's stand-in serves no OpenAPI, without which kubectl compares nothing."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    result = render(str(overlay), "--diff")
    assert result.exit_code == 2
    assert result.stderr
