"""A run by hand, ``python pipeline/prod_train_save_pipeline.py``, against the pipeline server's stand-in."""

from pathlib import Path

import pytest
import yaml

import pipeline.models.jukebox  # noqa: F401 the tests' settings name it; without it, what imports this is skipped
from pipeline.core.errors import SettingsInvalid
from pipeline.prod_train_save_pipeline import submit, this_week
from pipeline.settings import read_settings
from pipeline.steps.fetch_data import resolve_data_version
from scripts.apply import apply
from scripts.clients.kubernetes_api import Cluster
from scripts.compile_pipeline import pipeline_resources
from tests.active_model import write_tables
from tests.kfp.world import NAMESPACE, World
from tests.settings_file import SETTINGS_FILE

pytest_plugins = ("tests.kfp.fixtures",)
OLDER, NEWER = (f"registry.example.com/acme/jukebox-training@sha256:{digit * 64}" for digit in "12")


@pytest.fixture
def data(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Settings that name data which are there, and an image without a tag; return the version of the data."""
    document = yaml.safe_load(SETTINGS_FILE.read_text())
    tables = write_tables(tmp_path)
    document["data"] |= {"data": yaml.safe_dump(tables), "image": OLDER.partition("@")[0]}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("JUKEBOX_SETTINGS", str(tmp_path / "settings.yaml"))
    return resolve_data_version(tables)


def applied(world: World, image: str, created: str) -> None:
    """Apply a version with this image; it was created then."""
    pipeline, version = pipeline_resources(read_settings(), image=image)
    apply(Cluster(NAMESPACE), pipeline, version, timeout=5)
    name = "pipelineversions", version["metadata"]["name"]
    world.cluster.objects[name]["metadata"]["creationTimestamp"] = created


def test_the_image_is_that_of_the_newest_version_by_its_digest(
    world: World, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given a version that somebody has applied without a digest after them, then it is of no use, and passed over."""
    applied(world, NEWER, "2026-11-02T00:00:00Z")
    applied(world, OLDER, "2026-11-01T00:00:00Z")
    applied(world, "", "2026-11-03T00:00:00Z")
    submit()
    [posted] = world.posts()
    executors = posted["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {NEWER}
    parameters = posted["runtime_config"]["parameters"]
    assert (parameters["data_version"], parameters["cache"]) == (data, this_week())
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == f"Connecting to Data Science Pipelines: {world.url}"
    assert NEWER in second


@pytest.mark.parametrize("images", [[], [""]], ids=["no version", "a version without a digest"])
def test_without_an_image_that_can_be_pulled_nothing_is_submitted(world: World, data: str, images: list[str]) -> None:
    for image in images:
        applied(world, image, "2026-11-01T00:00:00Z")
    with pytest.raises(
        SettingsInvalid, match=r"names an image by digest, .*`jukebox compile --image .*`jukebox apply`"
    ):
        submit()
    assert not world.service.runs
