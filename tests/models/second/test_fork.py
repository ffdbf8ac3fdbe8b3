"""A fork that makes the second model its own: it adds a folder and two settings, and the commands do the rest."""

import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import yaml

from pipeline.settings import read_settings
from scripts.spec_policy import judge
from tests.models.second.fork import adopt
from tests.models.second.sample import generate

ROOT = Path(__file__).parents[3]
JUKEBOX = "import sys; from scripts.cli import main; sys.argv[0] = 'jukebox'; main()"
IMAGE = f"@sha256:{'0' * 64}"


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the model in place of the first one."""
    folder = tmp_path_factory.mktemp("fork")
    for part in ("pipeline", "scripts", "manifests", "tests/models"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    file = generate(folder / "data", last_day=date(2026, 5, 31))["flats"]
    adopt(folder, str(file), alone=True)
    return folder


def jukebox(fork: Path, *arguments: str) -> str:
    """The command line of the fork."""
    environment = {name: value for name, value in os.environ.items() if name != "JUKEBOX_SETTINGS"}
    done = subprocess.run(
        [sys.executable, "-c", JUKEBOX, *arguments],
        cwd=fork,
        env={**environment, "PYTHONPATH": str(fork)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def test_it_is_compiled_and_the_cluster_takes_it(fork: Path) -> None:
    settings = read_settings(fork / "manifests" / "settings" / "settings.yaml")
    image = settings.image + IMAGE
    jukebox(fork, "compile", f"--image={image}", f"--commit={'0' * 40}", "--output=pipeline.yaml")
    pipeline, version = yaml.safe_load_all((fork / "pipeline.yaml").read_text())
    judge(pipeline, version, settings, image)
    assert pipeline["metadata"]["name"] == version["spec"]["pipelineName"] == "second-prod-train-save"
    parameters = version["spec"]["pipelineSpec"]["root"]["inputDefinitions"]["parameters"]
    defaults = {name: parameter.get("defaultValue") for name, parameter in parameters.items()}
    assert (defaults["model_name"], defaults["model_storage_pvc"]) == ("second", "second-model-pvc")
    assert defaults["data"] == settings.data
    assert defaults["data"].keys() == {"flats"}


def test_it_is_run_and_asked(fork: Path) -> None:
    said = jukebox(fork, "run")
    assert "Published second" in said
    assert "second version 1" in jukebox(fork, "predict", "flat-000001", "--model-store=build/models")
