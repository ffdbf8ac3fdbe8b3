"""``jukebox bootstrap`` and ``jukebox teardown`` up to the cluster; the cluster tier goes on from there."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline.errors import JukeboxError, ServerUnavailable, SettingsInvalid
from scripts.cli import app
from tests.manifests import building
from tests.tekton.manifests import kubectl

Jukebox = Callable[..., Result]


@pytest.fixture
def jukebox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jukebox:
    """Run a command in a fork with some settings changed, on a cluster that is away."""
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
        monkeypatch.setenv("JUKEBOX_SETTINGS", str(folder / "manifests/settings/settings.yaml"))
        return CliRunner().invoke(app, list(arguments), input=answer)

    return run


def failure(result: Result, kind: type[JukeboxError]) -> str:
    assert isinstance(result.exception, kind), result.output
    return str(result.exception)


def test_what_will_be_done_is_printed_and_a_no_does_nothing(jukebox: Jukebox) -> None:
    result = jukebox("bootstrap", answer="n\n")
    assert result.exit_code == 1
    assert "prod: Argo CD will bring up" in result.output
    assert "1 InferenceService" in result.output
    assert "https://github.com/acme/jukebox" in result.output
    assert "away at https://127.0.0.1:1" in result.output
    for held in ("Namespace/ada-jukebox", "AppProject/ada-jukebox", "ApplicationSet/ada-jukebox"):
        assert f"  {held}\n" in result.output
    assert "Subscription" not in result.output
    assert result.output.endswith("Nothing was done.\n")


def test_the_operators_are_on_demand(jukebox: Jukebox) -> None:
    assert "Subscription/rhods-operator" in jukebox("bootstrap", "--operators", answer="n\n").output


def test_each_environment_with_a_cluster_is_shown(jukebox: Jukebox) -> None:
    output = jukebox(
        "bootstrap", answer="n\n", platform="kubeflow", argo_cd="argo-cd", dev_cluster="https://dev.example.com"
    ).output
    assert "dev: Argo CD will bring up" in output
    assert "prod: Argo CD will bring up" in output
    assert "ConfigMap/argocd-cm" in output


def test_a_yes_goes_to_the_cluster(jukebox: Jukebox) -> None:
    assert "kubectl apply fails" in failure(jukebox("bootstrap", "--yes"), ServerUnavailable)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"namespace": "<USER_NAME>-jukebox"}, "argocd/openshift-gitops holds <USER_NAME>; put values in"),
        ({"storage_class": "<CLASS>"}, "manifests/overlays/openshift-ai/prod holds <CLASS>; put values in"),
        ({"platform": "openshift"}, "platform is 'openshift', expected kubeflow or openshift-ai"),
        ({"argo_cd": "flux"}, "argo-cd is 'flux', expected argo-cd or openshift-gitops"),
        ({"prod_cluster": ""}, "dev-cluster and prod-cluster are empty; name a cluster"),
        ({"dev_cluster": "https://kubernetes.default.svc"}, "dev-cluster and prod-cluster are the same"),
    ],
)
def test_settings_that_cannot_work_are_refused(jukebox: Jukebox, settings: dict[str, str], message: str) -> None:
    assert message in failure(jukebox("bootstrap", "--yes", **settings), SettingsInvalid)


def test_teardown_says_what_goes_and_what_stays(jukebox: Jukebox) -> None:
    result = jukebox("teardown", answer="n\n")
    assert result.exit_code == 1
    assert "ApplicationSet, Applications and AppProject ada-jukebox" in result.output
    assert "Models and Secrets stay." in result.output
    assert result.output.endswith("Nothing was done.\n")
    assert "the namespace ada-jukebox, with models" in jukebox("teardown", "--data", answer="n\n").output


def test_teardown_goes_to_the_cluster(jukebox: Jukebox) -> None:
    assert "kubectl delete fails" in failure(jukebox("teardown", "--yes"), ServerUnavailable)
