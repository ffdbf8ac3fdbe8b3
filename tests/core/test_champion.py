import json
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.core.champion import find_champion, read_version, search
from pipeline.core.encoders import encode
from pipeline.core.errors import SettingsInvalid, StoreBroken, VersionBroken
from pipeline.core.store import open_store
from pipeline.models.jukebox.tables import FEATURE_NAMES
from tests.s3_server import S3Server
from tests.serving import model, model_of
from tests.versions import LABELS, publish_version


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "models")


def champion(root: str, version: str = "") -> int | None:
    found = find_champion(root, "jukebox", version)
    return found.version if found else None


def test_where_nothing_was_published_there_is_none(root: str) -> None:
    assert champion(root) is None
    assert read_version(root, "jukebox") is None


def test_the_newest_that_is_better_than_the_one_before_is_the_champion(root: str) -> None:
    publish_version(root, "a")
    publish_version(root, "b", worse_by=-0.3, than=1)
    publish_version(root, "c", worse_by=0.0, than=2)
    assert champion(root) == 3


def test_who_passed_within_the_tolerance_does_not_lower_the_bar(root: str) -> None:
    """1.333 nats; then 1.362 and 1.391, each at most 0.05 worse than the champion, and one that is better."""
    publish_version(root, "1.333")
    publish_version(root, "1.362", worse_by=0.029, than=1)
    assert champion(root) == 1
    publish_version(root, "1.380", worse_by=0.047, than=1)
    assert champion(root) == 1
    publish_version(root, "1.300", worse_by=-0.033, than=1)
    publish_version(root, "1.310", worse_by=0.01, than=4)
    assert champion(root) == 4


def test_the_chain_that_an_older_release_has_let_slide_ends_where_it_began(root: str) -> None:
    publish_version(root, "1.333")
    publish_version(root, "1.362", worse_by=0.029, than=1)
    publish_version(root, "1.391", worse_by=0.029, than=2)
    assert champion(root) == 1


def test_what_stands_in_for_a_champion_that_is_gone_is_what_was_at_most_the_tolerance_worse(root: str) -> None:
    publish_version(root, "2.0")
    publish_version(root, "1.4", worse_by=-0.6, than=1)
    publish_version(root, "1.41", worse_by=0.01, than=2)
    assert champion(root) == 2
    open_store(root, "jukebox").delete(2)
    assert champion(root) == 3, "1 is 0.6 nats away"


def test_a_version_that_failed_is_no_champion_wherever_it_lies(root: str) -> None:
    publish_version(root, "good")
    publish_version(root, "kept", passed=False, apart=True)
    publish_version(root, "of an older release", passed=False)
    assert open_store(root, "jukebox").versions() == [1, 3]
    assert champion(root) == 1


def test_a_version_that_nobody_has_judged_is_no_champion(root: str) -> None:
    """Older releases called it passed when the gate was off."""
    publish_version(root, "good")
    publish_version(root, "off", verdict={"passed": True, "checks": [], "mode": "off", "champion": None})
    assert champion(root) == 1


@pytest.mark.parametrize("worse_by", [0.02, -0.5])
def test_who_was_compared_with_one_that_failed_has_proven_nothing(root: str, worse_by: float) -> None:
    """The ratchet of gate_mode warn: a bad model was published, and the next one had only to be no worse than that."""
    publish_version(root, "good")
    publish_version(root, "bad", passed=False, worse_by=2.0, than=1)
    publish_version(root, "as bad", worse_by=worse_by, than=2)
    assert champion(root) == 1


def test_who_was_compared_with_an_older_version_that_was_named_has_proven_nothing(root: str) -> None:
    publish_version(root, "2.0")
    publish_version(root, "1.4", worse_by=-0.6, than=1)
    judged = {"passed": True, "checks": [{"name": "no-worse-than-champion", "value": -0.1}]}
    publish_version(root, "1.9", verdict={**judged, "champion": {"version": 1, "is_best": False}})
    assert champion(root) == 2


