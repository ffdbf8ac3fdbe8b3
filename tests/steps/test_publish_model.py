import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from html import unescape
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.core import store as store_module
from pipeline.core.champion import find_champion, find_served
from pipeline.core.errors import CommitOutdated, GateRefused, ParityBroken, SettingsInvalid
from pipeline.core.examples import write_predictions
from pipeline.core.report import summary_markdown
from pipeline.core.store import open_store
from pipeline.models.jukebox import MODEL
from pipeline.models.jukebox.tables import FEATURE_NAMES
from pipeline.steps import publish_model as publish_step
from pipeline.steps.evaluate_model import evaluate_model
from pipeline.steps.publish_model import Published, publish_model
from tests import regression
from tests.browser import CHROMIUM, MISSING, browser
from tests.core.test_store import Interruption, preceded, shared_client
from tests.report_fixture import FIRST, LAST, MOVED, documents
from tests.s3_server import S3Server
from tests.serving import model_of

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
            "model": MODEL,
            "store": str(tmp_path / "store"),
            "onnx_file": folder / "model.onnx",
            "preprocessing": folder / "examples",
            "predictions": folder / "predictions",
            **{name: folder / f"{name}.json" for name in JSONS},
            "model_name": "jukebox",
            "version": "0.0.2",
            "data_version": "7e" * 32,
            "data": {
                # Kubeflow makes floats of all numbers.
                FIRST: {"source": "s3://b/a", "sha256": "3" * 64, "rows": 14245.0, "bytes": 1204118.0},
                LAST: {"source": "https://h/r", "sha256": "c" * 64, "rows": 1129882, "bytes": 18774201},
            },
            "run_id": "1f0c",
            "run_name": "first",
            "commit": "0d4f6a8c",
            "commit_time": "2026-03-14T09:59:01+01:00",
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


