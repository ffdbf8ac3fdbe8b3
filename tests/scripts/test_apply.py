"""``jukebox apply`` against the webhook's answers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.core.errors import ServerUnavailable, SettingsInvalid, SpecRefused
from pipeline.settings import PIPELINE
from scripts.apply import LARGEST, apply, read_resources
from scripts.cli import app
from scripts.clients.kubernetes_api import Cluster
from tests.kfp.world import NAMESPACE, SETTINGS, World, compiled, make_step, named

pytest_plugins = ("tests.kfp.fixtures",)
VERSION = f"{PIPELINE}-000000000001"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return compiled(tmp_path / "pipeline.yaml")


def created(world: World) -> list[str]:
    """What was really created, in order."""
    return [name for _, name in world.cluster.objects]


def edited(file: Path, **spec: Any) -> Path:
    """The file with another version spec."""
    pipeline, version = yaml.safe_load_all(file.read_text())
    version["spec"]["pipelineSpec"].update(spec)
    file.write_text(yaml.safe_dump_all([pipeline, version]))
    return file


def test_the_pipeline_is_applied_first_and_the_version_belongs_to_it(world: World, file: Path, tmp_path: Path) -> None:
    file, name = named(file)
    result = CliRunner().invoke(app, ["apply", str(file), "--result-dir", str(tmp_path / "results")])
    assert result.exit_code == 0, result.output
    assert created(world) == [PIPELINE, name]
    version = world.cluster.objects["pipelineversions", name]
    pipeline = world.cluster.objects["pipelines", PIPELINE]
    assert version["metadata"]["ownerReferences"][0]["uid"] == pipeline["metadata"]["uid"]
    assert f"{name}: created" in result.output
    results = {path.name: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert results == {"version": name, "created": "true"}


@pytest.mark.parametrize("image", [f"{SETTINGS.image}@sha256:{'1' * 64}", "elsewhere.example.com/a@sha256:" + "0" * 64])
def test_nothing_is_applied_that_runs_another_image_than_the_one_that_was_built(
    world: World, file: Path, image: str
) -> None:
    file, _ = named(file)
    result = CliRunner().invoke(app, ["apply", str(file), f"--image={image}"])
    assert isinstance(result.exception, SpecRefused | SettingsInvalid)
    assert image in str(result.exception)
    assert not created(world)


def test_applying_again_changes_nothing_and_succeeds(world: World, file: Path) -> None:
    resources = read_resources(file)
    assert apply(Cluster(NAMESPACE), *resources, timeout=5)
    before = json.dumps(list(world.cluster.objects.items()))
    assert not apply(Cluster(NAMESPACE), *resources, timeout=5)
    assert json.dumps(list(world.cluster.objects.items())) == before


def test_a_changed_description_of_the_pipeline_is_applied(world: World, file: Path) -> None:
    pipeline, version = read_resources(file)
    apply(Cluster(NAMESPACE), pipeline, version, timeout=5)
    apply(Cluster(NAMESPACE), {**pipeline, "spec": {**pipeline["spec"], "description": "new"}}, version, timeout=5)
    assert world.cluster.objects["pipelines", PIPELINE]["spec"]["description"] == "new"


def test_another_spec_under_the_same_name_is_an_error(world: World, file: Path) -> None:
    apply(Cluster(NAMESPACE), *read_resources(file), timeout=5)
    other = read_resources(edited(file, defaultPipelineRoot="elsewhere"))
    with pytest.raises(ServerUnavailable, match=f"{VERSION} exists with another pipelineSpec"):
        apply(Cluster(NAMESPACE), *other, timeout=5)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"schemaVersion": "9.9.9"}, "KFP only supports schema version 2.1.0, but the pipeline spec has version 9.9.9"),
        ({"pipelineInfo": {"name": "Bad Name"}}, "must contain only lowercase alphanumeric characters"),
        # Of these two the server says only that no spec is provided.
        ({"bogus": 1}, 'no field named "bogus"'),
        ({"root": None}, "no root"),
    ],
    ids=["schema", "name", "unknown field", "no root"],
)
def test_a_refusal_is_shown_without_its_wrapping(world: World, file: Path, spec: dict[str, Any], said: str) -> None:
    file = edited(file, **spec)
    if spec == {"root": None}:
        pipeline, version = yaml.safe_load_all(file.read_text())
        del version["spec"]["pipelineSpec"]["root"]
        file.write_text(yaml.safe_dump_all([pipeline, version]))
    with pytest.raises(ServerUnavailable) as refused:
        apply(Cluster(NAMESPACE), *read_resources(file), timeout=5)
    assert said in str(refused.value)
    assert "admission webhook" not in str(refused.value)
    assert VERSION not in created(world)


def test_an_admission_that_restarts_is_waited_for(world: World, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a webhook that is down, when it comes up, then both resources are applied."""
    world.cluster.admission = "down"
    answer = world.cluster.answer

    def recovering(*request: Any) -> Any:
        if len(world.cluster.asked) == 6:
            world.cluster.admission = "up"
        return answer(*request)

    monkeypatch.setattr(world.cluster, "answer", recovering)
    assert apply(Cluster(NAMESPACE), *read_resources(file), timeout=20)
    assert created(world) == [PIPELINE, VERSION]


