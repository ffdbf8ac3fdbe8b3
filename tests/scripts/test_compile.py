import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

import pipeline.models.jukebox  # noqa: F401 the tests' settings name it; without it, what imports this is skipped
from pipeline.checkout import head
from pipeline.core.errors import SettingsInvalid
from pipeline.settings import Settings, read_settings
from scripts.compile_pipeline import command, pipeline_resources
from tests.active_model import TABLES
from tests.settings_file import SETTINGS_FILE

ROOT = Path(__file__).parents[2]
CRDS = ROOT.parent / "shared" / "crds"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMAGE = "registry.example.com/jukebox-training@sha256:0123"

COMPILE = "import sys; from scripts.cli import main; sys.argv = ['jukebox', 'compile', *sys.argv[1:]]; main()"


@pytest.fixture(scope="module")
def settings() -> Settings:
    return replace(read_settings(), repository="https://git.example.com/ada/jukebox")


def name(settings: Settings, **arguments: str) -> str:
    _, version = pipeline_resources(settings, **arguments)
    found: str = version["metadata"]["name"]
    return found


# Content decides


def test_compiling_gives_the_same_bytes_in_another_process_and_folder(tmp_path: Path) -> None:
    here, there = tmp_path / "here.yaml", tmp_path / "there.yaml"
    command(output=here, commit=COMMIT)
    command(output=tmp_path / "again.yaml", commit=COMMIT)
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    arguments = [sys.executable, "-c", COMPILE, "--commit", COMMIT, "--output", str(there)]
    subprocess.run(arguments, cwd=tmp_path, env=environment, check=True)
    assert here.read_bytes() == (tmp_path / "again.yaml").read_bytes() == there.read_bytes()


def test_the_version_is_named_by_the_digest_of_its_canonical_spec(settings: Settings) -> None:
    _, version = pipeline_resources(settings, commit=COMMIT)
    spec = version["spec"]
    canonical = json.dumps({key: spec[key] for key in ("pipelineSpec", "platformSpec")}, sort_keys=True)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    assert version["metadata"]["name"] == f"prod-train-save-{digest[:12]}"
    assert re.fullmatch("prod-train-save-[0-9a-f]{12}", version["metadata"]["name"])
    assert spec["displayName"] == version["metadata"]["name"]
    assert spec["pipelineName"] == "prod-train-save"


def test_who_compiled_which_commit_makes_no_new_version(settings: Settings) -> None:
    assert name(settings, commit=COMMIT, built_by="ada") == name(settings, commit="f" * 40, built_by="bo")