def test_if_none_has_proven_anything_the_newest_that_passed_will_do(root: str) -> None:
    publish_version(root, "bad", passed=False)
    publish_version(root, "next", worse_by=0.01, than=1)
    publish_version(root, "last", worse_by=0.01, than=1)
    assert champion(root) == 3


def test_another_version_or_none_may_be_named(root: str) -> None:
    for run in "abc":
        publish_version(root, run)
    assert champion(root, "2") == 2
    assert champion(root, "none") is None
    assert [search(root, "jukebox", named).champion.is_best for named in ("2", "3", "")] == [False, True, True]  # type: ignore[union-attr]


@pytest.mark.parametrize("named", ["0", "-1", "two", "1.0", "³", " 1", "None"])
def test_what_names_no_version_is_refused(root: str, named: str) -> None:
    publish_version(root, "a")
    with pytest.raises(SettingsInvalid, match=r"champion_version is .*expected the number of a version, 'none'"):
        champion(root, named)


def test_a_named_version_must_be_there_and_have_passed(root: str) -> None:
    publish_version(root, "a")
    publish_version(root, "bad", passed=False, apart=True)
    publish_version(root, "bad, of an older release", passed=False)
    with pytest.raises(
        StoreBroken, match=rf"is 9, but {root}/jukebox/9 does not exist; name a version that passed \(1, 3\)"
    ):
        champion(root, "9")
    for failed in ("2", "3"):
        with pytest.raises(StoreBroken, match=f"is {failed}, which has failed its checks.*Not good enough"):
            champion(root, failed)


# What is wrong with version 2, where version 1 is good.


def replaced(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "lineage.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


def another(name: str, content: bytes, *, recorded: bool = False) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)
        if recorded:
            lineage = json.loads((folder / "lineage.json").read_text())
            replaced(sha256=lineage["sha256"] | {name: sha256(content).hexdigest()})(folder)

    return change


