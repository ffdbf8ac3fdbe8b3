"""The whole pipeline, as ``jukebox run`` runs it."""

import html
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
import yaml
from kfp.local.status import Status
from rich.console import Console

from pipeline.core.candidate import parse
from pipeline.core.report import render_report
from pipeline.core.store import open_store
from pipeline.steps.fetch_data import resolve_data_version
from scripts.cli import main
from scripts.data_version import read_data
from scripts.run import View, _Process, run_pipeline
from tests.active_model import MODEL, TABLES
from tests.browser import CHROMIUM, MISSING, browser
from tests.http_server import Answer, serve_http
from tests.models.jukebox.small import generate
from tests.s3_server import S3Server
from tests.settings_file import SETTINGS_FILE
from tests.test_pipeline import STEPS

FIRST, *_, LAST = TABLES
FLOOR = MODEL.checks[-1].name
STRICT = json.dumps({FLOOR: 0.999})
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


def uris(tables: Mapping[str, object]) -> list[str]:
    """The options that name the tables."""
    return [f"--data={name}={place}" for name, place in tables.items()]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tables with a dozen labels."""
    made = generate(tmp_path_factory.mktemp("data"), rows=20_000, last_day=date(2026, 5, 31))
    return {name: str(file) for name, file in made.items()}


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
    candidate = parse((first.folder / "latest" / "run.log").read_text())
    assert candidate
    assert (candidate.number, candidate.passed, candidate.prod_flag) == (2, True, False)
    assert "candidate {" not in second.printed
    # The same data and hyperparameters, on the same machine: the same bytes, in a version of its own.
    assert store.read(1, "model.onnx") == store.read(2, "model.onnx")


def test_the_published_model_can_be_tried(first: Outcome) -> None:
    table = first.folder / "latest" / "fetch-data" / "tables" / FIRST
    predict: list[str | Path] = [JUKEBOX, "predict", "a", "--model-store", first.folder / "models", "--table", table]
    predicted = subprocess.run(predict, capture_output=True, text=True, check=True)
    assert predicted.stdout.count("%") == 5


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_a_real_run_fits_a_phone_and_a_desktop(first: Outcome, width: int) -> None:
    with browser() as chromium:
        chromium.open(first.folder / "latest" / "report.html", width=width)
        assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert chromium.complaints == []


def test_the_proxy_of_the_settings_is_not_that_of_this_machine(
    small: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = yaml.safe_load(SETTINGS_FILE.read_text())
    nowhere = {"http-proxy": "http://127.0.0.1:1", "https-proxy": "http://127.0.0.1:1"}
    document["data"] |= {**nowhere, "no-proxy": "$(KUBERNETES_SERVICE_HOST),.svc,.cluster.local"}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("JUKEBOX_SETTINGS", str(tmp_path / "settings.yaml"))
    with serve_http() as server:
        server.serve("/a.parquet", Answer(Path(small[FIRST]).read_bytes(), etag='"1"'))
        # One table is not the other: it ends with the validation.
        outcome = jukebox_run(tmp_path / "build", *uris({FIRST: f"{server.url}/a.parquet", LAST: small[FIRST]}))
    assert "fetch-data: succeeded" in outcome.printed
    assert "validate-data: failed" in outcome.printed


def test_a_line_that_cannot_be_read_stops_the_run_and_is_named(small: dict[str, str], tmp_path: Path) -> None:
    table = pl.read_parquet(small[LAST]).head(3)
    lines = table.write_csv().splitlines()
    (tmp_path / "last.csv").write_text("\n".join([*lines[:2], '"' + lines[2], lines[3]]))
    outcome = jukebox_run(tmp_path / "build", *uris({**small, LAST: tmp_path / "last.csv"}))
    assert outcome.code == 1
    assert "last.csv, line 3: a quote is not closed" in outcome.printed
    assert "last.csv, line 3: a quote is not closed" in outcome.report
    assert "Traceback" not in outcome.printed


def test_a_renamed_column_stops_at_validation_which_names_it(small: dict[str, str], tmp_path: Path) -> None:
    column = MODEL.tables[-1].columns[1].name
    renamed = tmp_path / "renamed.parquet"
    pl.read_parquet(small[LAST]).rename({column: "another"}).write_parquet(renamed)
    outcome = jukebox_run(tmp_path / "build", *uris({**small, LAST: renamed}))
    assert outcome.code == 1
    assert "validate-data: failed" in outcome.printed
    assert f"{LAST} has no column {column!r}" in outcome.printed
    assert "preprocess-data" not in outcome.printed
    assert "train-model" not in outcome.printed
    assert "Nothing was published" in outcome.printed
    assert not (tmp_path / "build" / "models").exists()
    assert "Traceback" not in outcome.printed
    assert f"{LAST}-columns" in outcome.report
    assert "The run stopped at validate-data" in outcome.report


def test_a_model_that_is_not_good_enough_is_not_published(small: dict[str, str], tmp_path: Path) -> None:
    options = (*uris(small), "--epochs", "1")
    outcome = jukebox_run(tmp_path, *options, "--thresholds", STRICT)
    assert outcome.code == 1
    assert "verify-model failed: GateRefused: Not good enough: " in outcome.printed
    assert f"{FLOOR} is " in outcome.printed
    assert "publish-model" not in outcome.printed
    assert not (tmp_path / "models").exists()
    assert "The model was refused" in outcome.report
    assert "Not good enough" in outcome.report
    assert "The run stopped at verify-model, so there is nothing to show of parity" in outcome.report


def test_a_model_that_is_not_good_enough_is_kept_where_nobody_serves_it_if_the_gate_only_warns(
    small: dict[str, str], tmp_path: Path
) -> None:
    options = (*uris(small), "--epochs", "1", "--gate-mode", "warn")
    outcome = jukebox_run(tmp_path, *options, "--thresholds", STRICT)
    assert outcome.code == 0, outcome.printed
    kept = tmp_path / "models" / "jukebox" / ".failed" / "1"
    assert f"Kept jukebox 0.0.2 as version 1 in {kept}, which is not served" in outcome.printed
    assert (kept / "model.onnx").is_file()
    assert "Version 1 is kept but not served" in outcome.report
    store = open_store(str(tmp_path / "models"), "jukebox")
    assert (store.versions(), store.failed()) == ([], [1])


def test_data_and_store_on_s3(small: dict[str, str], s3_environment: S3Server, tmp_path: Path) -> None:
    bucket = s3_environment.bucket()
    for key, path in zip(("first.parquet", "last/day.parquet"), small.values(), strict=True):
        s3_environment.client.upload_file(path, bucket, key)
    outcome = jukebox_run(
        tmp_path,
        *uris({FIRST: f"s3://{bucket}/first.parquet", LAST: f"s3://{bucket}/last/*.parquet"}),
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
        (("--hyperparameters", '{"epoch": 3}'), "epoch: found 3, which is not a known key"),
        (("--hyperparameters", "epochs=3"), "--hyperparameters is 'epochs=3', which is not valid JSON"),
        (("--thresholds", '{"accuracy": 1}'), "accuracy: found 1, which is not a known check"),
        (("--data", f"{FIRST}=a.parquet"), f"--data: {LAST} is missing; expected {FIRST}, {LAST}"),
        (("--data", "cars=a.csv"), "--data is 'cars=a.csv', expected TABLE=URI, once for each of the tables"),
        (uris(dict.fromkeys(TABLES, "no.parquet")), "no.parquet"),
        (("--epochs", "abc"), "epochs: found 'abc', input should be a valid integer"),
        (("--epochs", "0"), "epochs: found '0', input should be greater than or equal to 1"),
        (("--hyperparameters", '{"learning_rate": NaN}'), "learning_rate: found nan"),
        (("--folder", "README.md/build"), "README.md/build, which cannot be created: Not a directory"),
        (("--gate-mode", "of"), "--gate-mode is 'of'; expected one of enforce, warn, off"),
        (uris({FIRST: "a\udcff.csv", LAST: "b.csv"}), rf"--data is '{FIRST}=a\udcff.csv', which is not UTF-8"),
        (uris({FIRST: "{{$.a}}.csv", LAST: "b.csv"}), "Kubeflow reads {{$ as the start of a placeholder"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    options: Sequence[str],
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
    usage = resource.getrusage(resource.RUSAGE_SELF)
    view.began("fetch-data")
    view.said("2026-11-23 12:00:01,000 INFO step fetch-data succeeded after 1.00 s, peak memory 64 MiB")
    view.ended(0, usage)
    view.began("train-model")
    for line in (
        "2026-11-23 12:00:02,000 INFO epoch 1 of 2: loss 1.5",
        "2026-11-23 12:00:03,000 ERROR DataInvalid: two things are wrong:",
        "- the first",
        "2026-11-23 12:00:03,000 INFO step train-model failed after 2.00 s, peak memory 512 MiB",
    ):
        view.said(line)
    view.ended(1, usage)
    console.print(view.table())
    fetch, train, verify = console.export_text().splitlines()[1:4]
    assert fetch.split()[:2] == ["✓", "fetch-data"]
    assert "64 MiB" in fetch
    assert train.split()[:2] == ["✗", "train-model"]
    assert "512 MiB" in train
    assert verify.split() == ["·", "verify-model"]
    run = view.run("a-run", datetime.now(UTC), {"model_store": "models"})
    assert [step.error for step in run.steps] == ["", "DataInvalid: two things are wrong:\n- the first", ""]


def test_a_training_that_diverges_leaves_a_report_and_says_what_to_change(
    small: dict[str, str], tmp_path: Path
) -> None:
    wild = json.dumps({"learning_rate": 1.0, "hidden_layers": [256] * 16})
    outcome = jukebox_run(tmp_path, *uris(small), "--hyperparameters", wild)
    assert outcome.code == 1
    assert "train-model failed: NotFinite: the loss in epoch 1 of 2" in outcome.printed
    assert "lower learning_rate (it was 1; try 0.1)" in outcome.printed
    assert "Nothing was published" in outcome.printed
    assert "Traceback" not in outcome.printed
    assert "The run stopped at train-model" in outcome.report
    assert "try 0.1" in outcome.report
    assert "evaluate-model" not in outcome.printed


def test_two_runs_at_once_do_not_interfere(tmp_path: Path) -> None:
    # With no data given: both generate it. The folder's name holds what Polars, Rich and a shell would read.
    folder = tmp_path / "Ada's [runs] *?#%$HOME :cat: python3"
    command: list[str | Path] = [JUKEBOX, "run", "--folder", folder, "--epochs=1"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    store = open_store(str(folder / "models"), "jukebox")
    assert store.versions() == [1, 2]
    runs = {path.name: path for path in (folder / "runs").iterdir()}
    assert {json.loads(store.read(number, "lineage.json"))["run"]["name"] for number in (1, 2)} == runs.keys()
    for text in printed:
        [own] = [path for path in runs.values() if f"Report: {path / 'report.html'}" in text]
        assert "publish-model:" in (own / "run.log").read_text()
        assert f"in {folder / 'models'}" in text
    assert (folder / "latest").resolve() in runs.values()
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "models", "runs", "sample"]
    assert sorted(path.name for path in (folder / "sample").iterdir()) == sorted(f"{name}.parquet" for name in TABLES)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_ends_its_step_and_leaves_a_report(
    small: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    command: list[str | Path] = [JUKEBOX, "run", "--folder", tmp_path, *uris(small)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.endswith("validate-data: started\n"):
                process.send_signal(number)
    printed = "".join(lines)
    assert process.returncode == 130
    assert "validate-data failed: The run was interrupted" in printed
    assert "Traceback" not in printed
    assert "The run stopped at validate-data" in (tmp_path / "latest" / "report.html").read_text()
    # Nothing is left that goes on: who holds the log open would.
    assert not [link for link in Path("/proc").glob("[0-9]*/cwd") if _environment(link.parent, tmp_path)]


def _environment(process: Path, folder: Path) -> bool:
    """Whether a process works for a run in ``folder``."""
    try:
        return str(folder).encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -KILL $$", "It was killed (SIGKILL, exit 137), most likely because the machine ran out of memory"),
        ("sh -c 'kill -KILL $$' || exit $?", "It was killed (SIGKILL, exit 137)"),
        ("kill -ABRT $$", "It was ended by SIGABRT (exit 134); its peak memory was "),
        ("exit 1", "memory allocation of 99 bytes failed"),
    ],
)
def test_a_step_that_was_killed_says_by_what_and_with_how_much_memory(script: str, said: str) -> None:
    console = Console(file=io.StringIO())
    view, log = View({"train-model": ()}, console), io.StringIO()
    script = f"echo memory allocation of 99 bytes failed; {script}"
    command = ["sh", "-ec", script, "code", "--executor_input", "{}", "--function_to_execute", "train_model"]
    assert _Process(view, log, full_command=command, env_vars={}).run() == Status.FAILURE
    [step] = view.run("a-run", datetime.now(UTC), {"model_store": "models"}).steps
    assert step.state == "failed"
    assert said in step.error
    assert "memory allocation of 99 bytes failed" in step.error
    assert step.peak_memory_mib is not None


def test_a_step_gets_its_arguments_as_they_are_and_tells_no_credentials() -> None:
    view, log = View({"fetch-data": ()}, Console(file=io.StringIO())), io.StringIO()
    given = """Ada's "python3" $HOME `id` \\ \n%d https://user:hunter2@host/cars.csv?X-Amz-Signature=hunter3"""
    script = 'python3 -c "import sys; print(sys.argv[1:])" "$0" "$@"'
    command = ["sh", "-ec", script, "code", given, "--function_to_execute", "fetch_data"]
    assert _Process(view, log, full_command=command, env_vars={"A": "1"}).run() == Status.SUCCESS
    assert '"python3" $HOME `id` ' in log.getvalue()
    assert "https://host/cars.csv?…" in log.getvalue()
    assert "hunter" not in log.getvalue()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("no such thing"), "Kubeflow's local runner has failed: RuntimeError: no such thing"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_ends_the_runner_itself_takes_no_report_with_it(
    small: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    class Broken(_Process):
        def run(self) -> Status:
            if self.step == "validate-data":
                raise error
            return super().run()

    monkeypatch.setattr("scripts.run._Process", Broken)
    parameters = {"data_version": resolve_data_version(small), "data": small}
    finished = run_pipeline({**parameters, "model_store": ""}, tmp_path, Console(file=io.StringIO()))
    assert finished.run.state == "failed"
    [step] = [step for step in finished.run.steps if step.state == "failed"]
    assert said in step.error
    assert "Traceback" in (finished.folder / "run.log").read_text()
    assert said in html.unescape(render_report(MODEL, finished.documents, finished.run))


# What a shell, make, a URL, a glob or an option could be read from.
ODD = (
    *(
        "Ada's data/cars.csv",
        'double"quote',
        "$HOME$(id)$$",
        "`id`",
        "back\\slash",
        "a\nb",
        "a;b&c|d>e",
        "!x",
        "a b  c ",
    ),
    *("#hash", "%d%20", "*", "a[1]?", "~", "{{a}}", "k=v:=w", "-lead", "日本é", "url: a?b", "user@host"),
)


@pytest.mark.parametrize("odd", ODD)
def test_make_hands_over_a_path_as_it_was_typed(tmp_path: Path, odd: str) -> None:
    for file in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(file, tmp_path)
    jukebox = tmp_path / ".venv" / "bin" / "jukebox"
    jukebox.parent.mkdir(parents=True)
    jukebox.write_text(f"#!{sys.executable}\nimport json, sys\njson.dump(sys.argv[1:], open('given', 'w'))\n")
    jukebox.chmod(0o755)
    (tmp_path / ".venv" / "ready").touch()
    data = " ".join(f"{name}={odd}" for name in TABLES)
    subprocess.run(["make", "run", f"DATA={data}", f"EPOCHS={odd}"], cwd=tmp_path, check=True)
    given = json.loads((tmp_path / "given").read_text())
    assert given == ["run", f"--data={data}", f"--epochs={odd}"]
    assert read_data([data], MODEL) == {**dict.fromkeys(TABLES, odd.rstrip()), LAST: odd}
    subprocess.run(["make", "run"], cwd=tmp_path, env={**os.environ, "DATA": data}, check=True)
    assert json.loads((tmp_path / "given").read_text()) == ["run", f"--data={data}"]