@pytest.mark.parametrize(
    "change",
    [
        {"step_cpu": "2"},
        {"train_memory": "9Gi"},
        {"train_gpus": "1"},
        {"data": {name: f"s3://other/{name}" for name in TABLES}},
        {"model_storage_pvc": "another-claim"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_pipeline_makes_a_new_version(settings: Settings, change: dict[str, Any]) -> None:
    assert name(replace(settings, **change)) != name(settings)


def test_another_image_makes_a_new_version(settings: Settings) -> None:
    assert name(settings, image=IMAGE) != name(settings, image=IMAGE.replace("0123", "4567"))


def test_the_settings_image_is_as_good_as_one_that_is_given(settings: Settings) -> None:
    assert name(replace(settings, image=IMAGE)) == name(settings, image=IMAGE)


# Where it comes from


def test_the_version_tells_where_it_comes_from(settings: Settings) -> None:
    _, version = pipeline_resources(settings, image=IMAGE, commit=COMMIT, built_by="continuous-training-x7k2p")
    assert version["metadata"]["annotations"] == {
        "jukebox.github.io/commit": COMMIT,
        "jukebox.github.io/image": IMAGE,
        "jukebox.github.io/built-by": "continuous-training-x7k2p",
    }
    assert version["spec"]["codeSourceURL"] == f"https://git.example.com/ada/jukebox/commit/{COMMIT}"


def test_what_is_not_known_is_left_out(settings: Settings) -> None:
    _, version = pipeline_resources(settings)
    assert version["metadata"]["annotations"] == {"jukebox.github.io/image": settings.image}
    assert "codeSourceURL" not in version["spec"]


@pytest.mark.parametrize("ending", [".git", "/", ".git/"])
def test_the_commits_page_is_found_from_an_address_to_clone(settings: Settings, ending: str) -> None:
    cloned = replace(settings, repository=f"{settings.repository}{ending}")
    _, version = pipeline_resources(cloned, commit=COMMIT)
    assert version["spec"]["codeSourceURL"] == f"{settings.repository}/commit/{COMMIT}"


def test_both_resources_carry_the_labels_of_the_product(settings: Settings) -> None:
    pipeline, version = pipeline_resources(settings)
    assert (pipeline["kind"], pipeline["metadata"]["name"]) == ("Pipeline", "prod-train-save")
    assert version["kind"] == "PipelineVersion"
    for resource in (pipeline, version):
        assert resource["metadata"]["labels"] == {
            "app.kubernetes.io/name": "prod-train-save",
            "app.kubernetes.io/part-of": "jukebox",
            "app.kubernetes.io/component": "pipeline",
        }
        # Who applies them says where.
        assert "namespace" not in resource["metadata"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one commit."""
    for line in (
        "init --quiet",
        "-c user.name=Ada -c user.email=ada@example.com commit --quiet --allow-empty --message=First",
        "tag v1",
    ):
        subprocess.run(["git", *line.split()], cwd=tmp_path, check=True)
    return tmp_path


def test_the_commit_is_the_checkouts(checkout: Path) -> None:
    listed = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    assert head(checkout) == listed.stdout.strip()


def test_a_checkout_with_changes_is_not_taken_for_its_commit(checkout: Path, settings: Settings) -> None:
    commit = head(checkout)
    (checkout / "new").write_text("")
    subprocess.run(["git", "add", "new"], cwd=checkout, check=True)
    assert head(checkout) == f"{commit}-dirty"
    _, version = pipeline_resources(settings, commit=head(checkout))
    assert version["metadata"]["annotations"]["jukebox.github.io/commit"] == f"{commit}-dirty"
    assert version["spec"]["codeSourceURL"].endswith(f"/commit/{commit}")


def test_without_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert head(tmp_path) == ""


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert head() == ""


# The file


def test_the_file_holds_the_pipeline_before_its_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "folder" / "pipeline.yaml"
    command(output=output, image=IMAGE, commit=COMMIT)
    pipeline, version = yaml.safe_load_all(output.read_text("utf-8"))
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert (pipeline, version) == pipeline_resources(read_settings(), image=IMAGE, commit=COMMIT)
    assert capsys.readouterr().out == f"{output}: PipelineVersion {version['metadata']['name']}\n"


def test_another_settings_file_is_read_where_it_is_named(tmp_path: Path) -> None:
    larger = tmp_path / "settings.yaml"
    larger.write_text(SETTINGS_FILE.read_text().replace("train-memory: 4Gi", "train-memory: 64Gi"))
    output = tmp_path / "pipeline.yaml"
    command(output=output, settings=larger)
    _, version = yaml.safe_load_all(output.read_text())
    container = version["spec"]["pipelineSpec"]["deploymentSpec"]["executors"]["exec-train-model"]["container"]
    assert container["resources"]["resourceMemoryLimit"] == "64Gi"


@pytest.mark.parametrize("broken", ["write_text", "replace"])
def test_a_disk_that_is_full_leaves_the_earlier_file_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    output = tmp_path / "pipeline.yaml"
    output.write_text("the earlier one")
    write_text = Path.write_text

    def fail(path: Path, *arguments: Any) -> int:
        write_text(path, "half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, broken, fail)
    with pytest.raises(SettingsInvalid, match=re.escape(f"{output} cannot be written: No space left on device")):
        command(output=output)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"pipeline.yaml": "the earlier one"}


def test_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsInvalid, match="--output"):
        command(output=tmp_path / "file" / "pipeline.yaml")


# What the cluster takes


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a CRD with unknown fields refused, as the API server prunes and kubectl refuses them."""
    closed = dict(schema)
    if properties := schema.get("properties"):
        closed["properties"] = {key: strict(value) for key, value in properties.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    return closed


def validator(kind: str) -> jsonschema.Draft202012Validator:
    path = CRDS / f"pipelines.kubeflow.org_{kind}_v2beta1.yaml"
    if not path.is_file():
        pytest.skip(f"the CRD of {kind} is not beside this checkout")
    (version,) = yaml.safe_load(path.read_text())["spec"]["versions"]
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


def test_the_cluster_takes_both_resources(settings: Settings) -> None:
    for resource in pipeline_resources(settings, image=IMAGE, commit=COMMIT, built_by="ada"):
        validator(resource["kind"]).validate(resource)


def test_the_check_against_the_cluster_refuses_an_unknown_field(settings: Settings) -> None:
    _, version = pipeline_resources(settings)
    version["spec"]["codeSourceUrl"] = "https://git.example.com"
    with pytest.raises(jsonschema.ValidationError, match="codeSourceUrl"):
        validator("PipelineVersion").validate(version)


def test_the_names_fit_what_they_label(settings: Settings) -> None:
    # The server labels a version and its runs with these.
    for resource in pipeline_resources(settings):
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", resource["metadata"]["name"])
        assert len(resource["metadata"]["name"]) <= 63
