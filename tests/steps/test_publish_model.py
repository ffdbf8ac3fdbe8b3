import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import GateRefused, ParityBroken, SettingsInvalid
from pipeline.schema import FEATURE_NAMES
from pipeline.steps.publish_model import Published, publish_model
from pipeline.store import open_store
from tests.browser import CHROMIUM, MISSING, browser
from tests.report_fixture import documents
from tests.s3_server import S3Server

ONNX = b"an onnx file"
JSONS = ("training", "validation", "evaluation", "verdict", "parity")

Publish = Callable[..., Published]


@pytest.fixture
def found() -> dict[str, Any]:
    """What the steps before have written, for tests to change before they publish."""
    return documents(champion=None)


@pytest.fixture
def publish(tmp_path: Path, found: dict[str, Any]) -> Publish:
    """Publish as run "first", or with other arguments, into a folder."""

    def run(**changed: Any) -> Published:
        folder = tmp_path / "artifacts"
        (folder / "examples").mkdir(parents=True, exist_ok=True)
        (folder / "examples" / "preprocessing.json").write_text(json.dumps(found["preprocessing"]))
        (folder / "model.onnx").write_bytes(ONNX)
        for name in JSONS:
            (folder / f"{name}.json").write_text(json.dumps(found[name]))
        arguments: dict[str, Any] = {
            "store": str(tmp_path / "store"),
            "model": folder / "model.onnx",
            "preprocessing": folder / "examples",
            **{name: folder / f"{name}.json" for name in JSONS},
            "model_name": "jukebox",
            "version": "0.0.2",
            "data_version": "7e" * 32,
            "data": {
                # Kubeflow makes floats of all numbers.
                "songs": {"source": "s3://b/songs", "sha256": "3" * 64, "rows": 14245.0, "bytes": 1204118.0},
                "rankings": {"source": "https://h/r", "sha256": "c" * 64, "rows": 1129882, "bytes": 18774201},
            },
            "run_id": "1f0c",
            "run_name": "first",
            "commit": "0d4f6a8c",
            "image": "registry.example.org/training@sha256:abab",
            "prod_flag": False,
            "cluster_domain": "apps.example.org",
            "namespace": "ada-jukebox",
        }
        return publish_model(**{**arguments, **changed})

    return run


def card(published: Published) -> str:
    return Path(published.uri, "model-card.html").read_text("utf-8")


def words(page: str) -> str:
    """What a reader sees, without the tags and with single spaces."""
    return " ".join(unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)).split())


def judged_against(found: dict[str, Any], champion: int) -> None:
    """Have the model judged against another version, as if the run began when that one was served."""
    found["verdict"]["champion"] = {"version": champion}


def test_a_version_holds_the_model_its_labels_its_card_and_its_lineage(
    publish: Publish, found: dict[str, Any], tmp_path: Path
) -> None:
    published = publish()

    assert published.number == 1
    assert published.uri == str(tmp_path / "store" / "jukebox" / "1")
    files = {path.name: path.read_bytes() for path in Path(published.uri).iterdir()}
    assert set(files) == {"model.onnx", "labels.json", "model-card.html", "lineage.json"}
    assert files["model.onnx"] == ONNX
    assert json.loads(files["labels.json"]) == found["preprocessing"]["labels"]
    assert json.loads(files["lineage.json"]) == published.lineage


def test_the_lineage_is_enough_to_make_the_model_again(publish: Publish, found: dict[str, Any]) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    published = publish()

    lineage = published.lineage
    created = lineage.pop("created")
    assert created.endswith("Z")
    assert before <= datetime.fromisoformat(created) <= datetime.now(UTC)
    golden = found["parity"].pop("golden")
    assert golden
    assert lineage == {
        "model": {"name": "jukebox", "version": "0.0.2", "number": 1, "prod_flag": False, "use": "candidate"},
        "run": {
            "id": "1f0c",
            "name": "first",
            "commit": "0d4f6a8c",
            "image": "registry.example.org/training@sha256:abab",
        },
        "data": {
            "version": "7e" * 32,
            "songs": {"source": "s3://b/songs", "sha256": "3" * 64, "rows": 14245, "bytes": 1204118},
            "rankings": {"source": "https://h/r", "sha256": "c" * 64, "rows": 1129882, "bytes": 18774201},
            "profile": found["validation"]["profile"],
        },
        "hyperparameters": found["training"]["hyperparameters"],
        "metrics": found["evaluation"]["model"],
        "verdict": found["verdict"],
        "champion": None,
        "parity": found["parity"],
        "sha256": {
            name: sha256(Path(published.uri, name).read_bytes()).hexdigest() for name in ("model.onnx", "labels.json")
        },
    }
    assert isinstance(lineage["data"]["songs"]["rows"], int)


