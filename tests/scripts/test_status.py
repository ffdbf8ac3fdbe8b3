"""``jukebox status`` against the pipeline server's stand-in and a store in a folder."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.core.store import open_store
from pipeline.settings import PIPELINE, read_settings
from scripts.apply import apply, read_resources
from scripts.cli import app
from scripts.clients.kubernetes_api import Cluster
from scripts.start import start
from tests.kfp.world import DATA_VERSION, NAMESPACE, World, compiled
from tests.versions import publish_version

pytest_plugins = ("tests.kfp.fixtures",)
VERSION = f"{PIPELINE}-000000000001"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a published version."""
    publish_version(str(tmp_path / "models"), "run-1")
    return tmp_path / "models"


def test_an_empty_cluster_is_shown_as_such(world: World) -> None:
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 0, result.output
    assert result.output.count("none") == 5
    assert "is not mounted here: set --model-store" in result.output


def test_versions_runs_and_models_are_shown(world: World, store: Path, tmp_path: Path) -> None:
    apply(Cluster(NAMESPACE), *read_resources(compiled(tmp_path / "pipeline.yaml")), timeout=5)
    parameters = {"data_version": DATA_VERSION, "commit": "c" * 40}
    start(world.kfp(), VERSION, settings=read_settings(), key="uid-1", parameters=parameters)
    run, _ = start(world.kfp(), VERSION, settings=read_settings(), key="uid-2", parameters=parameters)
    world.service.answer("POST", f"/apis/v2beta1/runs/{run['run_id']}:terminate", {}, b"")
    world.service.tick()
    result = CliRunner().invoke(app, ["status", "--output", "json", "--model-store", str(store)])
    found = json.loads(result.output)
    assert [version["name"] for version in found["versions"]] == [VERSION]
    states = {each["id"]: each["state"] for each in found["runs"]}
    assert states[run["run_id"]] == "terminated"
    assert found["runs"][0]["commit"] == "c" * 40
    assert found["runs"][0]["version"] == found["versions"][0]["id"]
    assert found["models"] == [{"number": 1, "version": "0.0.2", "run": "run-1", "commit": "c" * 40, "production": ""}]
    table = CliRunner().invoke(app, ["status", "--model-store", str(store)]).output
    assert VERSION in table
    assert "cccccccccccc" in table


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"model": "jukebox"}', b"\xff"])
def test_a_damaged_version_hides_no_other(world: World, store: Path, content: bytes | None) -> None:
    open_store(str(store), read_settings().model_name).publish(
        "run-2", lambda _: {"model.onnx": b"onnx"} | ({} if content is None else {"lineage.json": content})
    )
    shown_as_damaged(store)


@pytest.mark.parametrize("name", ["model.onnx", "labels.json"])
def test_a_version_with_a_file_that_was_altered_is_damaged(world: World, store: Path, name: str) -> None:
    publish_version(str(store), "run-2")
    (store / "jukebox" / "2" / name).write_bytes(b"another")
    assert f"Version 2 ({store}/jukebox/2) is damaged: the sha256 of its {name} is" in shown_as_damaged(store)