def test_a_version_holds_the_model_its_labels_its_card_and_its_lineage(
    publish: Publish, found: dict[str, Any], tmp_path: Path
) -> None:
    published = publish()

    assert published.number == 1
    assert published.uri == str(tmp_path / "store" / "jukebox" / "1")
    files = {path.name: path.read_bytes() for path in Path(published.uri).iterdir()}
    assert set(files) == {"model.onnx", "labels.json", "golden.json", "model-card.html", "lineage.json"}
    assert files["model.onnx"] == ONNX
    assert json.loads(files["labels.json"]) == found["preprocessing"]["labels"]
    assert json.loads(files["golden.json"]) == found["parity"]["golden"]
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
        "schema": 2,
        "model": {"name": "jukebox", "version": "0.0.2", "number": 1, "prod_flag": False, "use": "candidate"},
        "run": {
            "id": "1f0c",
            "name": "first",
            "commit": "0d4f6a8c",
            "commit_time": "2026-03-14T08:59:01Z",
            "image": "registry.example.org/training@sha256:abab",
        },
        "data": {
            "version": "7e" * 32,
            FIRST: {"source": "s3://b/a", "sha256": "3" * 64, "rows": 14245, "bytes": 1204118},
            LAST: {"source": "https://h/r", "sha256": "c" * 64, "rows": 1129882, "bytes": 18774201},
            "profile": found["validation"]["profile"],
        },
        "shift": {"champion": found["validation"]["shift"], "served": None},
        "encoding": found["preprocessing"]["encoding"],
        "hyperparameters": found["training"]["hyperparameters"],
        "metrics": found["evaluation"]["model"],
        "beside": {"baseline": found["evaluation"]["baseline"], "champion": None, "served": None},
        "verdict": found["verdict"],
        "champion": None,
        "served": None,
        "parity": found["parity"],
        "sha256": {
            name: sha256(Path(published.uri, name).read_bytes()).hexdigest()
            for name in ("model.onnx", "labels.json", "golden.json", "model-card.html")
        },
    }
    assert isinstance(lineage["data"][FIRST]["rows"], int)


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
    found["verdict"].update(passed=False, summary="Top-1 is 0.02, must be >= 0.1.")

    with pytest.raises(GateRefused, match=r"Top-1 is 0\.02"):
        publish()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("mode", "checks", "use", "state"),
    [
        ("warn", 1, "not served: it failed its checks", "failed checks: not served"),
        ("off", 0, "not served: it was not judged", "not judged, the gate was off: not served"),
    ],
)
def test_what_has_not_passed_is_kept_where_nobody_serves_it(
    publish: Publish, found: dict[str, Any], tmp_path: Path, mode: str, checks: int, use: str, state: str
) -> None:
    assert publish(run_name="good").number == 1
    found["verdict"]["checks"][0]["passed"] = False
    found["verdict"].update(passed=False, mode=mode, checks=found["verdict"]["checks"][:checks])

    kept = publish(prod_flag=True)

    assert (kept.number, kept.passed) == (2, False)
    assert kept.uri == str(tmp_path / "store" / "jukebox" / ".failed" / "2")
    assert kept.lineage["verdict"]["passed"] is False
    assert kept.lineage["model"]["use"] == use
    assert state in words(card(kept))
    assert "served in dev" not in words(card(kept))
    assert open_store(str(tmp_path / "store"), "jukebox").versions() == [1]
    assert summary_markdown(kept.lineage, kept.uri).count("Kept, but not served: ") == 1
    assert publish(prod_flag=True) == kept


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
        ({"commit_time": "yesterday"}, "'yesterday', which is not a valid time with a zone"),
        ({"commit_time": "2026-03-14T08:59:01"}, "which is not a valid time with a zone"),
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
        f"jukebox 0.0.2 {MODEL.title}.",
        "holds 72 numbers",
        *MODEL.limits,
        "Use and limits",
        f"{100 * unseen['top1']:.1f}%",
        "{:.1f}–{:.1f}".format(*(100 * end for end in unseen["top1_interval"])),
        f"{evaluation['baseline']['seen']['cross_entropy']:.4g}",
        "s3://b/a",
        "14,245",
        "1,129,882",
        "2025-05-01",
        "batch_size 512",
        f"{MOVED} dB 1 −60 to 10",
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
    found["verdict"]["champion_version"] = "2"
    champion = found["evaluation"]["champion"]["unseen"]

    text = words(card(publish()))

    assert f"Champion version 2 {100 * champion['top1']:.1f}%" in text
    assert "{:.2f}–{:.2f}".format(*champion["cross_entropy_interval"]) in text


def test_the_card_of_a_model_whose_most_telling_split_is_empty(publish: Publish, found: dict[str, Any]) -> None:
    """With little data a split may be empty, and a label may have no row."""
    for who in ("model", "baseline"):
        found["evaluation"][who]["unseen"] = None
    found["evaluation"]["slices"]["label"][0] = {"value": "AR", "rows": 0, "examples": 0}
    found["preprocessing"]["splits"]["test-unseen"] = {
        "examples": 0,
        "rows": 0,
        "first_day": None,
        "last_day": None,
    }

    text = words(card(publish()))

    assert "Top-1, seen" in text
    assert "never met" not in text


def test_the_card_of_a_regression_tells_how_columns_become_features_and_the_answer(
    publish: Publish, found: dict[str, Any], tmp_path: Path
) -> None:
    found.update(regression.documents(tmp_path / "cars"))
    mileage = found["preprocessing"]["encoding"][0]["parameters"]["missing"]

    published = publish(model=regression.MODEL, model_name="used-cars", data={"cars": found["tables"]["cars"]})

    assert published.lineage["encoding"] == found["preprocessing"]["encoding"]
    text = words(card(published))
    for expected in (
        "used-cars 0.0.2 From what an advertisement says of a car to its price.",
        "It answers with a number in the unit of the target.",
        "It knows nothing of damage.",
        f"Mean absolute error, test {found['evaluation']['model']['test']['mae']:.3f} ",
        f"mileage km if missing: {mileage:.6g}, and then 1 in a second feature 2 0 to 500,000",
        "fuel 1 in the feature of its value, else 0: diesel, electric, petrol 3 –",
        "sold years since 2021-01-01 1 from 2020-01-01",
        "What comes out for the request above price 21.5 k€",
        "which always answers with the mean of the target in training",
        "s3://cars/*.csv",
    ):
        assert expected in text
    for unexpected in ("probab", "Label", "top-1"):
        assert unexpected not in text