@pytest.mark.parametrize(
    ("prod_flag", "use"), [(True, "may be proposed for production"), (False, "candidate, served in dev alone")]
)
def test_the_production_flag_is_said(publish: Publish, prod_flag: bool, use: str) -> None:
    published = publish(prod_flag=prod_flag)

    assert published.lineage["model"]["prod_flag"] is prod_flag
    assert use.startswith(published.lineage["model"]["use"])
    assert use in words(card(published))


def test_a_run_that_is_tried_again_gets_what_it_has_published(publish: Publish) -> None:
    first = publish()
    files = {path: path.read_bytes() for path in Path(first.uri).iterdir()}

    again = publish(commit="another", version="0.0.3")

    assert again == first
    assert {path: path.read_bytes() for path in Path(first.uri).iterdir()} == files


@pytest.mark.parametrize("other", [{"run_id": "2f0c"}, {"run_name": "second"}])
def test_another_run_gets_another_version(publish: Publish, other: dict[str, str]) -> None:
    assert publish().number == 1
    assert publish(**other).number == 2


def test_publishing_deletes_nothing(publish: Publish, tmp_path: Path) -> None:
    for run in "abcdefgh":
        publish(run_name=run)

    assert publish(run_name="a").number == 1
    assert open_store(str(tmp_path / "store"), "jukebox").versions() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_verdict_that_says_no_publishes_nothing(publish: Publish, found: dict[str, Any], tmp_path: Path) -> None:
    found["verdict"].update(passed=False, summary="Top-5 is 0.02, must be >= 0.1.")

    with pytest.raises(GateRefused, match=r"Top-5 is 0\.02"):
        publish()
    assert not (tmp_path / "store").exists()


def test_a_gate_that_only_warns_publishes_with_the_warning(publish: Publish, found: dict[str, Any]) -> None:
    found["verdict"].update(passed=False, mode="warn")
    found["verdict"]["checks"][0]["passed"] = False

    published = publish()

    assert published.lineage["verdict"]["passed"] is False
    assert "failed checks, published with a warning" in words(card(published))


def test_a_gate_that_is_off_is_said_to_be(publish: Publish, found: dict[str, Any]) -> None:
    found["verdict"].update(mode="off", checks=[], summary="The gate is off: nothing was judged.")

    assert "not judged: the gate was off" in words(card(publish()))