def shown_as_damaged(store: Path) -> str:
    """Whether version 2 is, and 1 is not; returns the note about it."""
    result = CliRunner().invoke(app, ["status", "--output", "json", "--model-store", str(store)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    models = found["models"]
    assert models[0] == {"number": 2, "version": "damaged", "run": "", "commit": "", "production": ""}
    assert models[1]["version"] == "0.0.2"
    note = str(found["models_note"])
    assert "`jukebox delete-version 2`" in note or "never published or was deleted" in note
    return note


def test_the_newest_come_first_and_only_as_many_as_asked(world: World, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        file = compiled(tmp_path / "pipeline.yaml", f"{PIPELINE}-00000000000{number}")
        apply(Cluster(NAMESPACE), *read_resources(file), timeout=5)
        name = "pipelineversions", f"{PIPELINE}-00000000000{number}"
        world.cluster.objects[name]["metadata"]["creationTimestamp"] = f"2026-01-0{number}T00:00:00Z"
    found = json.loads(CliRunner().invoke(app, ["status", "--output", "json", "--limit", "2"]).output)
    assert [version["name"][-1] for version in found["versions"]] == ["3", "2"]


def test_all_pages_of_a_list_are_read(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from scripts.clients import kfp_server

    monkeypatch.setattr(kfp_server, "PAGE", 2)
    apply(Cluster(NAMESPACE), *read_resources(compiled(tmp_path / "pipeline.yaml")), timeout=5)
    kfp = world.kfp()
    for number in range(5):
        parameters = {"data_version": DATA_VERSION}
        start(kfp, VERSION, settings=read_settings(), key=f"uid-{number}", parameters=parameters)
    experiment = kfp.experiment("jukebox")
    assert experiment
    assert len({run["run_id"] for run in kfp.runs(experiment)}) == 5


def test_what_production_serves_and_has_served_is_shown(world: World, store: Path) -> None:
    pin = {"model": "jukebox", "version": "7", "sha256": "7" * 64, "hold": ""}
    world.cluster.add("configmaps", {"metadata": {"name": "jukebox-pin"}, "data": pin})
    record = {
        "model": "jukebox",
        "version": 7,
        "sha256": "7" * 64,
        "from": 3,
        "commit": "c" * 40,
        "kind": "promotion",
        "why": "Promote jukebox 7",
        "url": "https://git.corp/pulls/1",
        "merged_by": "ada",
        "approved_by": ["bob"],
        "merged_at": "2026-11-28T10:00:00Z",
        "served_since": "2026-11-28T10:05:00Z",
    }
    earlier = {"version": 3, "from": None, "served_since": "2026-11-27T10:05:00Z"}
    records = {"7-c": json.dumps(record), "3-b": json.dumps(earlier), "damaged": "{", "other": "[]"}
    world.cluster.add("configmaps", {"metadata": {"name": "jukebox-promotions"}, "data": records})
    found = json.loads(CliRunner().invoke(app, ["status", "--output", "json"]).output)
    row = {"pinned": "7", "served_since": "2026-11-28T10:05:00Z", "hold": "", "sha256": "7" * 64}
    assert found["production"] == [row]
    assert [each["version"] for each in found["promotions"]] == [7, 3]
    table = CliRunner().invoke(app, ["status"]).output
    for text in ("ada", "bob", "2026-11-28T10:05:00Z", "https://git.corp/pulls/1"):
        assert text in table


def test_a_version_whose_check_has_not_passed_is_served_since_no_time(world: World) -> None:
    pin = {"model": "jukebox", "version": "8", "sha256": "8" * 64, "hold": "rolled back from version 9 on 2026-11-28"}
    world.cluster.add("configmaps", {"metadata": {"name": "jukebox-pin"}, "data": pin})
    [found] = json.loads(CliRunner().invoke(app, ["status", "--output", "json"]).output)["production"]
    assert (found["pinned"], found["served_since"], found["hold"]) == ("8", "", pin["hold"])


def shown_in_production(store: Path) -> tuple[dict[int, str], str]:
    """By version what its column says, and the note about the models."""
    result = CliRunner().invoke(app, ["status", "--output", "json", "--model-store", str(store)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    return {row["number"]: row["production"] for row in found["models"]}, found["models_note"]


def test_each_version_shows_when_production_came_to_serve_it(world: World, store: Path) -> None:
    for run in ("run-2", "run-3", "run-4"):
        publish_version(str(store), run)
    served = {
        "4-d": {"version": 4, "commit": "d", "served_since": "2026-11-28T10:05:00Z", "merged_by": "ada"},
        "1-c": {"version": 1, "commit": "c", "served_since": "2026-11-27T10:05:00Z", "merged_by": ""},
    }
    records = {name: json.dumps(record) for name, record in served.items()}
    world.cluster.add("configmaps", {"metadata": {"name": "jukebox-promotions"}, "data": records})
    kept = {"version": 2, "commit": "b", "served_since": "2026-11-26T10:05:00Z", "merged_by": "bob"}
    open_store(str(store), "jukebox").add_promotions(2, [kept])
    before = {
        3: "",
        2: "served from 2026-11-26T10:05:00Z, merged by bob",
        1: "served from 2026-11-27T10:05:00Z",
    }
    assert shown_in_production(store) == ({4: "served since 2026-11-28T10:05:00Z, merged by ada"} | before, "")
    (store / "jukebox" / "3.promotions.json").write_text("{")
    found, note = shown_in_production(store)
    assert found[3] == ""
    assert "3.promotions.json is damaged" in note


def test_a_cluster_that_refuses_hides_nothing_else(world: World, store: Path) -> None:
    world.cluster.forbidden = {"configmaps"}
    result = CliRunner().invoke(app, ["status", "--model-store", str(store)])
    assert result.exit_code == 0, result.output
    assert "What production serves is unknown: The cluster refuses" in result.output
    assert "0.0.2" in result.output