def test_nothing_slips_past_an_admission_that_is_not_there(world: World, file: Path) -> None:
    world.cluster.admission = "absent"
    with pytest.raises(ServerUnavailable, match="admission webhook is missing: nothing was created"):
        apply(Cluster(NAMESPACE), *read_resources(file), timeout=0.1)
    assert VERSION not in created(world)


@pytest.mark.parametrize("plural", ["pipelines", "pipelineversions"])
def test_a_missing_right_is_named(world: World, file: Path, plural: str) -> None:
    world.cluster.forbidden = {plural}
    with pytest.raises(ServerUnavailable, match="needs get, create and patch on pipelines and pipelineversions"):
        apply(Cluster(NAMESPACE), *read_resources(file), timeout=5)


def test_names_that_some_yaml_readers_take_for_truth_values_arrive_as_they_are(world: World, tmp_path: Path) -> None:
    """Fact 4: kfp writes a parameter named n without quotes; sent as JSON it stays n."""

    def trapped(n: int = 3) -> None:
        make_step(rows=n)

    file = compiled(tmp_path / "trapped.yaml", pipeline=trapped)
    assert "componentInputParameter: n\n" in file.read_text()
    apply(Cluster(NAMESPACE), *read_resources(file), timeout=5)
    root = world.cluster.objects["pipelineversions", VERSION]["spec"]["pipelineSpec"]["root"]
    assert list(root["inputDefinitions"]["parameters"]) == ["n"]


def test_a_name_that_has_become_a_truth_value_is_refused(file: Path) -> None:
    text = file.read_text().replace("componentInputParameter: rows", "no: rows")
    file.write_text(text)
    with pytest.raises(SettingsInvalid, match=r"has the key False in \S*, expected text"):
        read_resources(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"holds \[\]"),
        (b"kind: ConfigMap", r"holds \['ConfigMap'\]"),
        (b"- 1", r"holds \[\]"),
        (b"a: [", "cannot be read"),
        (b"\xff\xfe\xfd", "cannot be read"),
        (b"a: &a [1]\nb: *a", "has a YAML alias"),
        (b"a: !!python/object/apply:os.system [ls]", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"a:\n  " + b"- " * 100_000, "cannot be read"),
        (b"? 0x" + b"f" * 5000 + b"\n: 1", "cannot be read"),
        (b"#" * (LARGEST + 1), "has more than 1,048,576 bytes"),
        (None, "is not a file"),
    ],
    ids=[
        *(
            "nothing",
            "another kind",
            "a list",
            "broken",
            "not UTF-8",
            "an alias",
            "a tag",
            "a deep flow",
            "a deep list",
        ),
        *("a long number", "a large file", "a pipe"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "other.yaml"
    os.mkfifo(file) if content is None else file.write_bytes(content)
    with pytest.raises(SettingsInvalid, match=said):
        read_resources(file)


def test_a_file_that_leads_to_a_secret_does_not_show_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("ey: [a secret")
    (tmp_path / "pipeline.yaml").symlink_to(tmp_path / "token")
    with pytest.raises(SettingsInvalid) as refused:
        read_resources(tmp_path / "pipeline.yaml")
    assert "secret" not in str(refused.value)


def test_a_cluster_that_is_away_is_said(world: World, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(NAMESPACE)
    monkeypatch.setattr(world.cluster, "answer", lambda *_: 1 / 0)  # the connection breaks off
    with pytest.raises(ServerUnavailable, match="cluster's API does not answer"):
        apply(cluster, *read_resources(file), timeout=0.1)