def test_a_model_that_the_verification_refused_is_not_published(
    publish: Publish, found: dict[str, Any], tmp_path: Path
) -> None:
    found["parity"]["passed"] = False

    with pytest.raises(ParityBroken, match="nothing is published"):
        publish()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"version": "1.0"}, r"'1\.0': expected a semantic version; use one such as 0\.0\.2"),
        ({"version": "v1.0.0"}, "semantic version"),
        ({"version": "01.0.0"}, "semantic version"),
        ({"version": "1.0.0\n"}, "semantic version"),
        ({"version": "1.0.٣"}, "semantic version"),
        ({"version": ""}, "semantic version"),
        ({"model_name": "Juke Box"}, "'Juke Box': expected a DNS label"),
        ({"store": ""}, "expected a folder's path or s3://bucket/prefix"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_written(
    publish: Publish, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsInvalid, match=message):
        publish(**wrong)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("version", ["0.0.2", "10.20.30", "1.0.0-rc.1", "1.0.0+build.5", "1.0.0-a.b-c+d"])
def test_a_semantic_version_is_taken(publish: Publish, version: str) -> None:
    assert publish(version=version).lineage["model"]["version"] == version


def test_the_card_says_what_a_reader_asks(publish: Publish, found: dict[str, Any]) -> None:
    evaluation = found["evaluation"]
    unseen = evaluation["model"]["unseen"]
    text = words(card(publish()))

    for expected in (
        "jukebox 0.0.2 Given 13 audio features of a song",
        "each of 72 countries",
        "Use and limits",
        f"{100 * unseen['top1']:.1f}%",
        "{:.1f}–{:.1f}".format(*(100 * end for end in unseen["top1_interval"])),
        f"{evaluation['baseline']['seen']['cross_entropy']:.3f}",
        "s3://b/songs",
        "14,245",
        "1,129,882",
        "2025-05-01",
        "batch_size 512",
        *(check["name"] for check in found["verdict"]["checks"]),
        *(runtime["runtime"] for runtime in found["parity"]["runtimes"]),
        "commit 0d4f6a8c",
        "champion none yet",
        sha256(ONNX).hexdigest(),
        *FEATURE_NAMES,
        ", ".join(found["preprocessing"]["labels"]),
    ):
        assert expected in text


def test_the_champions_figures_stand_beside_the_models(publish: Publish, found: dict[str, Any]) -> None:
    found.update(documents(champion=2))
    champion = found["evaluation"]["champion"]["unseen"]

    text = words(card(publish()))

    assert f"Champion version 2 {100 * champion['top1']:.1f}%" in text
    assert "{:.2f}–{:.2f}".format(*champion["cross_entropy_interval"]) in text


def test_the_card_of_a_model_that_met_no_new_song(publish: Publish, found: dict[str, Any]) -> None:
    """With little data a split may be empty, and a country may have no row."""
    for who in ("model", "baseline"):
        found["evaluation"][who]["unseen"] = None
    found["evaluation"]["countries"][0].update(rows=0, recall=None, recall_top5=None, precision=None)
    found["preprocessing"]["splits"]["test-unseen"] = {
        "examples": 0,
        "rows": 0,
        "first_day": None,
        "last_day": None,
    }

    text = words(card(publish()))

    assert "First guess right, seen songs" in text
    assert "expect less of a new song" in text


ENDPOINT = "https://jukebox-ada-jukebox.apps.example.org/v2/models/jukebox/infer"


def test_the_card_shows_where_the_model_is_served(publish: Publish) -> None:
    page = card(publish())

    assert f'<a href="{ENDPOINT}">' in page
    assert f"curl {ENDPOINT} " in words(page)


@pytest.mark.parametrize(
    "unset", [{"cluster_domain": ""}, {"cluster_domain": "<CLUSTER_DOMAIN>"}, {"namespace": "<USER_NAME>-jukebox"}]
)
def test_the_card_shows_no_address_while_the_settings_have_none(publish: Publish, unset: dict[str, str]) -> None:
    page = card(publish(**unset))

    assert "href" not in page
    assert "https://jukebox" not in page
    assert 'curl "$SERVER/v2/models/jukebox/infer"' in words(page)


def test_the_card_shows_a_request_that_can_be_sent_and_its_answer(publish: Publish, found: dict[str, Any]) -> None:
    labels = found["preprocessing"]["labels"]
    first = [0.1 + 1e-9, *range(1, 13)]
    request, response = found["parity"]["golden"]["request"], found["parity"]["golden"]["response"]
    request["inputs"][0].update(shape=[2, 13], data=[*first, *[99.0] * 13])
    probabilities = [0.0] * len(labels)
    probabilities[labels.index("MX")] = 0.75
    probabilities[labels.index("US")] = 0.25
    response["outputs"][0].update(shape=[2, len(labels)], data=[*probabilities, *[0.5] * len(labels)])

    text = words(card(publish()))

    body = re.search(r"-d '(\{.*?\})'", text)
    assert body
    assert json.loads(body[1]) == {"inputs": [{**request["inputs"][0], "shape": [1, 13], "data": [0.1, *first[1:]]}]}
    assert re.search(r"Country Probability MX 75\.0% US 25\.0% ", text)


def test_what_the_card_shows_is_text_and_no_markup(publish: Publish, found: dict[str, Any]) -> None:
    found["validation"]["checks"][0].update(passed=False, message="<script>alert(1)</script>")

    page = card(publish(run_name="<img src=x>"))

    assert "<script" not in page
    assert "<img" not in page
    assert "<script>alert(1)</script>" in unescape(page)


def test_the_card_needs_nothing_from_elsewhere(publish: Publish) -> None:
    page = card(publish())

    assert re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'> ]+)", page) == [ENDPOINT]
    assert not re.search(r"@import|url\(|<link|<script", page)


@pytest.mark.skipif(not CHROMIUM, reason=MISSING)
def test_the_card_fits_a_phone_and_a_desk(publish: Publish, found: dict[str, Any]) -> None:
    found.update(documents(champion=2))
    page = Path(publish(prod_flag=True).uri, "model-card.html")

    with browser() as window:
        for width in (390, 1200):
            window.open(page, width=width)
            assert window.evaluate("document.documentElement.scrollWidth") == width
            assert window.evaluate("document.querySelector('h1').getBoundingClientRect().height > 0")
            assert window.requested == [page.as_uri()]
            assert window.complaints == []


def test_a_bucket_takes_a_version_as_a_folder_does(publish: Publish, s3_environment: S3Server) -> None:
    root = f"s3://{s3_environment.bucket()}/models"

    published = publish(store=root)

    assert published.uri == f"{root}/jukebox/1"
    store = open_store(root, "jukebox")
    assert store.read(1, "model.onnx") == ONNX
    assert json.loads(store.read(1, "lineage.json")) == published.lineage