# Judged again, if the champion is another one by the time that a model is published


@dataclass(frozen=True)
class Candidate:
    """A run that is about to publish a model which gives the true label this share, the rest to all others."""

    folder: Path
    share: float

    def publish(self, store: str, **changed: Any) -> Published:
        arguments: dict[str, Any] = {
            "model": MODEL,
            "store": store,
            "onnx_file": self.folder / "model.onnx",
            "preprocessing": self.folder / "examples",
            "predictions": self.folder / "predictions",
            **{name: self.folder / f"{name}.json" for name in JSONS},
            "run_name": self.folder.name,
            "run_id": "1",
            "commit_time": "",
            "model_name": "jukebox",
            "version": "0.0.2",
            "data_version": "7e" * 32,
            "data": {
                table: {"source": "s3://b/t", "sha256": "3" * 64, "rows": 1, "bytes": 1} for table in (FIRST, LAST)
            },
            "commit": "0d4f6a8c",
            "image": "",
            "prod_flag": False,
            "cluster_domain": "",
            "namespace": "",
        }
        return publish_model(**arguments | changed)


CALLS = ("_taken", "_register", "_staged", "_stage", "_claim", "_move", "_complete")
TEST_ROWS = {"test-seen": [[48, 2, 4], [2, 41, 3], [1, 1, 30]], "test-unseen": [[38, 2, 2], [2, 40, 4], [0, 2, 20]]}
# So many examples of each kind that what is worse is so beyond chance.
TIMES = 30
THREE = ("AR", "DE", "JP")
# What a row's energy, mode and key say: its label.
SIGNS = {"energy": [1, 0, 0], "mode": [0, 1, 0], "key": [0, 0, 1]}


def three_labels(share: float) -> bytes:
    """The ONNX model that gives the label of a row's sign this share."""
    return model_of(
        {name: [sign * float(np.log(2 * share / (1 - share))) for sign in row] for name, row in SIGNS.items()}
    )


Candidates = Callable[..., Candidate]


@pytest.fixture
def candidate(tmp_path: Path) -> Candidates:
    def prepare(name: str, share: float, store: str, **judging: Any) -> Candidate:
        """Have a model judged against the champion of the store as it is now."""
        found, folder = documents(champion=None, labels=3), tmp_path / name
        examples = folder / "examples"
        examples.mkdir(parents=True)
        found["preprocessing"]["labels"] = [*THREE]
        for split, rows in {"train": [[60, 30, 20]] * 3, **TEST_ROWS}.items():
            counts = pl.Series("counts", np.array(rows * TIMES, np.uint32), dtype=pl.Array(pl.UInt32, 3))
            features = {name: SIGNS.get(name, [0, 0, 0]) * TIMES for name in FEATURE_NAMES}
            table = pl.DataFrame(features, schema=dict.fromkeys(FEATURE_NAMES, pl.Float32)).with_columns(counts)
            table.write_parquet(examples / f"{split}.parquet")
        (examples / "preprocessing.json").write_text(json.dumps(found["preprocessing"]))
        (folder / "model.onnx").write_bytes(three_labels(share))
        for split in TEST_ROWS:
            answers = np.full((3, 3), (1 - share) / 2, np.float32)
            np.fill_diagonal(answers, share)
            write_predictions(folder / "predictions", split, np.tile(answers, (TIMES, 1)))
        asked, served = judging.get("champion_version", ""), judging.pop("served_version", "")
        evaluate_model(
            MODEL,
            examples,
            folder / "predictions",
            folder / "evaluation.json",
            folder / "verdict.json",
            champion=find_champion(store, "jukebox", asked),
            served=find_served(store, "jukebox", served),
            **judging,
        )
        for name_ in ("training", "validation", "parity"):
            (folder / f"{name_}.json").write_text(json.dumps(found[name_]))
        return Candidate(folder, share)

    return prepare


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    server: S3Server = request.getfixturevalue("s3_environment")
    request.getfixturevalue("monkeypatch").setattr(store_module, "s3_client", shared_client)
    return f"s3://{server.bucket()}/models"


