"""The commands one after the other, against the stand-in, or a real server.

With ``KFP_ENDPOINT`` in the environment a real pipeline server is used, in the kubeconfig's cluster and the namespace
``JUKEBOX_NAMESPACE``; its steps run in ``KFP_IMAGE``, an image that has kfp, by digest, of the settings' repository.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from kubernetes.config import kube_config
from typer.testing import CliRunner, Result

from pipeline.core.errors import RunFailed
from scripts import wait
from scripts.cli import app
from scripts.wait import Pace
from tests.kfp.cluster import Cluster, serve_cluster
from tests.kfp.execution import Job, SubprocessExecutor, tasks_in
from tests.kfp.server import StaticGuard, serve
from tests.kfp.service import Service
from tests.kfp.world import DATA_VERSION, IMAGE, NAMESPACE, TOKEN, compiled, named, train_step

pytest_plugins = ("tests.kfp.fixtures",)
REAL = os.environ.get("KFP_ENDPOINT", "")


@pytest.fixture
def service(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service | None]:
    """The stand-in, which really executes; None where a real server is used instead."""
    monkeypatch.setattr(wait, "Pace", lambda **_: Pace(poll=0.1, settle=4 if REAL else 0.2))
    if REAL:
        yield None
        return
    executor = SubprocessExecutor(tmp_path / "work")
    with serve_cluster(Cluster(NAMESPACE), certificate) as cluster:
        found = Service(cluster, executor, NAMESPACE, tmp_path / "state.json")
        with serve(found, StaticGuard({TOKEN}), certificate) as url:
            monkeypatch.setenv("KFP_ENDPOINT", url)
            monkeypatch.setenv("JUKEBOX_NAMESPACE", NAMESPACE)
            config = cluster.kubeconfig(tmp_path / "kubeconfig", TOKEN, certificate)
            monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(config))
            yield found
        executor.close()


def jukebox(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_a_version_is_applied_started_waited_for_and_shown(service: Service | None, tmp_path: Path) -> None:
    image = os.environ.get("KFP_IMAGE", IMAGE)
    file = compiled(tmp_path / "pipeline.yaml")
    file.write_text(file.read_text().replace(IMAGE, image))
    file, version = named(file)
    applied = jukebox("apply", str(file), "--image", image)
    assert applied.exit_code == 0, applied.output

    keys = {"good": str(uuid4()), "bad": str(uuid4())}
    for name, rows in (("good", 3), ("bad", 99)):
        parameters = json.dumps({"rows": rows, "data_version": DATA_VERSION})
        options = ("--key", keys[name], "--parameters", parameters, "--result-dir", str(tmp_path / name))
        for _ in range(2):
            begun = jukebox("start", version, *options)
            assert begun.exit_code == 0, begun.output
    run_ids = {name: (tmp_path / name / "run-id").read_text() for name in keys}

    good = jukebox("wait", run_ids["good"], "--timeout", "5")
    assert good.exit_code == 0, good.output
    assert "train: succeeded" in good.output
    bad = jukebox("wait", run_ids["bad"], "--timeout", "5")
    assert isinstance(bad.exception, RunFailed)
    assert "failed: train." in str(bad.exception)
    assert "ValueError: too many: 198" in str(bad.exception)
    assert "executor_input" not in str(bad.exception)
    assert '"parameterValues"' not in str(bad.exception)

    shown = jukebox("status", "--output", "json")
    found = json.loads(shown.output)
    states = {run["id"]: run["state"] for run in found["runs"]}
    assert (states[run_ids["good"]], states[run_ids["bad"]]) == ("succeeded", "failed")
    assert found["versions"][0]["name"] == version

    if service:
        # Two runs, a workflow each; and never a recurring run, which fires at once where its trigger is forgotten.
        assert len(service.workflows) == 2
        posted = {path for method, path, _ in service.asked if method == "POST"}
        assert posted == {"/apis/v2beta1/experiments", "/apis/v2beta1/runs"}


def test_the_stand_in_lets_steps_side_by_side_fail_both(tmp_path: Path) -> None:
    def both(data_version: str) -> None:
        train_step(twice=102)
        train_step(twice=103)

    _, version = yaml.safe_load_all(compiled(tmp_path / "pipeline.yaml", pipeline=both).read_text())
    executor = SubprocessExecutor(tmp_path / "work")
    executor.start(Job("flow", "run", version["spec"]["pipelineSpec"], {}, {"data_version": DATA_VERSION}))
    while (look := executor.look("flow")).code is None:
        time.sleep(0.05)
    assert {task.name: task.state for task in tasks_in(look.output)} == {"train": "FAILED", "train-2": "FAILED"}
    assert look.code == 1


@pytest.mark.skipif(bool(REAL), reason="a real server's state is its own")
def test_a_stand_in_that_restarts_knows_its_runs(service: Service, tmp_path: Path) -> None:
    file, version = named(compiled(tmp_path / "pipeline.yaml"))
    assert jukebox("apply", str(file)).exit_code == 0
    parameters = json.dumps({"data_version": DATA_VERSION})
    assert jukebox("start", version, "--key", "uid-1", "--parameters", parameters).exit_code == 0
    again = Service(service.resources, service.executor, NAMESPACE, tmp_path / "state.json")
    assert again.runs.keys() == service.runs.keys()
    assert again.workflows.keys() == service.workflows.keys()