def sparse(name: str, size: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return change


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def encoded(encoder: str) -> dict[str, Any]:
    return {"column": "x", "unit": "", "derived": "", "encoder": encoder, "parameters": {}, "features": []}


ALL_BUT_THE_MODEL = ("labels.json", "golden.json", "lineage.json", "model-card.html")
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "only a model": (without(*ALL_BUT_THE_MODEL), "2/lineage.json does not exist"),
    "no labels": (without("labels.json"), "2/labels.json does not exist"),
    "an empty lineage": (another("lineage.json", b""), "not valid JSON"),
    "half a lineage": (another("lineage.json", b'{"model": {'), "not valid JSON"),
    "not text": (another("lineage.json", b"\xff\xfe\x00"), "not valid JSON"),
    "a list": (another("lineage.json", b"[]"), "is not a JSON object"),
    "a foreign lineage": (another("lineage.json", b'{"name": "bert"}'), "verdict, Field required"),
    "no profile": (replaced(data={}), "data.profile, Field required"),
    "an empty profile": (replaced(data={"profile": {}}), "profile.features, Field required"),
    "a profile of another kind": (
        replaced(
            data={
                "profile": {
                    "features": {"energy": {"mean": 1.0, "std": 1.0, "edges": [0], "shares": [1]}},
                    "label_shares": {},
                }
            }
        ),
        "1 edges for 1 bins",
    ),
    "no digests": (replaced(sha256={}), "sha256 of its model.onnx is .*, expected none"),
    "a verdict in words": (replaced(verdict={"passed": "yes", "checks": []}), "verdict.passed"),
    "a value that is no number": (
        replaced(verdict={"passed": True, "checks": [{"name": "x", "value": float("nan")}]}),
        "checks.0.value",
    ),
    "altered bytes": (another("model.onnx", model([9.0, 1.0, 1.0, 1.0])), "sha256 of its model.onnx"),
    "altered labels": (another("labels.json", b'["KR", "JP", "IS", "BR"]'), "sha256 of its labels.json"),
    "no labels in the file": (another("labels.json", b"[]", recorded=True), r"labels.json holds \[\]"),
    "labels twice": (another("labels.json", b'["A", "A", "B", "C"]', recorded=True), "answers with the shape"),
    "too few labels": (another("labels.json", b'["A", "B"]', recorded=True), r"answers with the shape \(1, 4\)"),
    "labels of another kind": (another("labels.json", b"7", recorded=True), "cannot be used"),
    "no ONNX": (another("model.onnx", b"text", recorded=True), "cannot be used"),
    "an ONNX file without features": (
        another("model.onnx", model([1.0] * 4).replace(b"features", b"Features"), recorded=True),
        "cannot be used",
    ),
    "weights that are no numbers": (
        another("model.onnx", model([float("nan")] * 4), recorded=True),
        "answers with numbers that are not finite",
    ),
    "no golden request": (without("golden.json"), "2/golden.json does not exist"),
    "another golden request": (another("golden.json", b"[]"), "sha256 of its golden.json"),
    "a card that is not the one that was published": (
        another("model-card.html", b"<script>"),
        "sha256 of its model-card.html",
    ),
    "a lineage of a gigabyte": (sparse("lineage.json", 1 << 30), "its lineage.json has more than 16777216 bytes"),
    "a model of a gigabyte": (sparse("model.onnx", 1 << 30), "its model.onnx has more than 134217728 bytes"),
    "a deep lineage": (another("lineage.json", b"[" * 1_000_000), "not valid JSON"),
    "deep labels": (another("labels.json", b"[" * 1_000_000, recorded=True), "cannot be used"),
    "a champion that is no number": (replaced(champion=[1]), "champion, Input should be a valid integer"),
    "an encoding of other features": (
        replaced(encoding=[encoded("Season")]),
        f"its model takes {FEATURE_NAMES[0]}, .*, but its lineage.json encodes x: sine of the year",
    ),
    "an unknown encoder": (
        replaced(encoding=[encoded("Hash")]),
        "encoding.0.encoder",
    ),
    "an encoder without what it has learnt": (
        replaced(encoding=[encoded("OneHot")]),
        "cannot be used: 'values'",
    ),
    "a newer release": (replaced(schema=99), "newer release: its lineage.json has schema 99, expected at most 2"),
    "a schema in words": (replaced(schema="2026-01"), "schema"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_version_is_named_with_what_to_do_and_is_not_the_champion(
    root: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish_version(root, "good")
    publish_version(root, "damaged", worse_by=-0.1, than=1)
    do, message = DAMAGES[damage]
    folder = Path(root, "jukebox", "2")
    do(folder)

    with caplog.at_level("WARNING", logger="jukebox"):
        found = search(root, "jukebox")

    assert found.champion
    assert found.champion.version == 1
    [said] = found.damaged
    assert "Version 2 " in said or "jukebox/2" in said
    assert "It is not the champion." in caplog.text
    with pytest.raises(VersionBroken, match=message):
        read_version(root, "jukebox", 2)
    with pytest.raises(VersionBroken, match=message):
        champion(root, "2")
    assert champion(root, "1") == 1


def test_a_store_in_which_all_is_damaged_has_no_champion(root: str) -> None:
    publish_version(root, "a")
    Path(root, "jukebox", "1", "lineage.json").unlink()
    assert search(root, "jukebox").champion is None


def test_a_store_that_fails_for_a_moment_is_not_one_without_a_champion(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_version(root, "a")

    opened = os.open

    def away(path: Any, *arguments: Any, **named: Any) -> int:
        if root in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(os, "open", away)
    with pytest.raises(StoreBroken, match="Permission denied"):
        champion(root)


@pytest.mark.parametrize("schema", [0, 1])
def test_a_lineage_of_an_older_release_is_read(root: str, schema: int) -> None:
    old = {"profile": {"features": {}, "region_shares": {"BR": 1.0}}}
    publish_version(root, "a", schema=schema, data=old)
    path = Path(root, "jukebox", "1", "lineage.json")
    lineage = json.loads(path.read_text())
    if not schema:
        del lineage["schema"]
    path.write_text(json.dumps(lineage))
    found = find_champion(root, "jukebox")
    assert found
    assert found.lineage["data"]["profile"]["label_shares"] == {"BR": 1.0}
    assert [(each["column"], each["encoder"]) for each in found.encoding] == [
        (name, "Number") for name in FEATURE_NAMES
    ]


ENCODED: dict[str, Any] = {
    "column": "fuel", "unit": "", "derived": "", "encoder": "OneHot", "parameters": {"values": ["diesel", "petrol"]},
    "features": ["fuel: diesel", "fuel: petrol"],
}  # fmt: skip


def test_a_version_tells_how_columns_become_features(root: str) -> None:
    onnx = model_of({"fuel: diesel": [0.0, 1.0]}, ENCODED["features"])
    publish_version(root, "a", onnx=onnx, labels=("low", "high"), encoding=[ENCODED])
    found = read_version(root, "jukebox")
    assert found
    vectors = encode(pl.DataFrame({"fuel": ["petrol", "diesel"]}), found.encoding)
    assert found.predictions(vectors)[:, 1] == pytest.approx([1 / 2, np.e / (1 + np.e)])


def test_a_version_of_a_regression_has_one_label(root: str) -> None:
    publish_version(root, "a", onnx=model_of({"energy": [1.0]}), labels=("price",))
    found = read_version(root, "jukebox")
    assert found
    assert found.labels == ["price"]


def test_a_check_that_is_not_defined_proves_nothing(root: str) -> None:
    publish_version(root, "good")
    checks = [{"name": "no-worse-than-champion", "value": None}]
    publish_version(root, "b", verdict={"passed": True, "checks": checks, "champion": {"version": 1, "is_best": True}})
    assert champion(root) == 1


def test_a_version_tells_the_order_of_its_features(root: str) -> None:
    names = [*FEATURE_NAMES[::-1]]
    publish_version(root, "a", onnx=model([1.0, 2.0, 3.0, 4.0], names))
    version = read_version(root, "jukebox")
    assert version
    assert version.features == names
    assert version.labels == [*LABELS]
    vector = np.zeros((1, len(names)), np.float32)
    vector[0, names.index("energy")] = 1
    expected = np.exp([1, 2, 3, 4]) / np.exp([1, 2, 3, 4]).sum()
    assert version.predictions(vector)[0] == pytest.approx(expected, rel=1e-5)
    assert "onnx" not in repr(replace(version))


def test_a_bucket_has_a_champion_as_a_folder_has(s3_environment: S3Server) -> None:
    root = f"s3://{s3_environment.bucket()}/models"
    publish_version(root, "a")
    publish_version(root, "b", worse_by=0.01, than=1)
    publish_version(root, "bad", passed=False, apart=True)
    assert champion(root) == 1
    assert read_version(root, "jukebox", 3)


@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "endless"])
def test_what_is_no_file_is_named_and_never_read(root: str, kind: str) -> None:
    """A pipe would hold whoever reads it for ever, and a link is to what lies elsewhere."""
    publish_version(root, "a")
    path = Path(root, "jukebox", "1", "lineage.json")
    path.rename(path.with_name("elsewhere"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "endless" else path.with_name("elsewhere"))
    with pytest.raises(StoreBroken, match=r"lineage\.json"):
        read_version(root, "jukebox", 1)


@pytest.mark.parametrize("file", ["model-card.html", "golden.json"])
def test_a_version_of_a_release_that_recorded_no_digest_of_a_file_is_read(root: str, file: str) -> None:
    publish_version(root, "a")
    folder = Path(root, "jukebox", "1")
    lineage = json.loads((folder / "lineage.json").read_text())
    replaced(sha256={name: digest for name, digest in lineage["sha256"].items() if name != file})(folder)
    (folder / file).unlink()
    assert champion(root) == 1