def test_of_two_runs_that_end_together_the_second_is_judged_against_the_first(
    candidate: Candidates, store: str
) -> None:
    candidate("champion", 0.80, store).publish(store)
    better, worse = candidate("better", 0.90, store), candidate("worse", 0.76, store)
    assert json.loads((worse.folder / "verdict.json").read_text())["passed"], "it is within the tolerance of the first"

    assert better.publish(store).number == 2
    with pytest.raises(GateRefused, match=r"no-worse-than-champion is 0\.\d+.* of version 2"):
        worse.publish(store)

    assert open_store(store, "jukebox").versions() == [1, 2]
    assert open_store(store, "jukebox").failed() == []


def test_the_second_is_published_with_the_verdict_that_counts(candidate: Candidates, store: str) -> None:
    candidate("champion", 0.80, store).publish(store)
    first, second = candidate("first", 0.85, store), candidate("second", 0.86, store)

    first.publish(store)
    published = second.publish(store)

    assert published.number == 3
    assert published.lineage["champion"] == published.lineage["verdict"]["champion"]["version"] == 2
    assert "of version 2" in published.lineage["verdict"]["summary"]
    card = open_store(store, "jukebox").read(3, "model-card.html").decode()
    assert "Champion version 2" in words(card)
    assert "on the same test rows" in words(card)


def test_who_was_within_the_tolerance_of_the_first_changes_nothing_for_the_second(
    candidate: Candidates, store: str
) -> None:
    candidate("champion", 0.80, store).publish(store)
    first, second = candidate("first", 0.79, store), candidate("second", 0.785, store)
    first.publish(store)
    assert second.publish(store).lineage["champion"] == 1
    assert find_champion(store, "jukebox").version == 1  # type: ignore[union-attr]


# The version that production serves


def test_a_chain_of_models_each_a_little_worse_than_the_last_ends_at_what_production_serves(
    candidate: Candidates, store: str
) -> None:
    candidate("served", 0.80, store).publish(store)
    for number, share in ((2, 0.785), (3, 0.77)):
        last = str(number - 1)
        link = candidate(f"link {number}", share, store, champion_version=last, served_version="1")
        assert link.publish(store).number == number

    against_the_last: dict[str, Any] = {"champion_version": "3", "thresholds": {"calibration-ceiling": 0.5}}
    unchecked = candidate("unchecked", 0.71, store, **against_the_last)
    with_served = candidate("with served", 0.71, store, **against_the_last, served_version="1")

    verdict = json.loads((with_served.folder / "verdict.json").read_text())
    assert json.loads((unchecked.folder / "verdict.json").read_text())["passed"], "within the tolerance of the last"
    assert [check["name"] for check in verdict["checks"] if not check["passed"]] == ["no-worse-than-served"]
    assert "of version 1, which production serves" in verdict["summary"]
    with pytest.raises(GateRefused, match=r"no-worse-than-served is 0\.\d+, .*of the version that production serves"):
        with_served.publish(store)


def test_a_model_is_judged_again_against_what_production_serves(candidate: Candidates, store: str) -> None:
    candidate("served", 0.80, store).publish(store)
    better, best = (candidate(name, share, store, served_version="1") for name, share in (("b", 0.85), ("c", 0.86)))
    better.publish(store)

    published = best.publish(store)

    assert published.lineage["verdict"]["champion"]["version"] == 2
    assert (published.lineage["champion"], published.lineage["served"]) == (2, 1)
    assert "no-worse-than-served" in [check["name"] for check in published.lineage["verdict"]["checks"]]
    text = words(published.card.decode())
    assert "Served version 1, in production" in text
    assert "served in production version 1" in text


