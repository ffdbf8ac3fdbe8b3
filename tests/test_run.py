"""The whole pipeline, as ``jukebox run`` runs it."""

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import polars as pl
import pytest
import yaml
from rich.console import Console

from pipeline.sample import generate
from pipeline.schema import COUNTRY
from pipeline.settings import SETTINGS_FILE
from pipeline.store import open_store
from scripts.cli import main
from scripts.run import View
from tests.browser import CHROMIUM, MISSING, browser
from tests.http_server import Answer, serve_http
from tests.real_data import real_data
from tests.s3_server import S3Server
from tests.test_pipeline import STEPS

JUKEBOX = Path(sys.executable).with_name("jukebox")


@dataclass(frozen=True)
class Outcome:
    """What a command printed, how it ended and where it worked."""

    code: int
    printed: str
    folder: Path

    @property
    def report(self) -> str:
        return (self.folder / "latest" / "report.html").read_text()

    def lineage(self, number: int) -> dict[str, object]:
        found: dict[str, object] = json.loads(
            (self.folder / "models" / "jukebox" / str(number) / "lineage.json").read_text()
        )
        return found


def jukebox_run(folder: Path, *options: str) -> Outcome:
    """Run ``jukebox run`` in a process of its own, as a user does."""
    command: list[str | Path] = [JUKEBOX, "run", "--folder", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout + done.stderr, folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Songs and rankings of twelve countries."""
    songs, rankings = generate(tmp_path_factory.mktemp("data"), rows=20_000, last_day=date(2026, 5, 31), countries=12)
    return str(songs), str(rankings)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What ``make run`` does in a fresh clone."""
    return jukebox_run(tmp_path_factory.mktemp("build"))


def test_the_first_run_publishes_version_1_and_the_next_is_judged_against_it(first: Outcome) -> None:
    assert first.code == 0, first.printed
    assert "Published jukebox 0.0.2 as version 1" in first.printed
    for step in STEPS:
        assert f"{step}: succeeded" in first.printed
    assert "Version 1 is published" in first.report
    store = open_store(str(first.folder / "models"), "jukebox")
    assert store.versions() == [1]

    second = jukebox_run(first.folder)
    assert second.code == 0, second.printed
    assert "no-worse-than-champion" in second.printed
    assert "of version 1" in second.printed
    assert second.lineage(2)["champion"] == 1
    # The same data and hyperparameters, on the same machine: the same bytes, in a version of its own.
    assert store.read(1, "model.onnx") == store.read(2, "model.onnx")


def test_the_published_model_can_be_tried(first: Outcome) -> None:
    songs = first.folder / "latest" / "fetch-data" / "songs"
    predict: list[str | Path] = [JUKEBOX, "predict", "a", "--model-store", first.folder / "models", "--songs", songs]
    predicted = subprocess.run(predict, capture_output=True, text=True, check=True)
    assert predicted.stdout.count("%") == 5


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_a_real_run_fits_a_phone_and_a_desktop(first: Outcome, width: int) -> None:
    with browser() as chromium:
        chromium.open(first.folder / "latest" / "report.html", width=width)
        assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert chromium.complaints == []


def test_real_charts_pass(tmp_path: Path) -> None:
    songs, rankings = real_data(2023)
    outcome = jukebox_run(tmp_path, "--songs", str(songs), "--rankings", str(rankings))
    assert outcome.code == 0, outcome.printed
    assert "Published jukebox 0.0.2 as version 1" in outcome.printed
    lineage = outcome.lineage(1)
    assert lineage["data"]["rankings"]["rows"] == 87_266  # type: ignore[index]
    assert len(json.loads((tmp_path / "models" / "jukebox" / "1" / "labels.json").read_text())) == 72


def test_the_proxy_of_the_settings_is_not_that_of_this_machine(
    small: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = yaml.safe_load(SETTINGS_FILE.read_text())
    nowhere = {"http-proxy": "http://127.0.0.1:1", "https-proxy": "http://127.0.0.1:1"}
    document["data"] |= {**nowhere, "no-proxy": "$(KUBERNETES_SERVICE_HOST),.svc,.cluster.local"}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("JUKEBOX_SETTINGS", str(tmp_path / "settings.yaml"))
    songs, _ = small
    with serve_http() as server:
        server.serve("/songs.parquet", Answer(Path(songs).read_bytes(), etag='"1"'))
        # Songs are no rankings: it ends with the validation.
        outcome = jukebox_run(tmp_path / "build", "--songs", f"{server.url}/songs.parquet", "--rankings", songs)
    assert "fetch-data: succeeded" in outcome.printed
    assert "validate-data: failed" in outcome.printed


def test_a_renamed_column_stops_at_validation_which_names_it(small: tuple[str, str], tmp_path: Path) -> None:
    songs, rankings = small
    renamed = tmp_path / "renamed.parquet"
    pl.read_parquet(rankings).rename({COUNTRY: "land"}).write_parquet(renamed)
    outcome = jukebox_run(tmp_path / "build", "--songs", songs, "--rankings", str(renamed))
    assert outcome.code == 1
    assert "validate-data: failed" in outcome.printed
    assert "rankings has no column 'country'" in outcome.printed
    assert "preprocess-data" not in outcome.printed
    assert "train-model" not in outcome.printed
    assert "Nothing was published" in outcome.printed
    assert not (tmp_path / "build" / "models").exists()
    assert "Traceback" not in outcome.printed
    assert "rankings-columns" in outcome.report
    assert "The run stopped at validate-data" in outcome.report


def test_a_model_that_is_not_good_enough_is_not_published(small: tuple[str, str], tmp_path: Path) -> None:
    songs, rankings = small
    options = ("--songs", songs, "--rankings", rankings, "--epochs", "1")
    outcome = jukebox_run(tmp_path, *options, "--thresholds", '{"top5_floor": 0.999}')
    assert outcome.code == 1
    assert "verify-model failed: GateRefused: Not good enough: top5-floor" in outcome.printed
    assert "publish-model" not in outcome.printed
    assert not (tmp_path / "models").exists()
    assert "The model was refused" in outcome.report
    assert "Not good enough" in outcome.report
    assert "The run stopped at verify-model, so there is nothing to show of parity" in outcome.report


def test_data_and_store_on_s3(small: tuple[str, str], s3_environment: S3Server, tmp_path: Path) -> None:
    bucket = s3_environment.bucket()
    for path, key in zip(small, ("songs.parquet", "rankings/day.parquet"), strict=True):
        s3_environment.client.upload_file(path, bucket, key)
    outcome = jukebox_run(
        tmp_path,
        *("--songs", f"s3://{bucket}/songs.parquet", "--rankings", f"s3://{bucket}/rankings/*.parquet"),
        *("--model-store", f"s3://{bucket}/models", "--epochs", "3", "--prod-flag"),
    )
    assert outcome.code == 0, outcome.printed
    store = open_store(f"s3://{bucket}/models", "jukebox")
    lineage = json.loads(store.read(1, "lineage.json"))
    assert lineage["model"]["use"] == "may be proposed for production"
    assert lineage["hyperparameters"]["epochs"] == 3
    assert s3_environment.secret_key not in outcome.printed + outcome.report + (tmp_path / "latest/run.log").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hyperparameters", '{"epoch": 3}'), "epoch: found 3, which is no known key"),
        (("--hyperparameters", "epochs=3"), "--hyperparameters is 'epochs=3', which is no JSON"),
        (("--thresholds", '{"accuracy": 1}'), "accuracy: found 1, which is no known key"),
        (("--songs", "songs.parquet"), "songs and rankings belong together"),
        (("--songs", "no.parquet", "--rankings", "no.parquet"), "no.parquet"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["jukebox", "run", "--folder", str(tmp_path / "build"), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    printed = "".join(capsys.readouterr())
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "build" / "runs").exists()


def test_the_table_on_a_terminal_shows_states_times_and_last_words() -> None:
    console = Console(width=100, force_terminal=True, record=True, file=io.StringIO())
    view = View({"fetch-data": (), "train-model": ("fetch-data",), "verify-model": ("train-model",)}, console)
    for line in (
        "12:00:00.000 - INFO - Executing task \x1b[96m'fetch-data'\x1b[0m",
        "    2026-11-23 12:00:01,000 INFO step fetch-data succeeded after 1.00 s, peak memory 64 MiB",
        "12:00:01.000 - INFO - Task \x1b[96m'fetch-data'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m",
        "12:00:01.000 - INFO - Executing task \x1b[96m'train-model'\x1b[0m",
        "    2026-11-23 12:00:02,000 INFO epoch 1 of 2: loss 1.5",
        "    2026-11-23 12:00:03,000 ERROR DataInvalid: two things are wrong:",
        "    - the first",
        "    2026-11-23 12:00:03,000 INFO step train-model failed after 2.00 s, peak memory 512 MiB",
        "12:00:03.000 - ERROR - Task \x1b[96m'train-model'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m",
    ):
        view.feed(line)
    console.print(view.table())
    fetch, train, verify = console.export_text().splitlines()[1:4]
    assert fetch.split()[:2] == ["✓", "fetch-data"]
    assert "64 MiB" in fetch
    assert train.split()[:2] == ["✗", "train-model"]
    assert verify.split() == ["·", "verify-model"]