def test_what_production_serves_is_asked_once_if_it_is_the_champion(candidate: Candidates, store: str) -> None:
    candidate("served", 0.80, store).publish(store)
    published = candidate("twin", 0.80, store, served_version="1").publish(store)
    names = [check["name"] for check in published.lineage["verdict"]["checks"]]
    assert "no-worse-than-champion" in names
    assert "no-worse-than-served" not in names
    assert published.lineage["verdict"]["served"] == {"version": 1, "compared": True}
    assert published.lineage["served"] == published.lineage["champion"] == 1


@pytest.mark.parametrize("store", ["folder"], indirect=True)
@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_served_version_that_cannot_be_used_is_said_and_stops_nothing(
    candidate: Candidates, store: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    candidate("served", 0.80, store).publish(store)
    candidate("champion", 0.90, store).publish(store)
    Path(store, "jukebox", "1", "model.onnx").write_bytes(three_labels(0.1))
    if damage == "missing":
        open_store(store, "jukebox").delete(1)

    with caplog.at_level("WARNING", logger="jukebox"):
        published = candidate("new", 0.91, store, served_version="1").publish(store)

    why = "does not exist" if damage == "missing" else "is damaged: the sha256 of its model.onnx"
    told = f"production serves version 1, which cannot be compared with it: .*{why}"
    assert published.passed
    assert re.search(told, published.lineage["verdict"]["summary"])
    assert re.search(told, caplog.text)
    assert re.search(told, words(published.card.decode()).replace("Production", "production"))
    assert published.lineage["verdict"]["served"] == {"version": 1, "compared": False}


def test_a_gate_that_warns_keeps_the_second_where_nobody_serves_it(candidate: Candidates, store: str) -> None:
    candidate("champion", 0.80, store).publish(store)
    better, worse = candidate("better", 0.90, store), candidate("worse", 0.76, store, mode="warn")
    better.publish(store)

    kept = worse.publish(store)

    assert not kept.passed
    assert kept.uri.endswith("/.failed/3")
    assert open_store(store, "jukebox").versions() == [1, 2]


def test_the_first_two_runs_of_a_store_are_judged_one_after_the_other(candidate: Candidates, store: str) -> None:
    first, worse = candidate("first", 0.90, store), candidate("worse", 0.76, store)
    first.publish(store)
    with pytest.raises(GateRefused, match="of version 1"):
        worse.publish(store)


@pytest.mark.parametrize("asked", ["none", "1"])
def test_who_was_to_be_compared_with_another_is_not_judged_again(candidate: Candidates, store: str, asked: str) -> None:
    candidate("champion", 0.80, store).publish(store)
    better, other = candidate("better", 0.90, store), candidate("other", 0.79, store, champion_version=asked)
    better.publish(store)
    assert other.publish(store).number == 3


def overtaking(other: Candidate, store: str) -> Callable[[], None]:
    def overtake() -> None:
        other.publish(store)

    return overtake


@pytest.mark.parametrize(
    ("store", "other_share"), [("folder", 0.90), ("folder", 0.795), ("s3", 0.90)], indirect=["store"]
)
def test_however_two_publishers_interleave_no_worse_one_slips_through(
    candidate: Candidates, store: str, monkeypatch: pytest.MonkeyPatch, other_share: float
) -> None:
    """Another run publishes from begin to end before each call of the store by ours, one after the other."""
    monkeypatch.setattr(publish_step, "_card", lambda *_: "")
    champion = candidate("champion", 0.80, store)
    champion.publish(store)
    other, ours = candidate("other", other_share, store), candidate("ours", 0.76, store)
    orders = set()
    for call in range(1000):
        where = f"{store}/{call}"
        champion.publish(where)
        interruption = Interruption(call, overtaking(other, where))
        with monkeypatch.context() as patch:
            for kind, name in product((store_module._FolderStore, store_module._S3Store), CALLS):
                patch.setattr(kind, name, preceded(interruption.before, getattr(kind, name)))
            try:
                number = ours.publish(where).number
            except GateRefused:
                number = 0
        if not interruption.done:
            break
        models = open_store(where, "jukebox")
        published = {json.loads(models.read(number, "lineage.json"))["run"]["name"] for number in models.versions()}
        assert published == {"champion", "other"} | ({"ours"} if number else set())
        assert models.failed() == []
        orders.add(number)
        if other_share == 0.90:
            # Ours is worse than that by more than the tolerance, so it was published before it or not at all.
            assert number in (0, 2)
        else:
            assert number in (2, 3)
    assert call > 8
    assert len(orders) == 2


# A commit that is older than what is published


def test_a_run_of_an_older_commit_that_ends_later_publishes_nothing(publish: Publish, tmp_path: Path) -> None:
    publish(commit="new" * 4, commit_time="2026-03-14T12:00:00+00:00")
    with pytest.raises(CommitOutdated, match=r"commit 0d4f6a8c is of 2026-03-14T11:59:59Z, and version 1 is of .*push"):
        publish(run_name="late", commit_time="2026-03-14T12:59:59+01:00")
    assert open_store(str(tmp_path / "store"), "jukebox").versions() == [1]


@pytest.mark.parametrize("made", ["2026-03-14T12:00:00Z", "2026-03-14T12:00:01Z", "", "2999-01-01T00:00:00Z"])
def test_the_same_commit_a_newer_one_and_one_of_no_known_time_are_published(
    publish: Publish, tmp_path: Path, made: str
) -> None:
    publish(commit_time="2026-03-14T12:00:00Z")
    second = publish(run_name="second", commit_time=made)
    assert second.number == 2
    assert second.lineage["run"]["commit_time"] == (made if made.startswith("2026") else None)


def test_a_version_of_no_known_time_hides_no_newer_commit(publish: Publish, tmp_path: Path) -> None:
    publish(commit_time="2026-03-14T12:00:00Z")
    publish(run_name="by hand", commit_time="")
    Path(publish(run_name="damaged", commit_time="").uri, "lineage.json").write_text("{")
    with pytest.raises(CommitOutdated):
        publish(run_name="late", commit_time="2026-03-14T11:00:00Z")


def test_a_run_that_is_tried_again_is_not_outdated_by_what_came_after_it(publish: Publish, tmp_path: Path) -> None:
    first = publish(run_name="old", commit_time="2026-03-14T11:00:00Z")
    publish(run_name="new", commit_time="2026-03-14T12:00:00Z")
    assert publish(run_name="old", commit_time="2026-03-14T11:00:00Z") == first


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
    probabilities[0] = 0.75
    probabilities[1] = 0.25
    response["outputs"][0].update(shape=[2, len(labels)], data=[*probabilities, *[0.5] * len(labels)])

    text = words(card(publish()))

    body = re.search(r"-d '(\{.*?\})'", text)
    assert body
    assert json.loads(body[1]) == {"inputs": [{**request["inputs"][0], "shape": [1, 13], "data": [0.1, *first[1:]]}]}
    assert re.search(rf"Label Probability {labels[0]} 75\.0% {labels[1]} 25\.0% ", text)


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
def test_the_card_fits_a_phone_and_a_desk(publish: Publish, found: dict[str, Any], tmp_path: Path) -> None:
    found.update(documents(champion=2))
    found["verdict"]["champion_version"] = "2"
    page = Path(publish(prod_flag=True).uri, "model-card.html")

    found.update(regression.documents(tmp_path / "cars"))
    cars = publish(model=regression.MODEL, model_name="used-cars", data={"cars": found["tables"]["cars"]})

    pages = page, Path(cars.uri, "model-card.html")
    with browser() as window:
        for page, width in product(pages, (390, 1200)):
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
