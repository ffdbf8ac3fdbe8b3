"""``jukebox start`` against the pipeline server's stand-in."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.core.errors import AccessDenied, ServerAway, ServerUnavailable, SettingsInvalid, SpecRefused
from pipeline.prod_train_save_pipeline import this_week
from pipeline.settings import PIPELINE, read_settings
from pipeline.steps.fetch_data import resolve_data_version
from scripts import start as module
from scripts.apply import apply, read_resources
from scripts.cli import app
from scripts.clients.kubernetes_api import Cluster
from scripts.start import run_id_of, start
from tests.active_model import TABLES, write_tables
from tests.http_server import Answer as HttpAnswer
from tests.http_server import serve_http
from tests.kfp.execution import Look, printed
from tests.kfp.service import Answer
from tests.kfp.world import DATA_VERSION, IMAGE, NAMESPACE, SETTINGS, World, compiled, make_step

pytest_plugins = ("tests.kfp.fixtures",)
VERSION = f"{PIPELINE}-000000000001"
LOGIN = Answer(200, "<html>Log in</html>", {"Content-Type": "text/html"})


@pytest.fixture
def applied(world: World, tmp_path: Path) -> World:
    """A world with the version applied."""
    apply(Cluster(NAMESPACE), *read_resources(compiled(tmp_path / "pipeline.yaml")), timeout=5)
    return world


def started(world: World, key: str = "uid-1", version: str = VERSION, **options: Any) -> tuple[str, bool]:
    """Start a run; return its id and whether it was started now."""
    parameters = options.pop("parameters", {"data_version": DATA_VERSION})
    patience = options.pop("patience", 10)
    options = {"settings": read_settings(), "patience": patience, **options}
    run, now = start(world.kfp(patience), version, key=key, parameters=parameters, **options)
    return run["run_id"], now


def test_a_run_of_the_version_is_started_and_named_for_the_next_step(applied: World, tmp_path: Path) -> None:
    arguments = ["start", VERSION, "--key", "uid-1", "--commit", "c" * 40, "--data-version", DATA_VERSION]
    results = tmp_path / "results"
    result = CliRunner().invoke(app, [*arguments, "--parameters", '{"rows": 7}', "--result-dir", str(results)])
    assert result.exit_code == 0, result.output
    run_id = run_id_of("uid-1")
    run = applied.service.runs[run_id]
    assert run["display_name"] == f"{VERSION} uid-1"
    assert run["runtime_config"]["parameters"] == {"rows": 7, "data_version": DATA_VERSION, "commit": "c" * 40}
    assert run_id in result.output
    found = {path.name: path.read_text() for path in results.iterdir()}
    assert found == {"run-id": run_id, "data-version": DATA_VERSION, "started": "true"}


def timed(data_version: str, commit: str = "", commit_time: str = "") -> None:
    """A pipeline that asks when the commit was made."""
    make_step(rows=3)


@pytest.mark.parametrize("asks", [True, False])
def test_when_the_commit_was_made_goes_to_a_version_that_asks_for_it(world: World, tmp_path: Path, asks: bool) -> None:
    made = "2026-11-24T09:40:00+01:00"
    file = compiled(tmp_path / "pipeline.yaml", pipeline=timed) if asks else compiled(tmp_path / "pipeline.yaml")
    apply(Cluster(NAMESPACE), *read_resources(file), timeout=5)
    arguments = ["start", VERSION, "--key", "uid-1", "--commit-time", made, "--data-version", DATA_VERSION]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    parameters = world.service.runs[run_id_of("uid-1")]["runtime_config"]["parameters"]
    assert parameters.get("commit_time") == (made if asks else None)


def test_the_same_key_finds_its_run_and_posts_nothing(applied: World) -> None:
    """Fact 5: a second POST of the same id would start a second workflow."""
    assert started(applied) == (run_id_of("uid-1"), True)
    assert started(applied) == (run_id_of("uid-1"), False)
    assert len(applied.posts()) == len(applied.service.workflows) == 1


def test_another_key_starts_another_run(applied: World) -> None:
    assert started(applied, "uid-1")[0] != started(applied, "uid-2")[0]
    assert len(applied.service.runs) == 2


def test_a_key_of_another_version_is_an_error(applied: World, tmp_path: Path) -> None:
    other = f"{PIPELINE}-000000000002"
    apply(Cluster(NAMESPACE), *read_resources(compiled(tmp_path / "other.yaml", other)), timeout=5)
    started(applied)
    with pytest.raises(SettingsInvalid, match=r"has started run .* of another version"):
        started(applied, version=other)


def test_an_answer_that_is_lost_is_looked_for_before_the_run_is_posted_again(applied: World) -> None:
    """Given a connection that breaks off after the POST, then the run is found, and one workflow trains."""
    applied.service.faults.breaks_off_after_post = True
    assert started(applied) == (run_id_of("uid-1"), True)
    assert len(applied.posts()) == len(applied.service.workflows) == 1


def test_a_workflow_without_its_run_has_ended_before_another_is_started(
    applied: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fact 6: where the database fails between the two, the workflow stays, and would train beside the next one."""
    before: list[list[str]] = []
    answer, tick = applied.service.answer, applied.service.tick

    def noted(method: str, path: str, *rest: Any) -> Any:
        if (method, path) == ("POST", "/apis/v2beta1/runs"):
            before.append([each["phase"] for each in applied.service.workflows.values()])
        return answer(method, path, *rest)

    def later() -> None:
        # It ends only when it has been looked at.
        if sum(path.endswith("/workflows") for _, path, _ in applied.cluster.asked) > 2:
            tick()

    monkeypatch.setattr(applied.service, "answer", noted)
    monkeypatch.setattr(applied.service, "tick", later)
    applied.service.faults.loses_next_run = True
    assert started(applied, cluster=Cluster(NAMESPACE)) == (run_id_of("uid-1"), True)
    assert before == [[], ["Failed"]]


def test_a_workflow_that_may_not_be_seen_does_not_hinder_a_start(applied: World) -> None:
    applied.cluster.forbidden = {"workflows"}
    assert started(applied, cluster=Cluster(NAMESPACE))[1]


def test_two_at_once_agree_on_the_run_and_say_that_two_workflows_train(
    applied: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started(applied)
    looks: list[str] = []

    def found_too_late(method: str, path: str, *rest: Any) -> Any:
        # The other's POST comes after our look-up.
        if method == "GET" and path.endswith(run_id_of("uid-1")) and len(looks) < 2:
            looks.append(path)
            path = path.replace(run_id_of("uid-1"), "not-yet")
        return answer(method, path, *rest)

    answer = applied.service.answer
    monkeypatch.setattr(applied.service, "answer", found_too_late)
    assert started(applied) == (run_id_of("uid-1"), False)
    assert len(applied.service.runs) == 1
    assert f"pipeline/runid={run_id_of('uid-1')}: delete the younger one" in capsys.readouterr().out


def test_a_name_that_is_too_long_is_never_posted(applied: World) -> None:
    """Fact 6: the server would start a workflow for a run that it cannot store."""
    with pytest.raises(SettingsInvalid, match="150 characters: the server allows 128"):
        started(applied, "k" * (150 - len(VERSION) - 1))
    assert not applied.service.workflows


def test_an_unknown_version_is_said_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTED_LATE", 0.05)
    with pytest.raises(SettingsInvalid, match=f"has no version {VERSION}"):
        started(world)


def test_a_500_of_the_callers_making_is_not_tried_again(applied: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fact 7: an unknown version answers 500."""
    pipeline = applied.kfp().pipeline(PIPELINE)
    assert pipeline
    found = next(applied.kfp().versions(pipeline["pipeline_id"], VERSION))
    gone = {**found, "pipeline_version_id": "11111111-1111-1111-1111-111111111111"}
    monkeypatch.setattr(module, "_version", lambda *_: (pipeline["pipeline_id"], gone))
    with pytest.raises(ServerUnavailable, match=r"answers 500, PipelineVersion 1{8}-.* not found"):
        started(applied)
    assert len(applied.posts()) == 1


def test_a_database_that_comes_back_is_waited_for(applied: World, monkeypatch: pytest.MonkeyPatch) -> None:
    applied.service.faults.database_away = True
    asked = applied.service.answer

    def recovering(*arguments: Any) -> Any:
        if len(applied.service.asked) > 10:
            applied.service.faults.database_away = False
        return asked(*arguments)

    monkeypatch.setattr(applied.service, "answer", recovering)
    assert started(applied)[1]


def test_a_server_that_stays_away_is_given_up(applied: World) -> None:
    applied.service.faults.front = Answer(503, "no healthy upstream", {"Content-Type": "text/plain"})
    with pytest.raises(ServerAway, match="answers 503"):
        started(applied, patience=0.1)


@pytest.mark.parametrize(
    "front",
    [
        LOGIN,
        Answer(401, "Unauthorized", {"Content-Type": "text/plain"}),
        Answer(403, "Forbidden", {"Content-Type": "text/plain"}),
        Answer(302, "", {"Location": "/oauth/authorize?secret=1"}),
    ],
    ids=["login page", "401", "403", "redirect"],
)
def test_who_is_not_let_in_is_told_so_at_once(applied: World, front: Answer) -> None:
    """Facts 9 and 10: kfp's client loses the status, and takes a login page for a run."""
    applied.service.faults.front = front
    with pytest.raises(AccessDenied, match=r"[Ll]og in") as refused:
        started(applied)
    assert "secret=1" not in str(refused.value)
    assert not applied.posts()


def test_a_run_is_posted_with_what_the_server_heeds(applied: World) -> None:
    """Fact 8: it would not heed a word on caching; that is compiled into the version. Every run names its version."""
    started(applied)
    [body] = applied.posts()
    names = {"run_id", "display_name", "experiment_id", "pipeline_version_reference", "runtime_config"}
    assert set(body) == names
    assert all(body["pipeline_version_reference"].values())


def test_a_wrong_parameter_is_said_in_the_servers_words(applied: World) -> None:
    with pytest.raises(ServerUnavailable, match=r"parameter.* not required by pipeline: nope"):
        started(applied, parameters={"data_version": DATA_VERSION, "nope": 1})
    assert not applied.service.workflows


def test_the_data_version_is_found_out_where_it_is_not_given(applied: World, tmp_path: Path) -> None:
    """It goes by what the run will fetch: what the parameters name, else what the version was compiled with."""
    tables = write_tables(tmp_path)

    def local(data_version: str, data: dict[str, str] = tables) -> None:
        make_step(rows=3)

    name = f"{PIPELINE}-000000000002"
    apply(Cluster(NAMESPACE), *read_resources(compiled(tmp_path / "local.yaml", name, local)), timeout=5)
    known = replace(read_settings(), data=tables)
    with serve_http() as server:
        url = server.serve("/a.csv", HttpAnswer(b"a\n1\n", etag="1"))
        for key, parameters in (("default", {}), ("given", {"data": tables | {TABLES[0]: url}})):
            run_id, _ = started(applied, key, name, parameters=parameters, settings=known)
            found = applied.service.runs[run_id]["runtime_config"]["parameters"]["data_version"]
            assert found == resolve_data_version(parameters.get("data", tables))


@pytest.mark.parametrize("uri", ["/etc/hostname", "file:///etc/hostname", "../hostname"])
def test_no_file_of_where_the_start_runs_is_read_but_that_of_the_settings(applied: World, uri: str) -> None:
    with pytest.raises(
        SettingsInvalid, match=rf"the parameter data\.{TABLES[0]} is '.*hostname', expected https://… or s3://…"
    ):
        started(applied, parameters={"data": {**SETTINGS.data, TABLES[0]: uri}})
    assert not applied.posts()
    started(applied, parameters={"data": {**SETTINGS.data, TABLES[0]: uri}, "data_version": DATA_VERSION})


@pytest.mark.parametrize("data", [{TABLES[0]: "s3://a/b"}, {**SETTINGS.data, "cars": "s3://a/b"}, "s3://a/b", []])
def test_the_data_are_the_tables_of_the_version(applied: World, data: object) -> None:
    with pytest.raises(SettingsInvalid, match=rf"the parameter data is .*, expected a URI for each .*, .*{TABLES[0]}"):
        started(applied, parameters={"data": data})
    assert not applied.posts()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"commit": "{{=workflow.name}}"}, "contains {{"),
        ({"commit": {"a": ["{{workflow.name}}"]}}, "contains {{"),
        ({"model_storage_pvc": "mysql"}, "the parameter model_storage_pvc is 'mysql', expected jukebox-model-pvc"),
    ],
    ids=["expression", "inside", "claim"],
)
def test_a_parameter_that_would_change_a_pod_starts_nothing(
    applied: World, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsInvalid, match=re.escape(said)):
        started(applied, parameters={"data_version": DATA_VERSION, **parameters})
    assert not applied.posts()


def test_a_version_that_others_have_applied_is_judged_before_it_is_started(world: World, tmp_path: Path) -> None:
    file = compiled(tmp_path / "pipeline.yaml")
    file.write_text(file.read_text().replace(IMAGE, "elsewhere.example.com/miner:latest"))
    apply(Cluster(NAMESPACE), *read_resources(file), timeout=5)
    with pytest.raises(SpecRefused, match=r"executors\.exec-make\.container\.image is 'elsewhere.example.com/miner"):
        started(world)
    assert not world.posts()
    assert not world.posts("/experiments")


@pytest.mark.parametrize("reason", ["push", "data", "alert", "schedule", "manual", ""])
def test_a_push_alone_trains_no_version_again_that_has_succeeded(applied: World, reason: str, tmp_path: Path) -> None:
    run_id, _ = started(applied, "uid-1")
    applied.executor.looks[applied.workflow_of(run_id)] = Look(True, "", 0)
    applied.service.tick()
    options = ["--reason", reason] if reason else []
    words = ["start", VERSION, "--key", "uid-2", "--data-version", DATA_VERSION, "--result-dir", str(tmp_path)]
    result = CliRunner().invoke(app, [*words, *options])
    assert result.exit_code == 0, result.output
    again = reason != "push"
    assert (tmp_path / "run-id").read_text() == (run_id_of("uid-2") if again else run_id)
    assert (tmp_path / "started").read_text() == json.dumps(again)
    assert len(applied.posts()) == 1 + again


def test_a_version_whose_run_failed_is_trained_again(applied: World) -> None:
    run_id, _ = started(applied, "uid-1")
    applied.executor.looks[applied.workflow_of(run_id)] = Look(True, "", 1)
    applied.service.tick()
    assert started(applied, "uid-2", unless_succeeded=True)[1]


# What may be proposed for production


def proposing(data_version: str, served_version: str = "", prod_flag: bool = False) -> None:
    """A pipeline that asks what production serves, and whether its model may be proposed."""
    make_step(rows=3)


def proposed(world: World, file: Path, *options: str) -> dict[str, Any]:
    """The parameters of a run that is started of the version in ``file``."""
    apply(Cluster(NAMESPACE), *read_resources(file), timeout=5)
    words = ["start", VERSION, "--key", "uid-1", "--data-version", DATA_VERSION, "--served-version", "7"]
    result = CliRunner().invoke(app, [*words, *options])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = world.service.runs[run_id_of("uid-1")]["runtime_config"]["parameters"]
    return found


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (["--reason", "push"], True),
        (["--reason", "data"], True),
        (["--reason", "alert"], True),
        (["--reason", "schedule"], True),
        (["--reason", "manual"], None),
        (["--reason", "manual", "--parameters", '{"prod_flag": true}'], True),
        (["--reason", "push", "--parameters", '{"prod_flag": false}'], False),
    ],
)
def test_what_a_person_has_not_started_by_hand_may_be_proposed_for_production(
    world: World, tmp_path: Path, options: list[str], flag: bool | None
) -> None:
    parameters = proposed(world, compiled(tmp_path / "pipeline.yaml", pipeline=proposing), *options)
    assert parameters.get("prod_flag") == flag
    assert parameters["served_version"] == "7"


def test_nothing_may_be_proposed_if_production_has_no_cluster(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "read_settings", lambda: replace(read_settings(), prod_cluster=""))
    file = compiled(tmp_path / "pipeline.yaml", pipeline=proposing)
    assert "prod_flag" not in proposed(world, file, "--reason", "push")


def test_a_version_of_before_is_not_asked_for_what_it_does_not_know(world: World, tmp_path: Path) -> None:
    parameters = proposed(world, compiled(tmp_path / "pipeline.yaml"), "--reason", "push")
    assert parameters == {"data_version": DATA_VERSION}


# A run that has failed


def failed(world: World, key: str = "uid-1", said: str = "", **options: Any) -> str:
    """Start a run and have it fail; return its id."""
    run_id, _ = started(world, key, **options)
    world.executor.looks[world.workflow_of(run_id)] = Look(True, printed(("make", "FAILED", said)), 1)
    world.service.tick()
    assert world.service.runs[run_id]["state"] == "FAILED"
    return run_id


@pytest.mark.parametrize("key", ["uid-1", "uid-2"])
def test_a_run_that_has_failed_goes_on(applied: World, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Given the same parameters, then the failed run is retried, whatever the key, and no other is posted."""
    run_id = failed(applied)
    assert started(applied, key) == (run_id, True)
    assert applied.service.runs[run_id]["state"] == "RUNNING"
    assert f"Run {run_id} had failed and is retried" in capsys.readouterr().out
    # The task that asked may run twice.
    assert started(applied, key) == (run_id, False)
    assert len(applied.posts(":retry")) == 1
    assert len(applied.service.workflows) == 1


@pytest.mark.parametrize("reason", ["push", "data", "alert", "schedule", "manual"])
def test_who_starts_again_continues_and_an_event_begins_anew(applied: World, reason: str, tmp_path: Path) -> None:
    run_id = failed(applied)
    words = ["start", VERSION, "--key", "uid-2", "--data-version", DATA_VERSION, "--reason", reason]
    result = CliRunner().invoke(app, [*words, "--result-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    continued = reason in ("push", "manual")
    assert (tmp_path / "run-id").read_text() == (run_id if continued else run_id_of("uid-2"))
    assert len(applied.service.workflows) == 2 - continued


def test_other_parameters_another_version_or_another_week_continue_nothing(
    applied: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = f"{PIPELINE}-000000000002"
    apply(Cluster(NAMESPACE), *read_resources(compiled(tmp_path / "other.yaml", other)), timeout=5)
    run_id = failed(applied)
    assert started(applied, "uid-2", parameters={"data_version": DATA_VERSION, "rows": 7}) == (run_id_of("uid-2"), True)
    assert started(applied, "uid-3", version=other) == (run_id_of("uid-3"), True)
    applied.service.runs[run_id]["created_at"] = "2026-01-01T00:00:00Z"
    assert started(applied, "uid-4") == (run_id_of("uid-4"), True)
    assert not applied.posts(":retry")


def test_a_run_that_failed_before_one_that_succeeded_is_left_alone(applied: World) -> None:
    failed(applied)
    run_id, _ = started(applied, "uid-2", goes_on=False)
    applied.service.runs[run_id]["created_at"] = "2999-01-01T00:00:00Z"
    applied.executor.looks[applied.workflow_of(run_id)] = Look(True, "", 0)
    applied.service.tick()
    assert started(applied, "uid-3") == (run_id_of("uid-3"), True)


def test_if_the_server_does_not_let_a_run_go_on_another_is_started(
    applied: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = failed(applied)

    def nothing(workflow: str) -> None:
        raise NotImplementedError("nothing is kept")

    monkeypatch.setattr(applied.executor, "retry", nothing)
    assert started(applied, "uid-2") == (run_id_of("uid-2"), True)
    assert f"Run {run_id} has failed and cannot be retried: The server answers 500" in capsys.readouterr().out
    # A key has one run; this one stays as it is.
    assert started(applied, "uid-1") == (run_id, False)


def test_a_retry_whose_answer_is_lost_is_done_once(applied: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = failed(applied)
    answer = applied.service.answer

    def lost(method: str, path: str, *rest: Any) -> Any:
        found = answer(method, path, *rest)
        again = path.endswith(":retry") and len(applied.posts(":retry")) == 1
        return Answer(503, "lost", {"Content-Type": "text/plain"}) if again else found

    monkeypatch.setattr(applied.service, "answer", lost)
    assert started(applied, "uid-2") == (run_id, True)
    assert len(applied.posts(":retry")) == 2
    assert len(applied.service.workflows) == 1


def test_a_run_that_misses_what_it_has_read_is_not_continued(
    applied: World, capsys: pytest.CaptureFixture[str]
) -> None:
    failed(applied, said="2026-11-27 10:00:00,000 ERROR ArtifactsGone: nothing found at minio://mlpipeline/v2/x")
    assert started(applied, "uid-2") == (run_id_of("uid-2"), True)
    assert "are gone: the cache is not used" in capsys.readouterr().out
    assert not applied.posts(":retry")


# The cache


def caching(data_version: str, cache: str = "") -> None:
    """A step, in a pipeline that knows of the cache."""
    make_step(rows=3)


def test_the_cache_is_asked_for_the_week_and_with_no_cache_for_the_run_itself(applied: World, tmp_path: Path) -> None:
    version = f"{PIPELINE}-000000000003"
    file = compiled(tmp_path / "caching.yaml", version, caching)
    apply(Cluster(NAMESPACE), *read_resources(file), timeout=5)
    words = ["start", version, "--data-version", DATA_VERSION]
    given = {"uid-1": [], "uid-2": ["--no-cache"], "uid-3": ["--parameters", '{"cache": "mine"}']}
    for key, options in given.items():
        result = CliRunner().invoke(app, [*words, "--key", key, *options])
        assert result.exit_code == 0, result.output
    found = [applied.service.runs[run_id_of(key)]["runtime_config"]["parameters"]["cache"] for key in given]
    assert found == [this_week(), run_id_of("uid-2"), "mine"]
    assert re.fullmatch(r"20\d\d-W[0-5]\d", this_week())
    # The same again finds the run; the key of one with the cache does not stand for one without.
    assert CliRunner().invoke(app, [*words, "--key", "uid-2", "--no-cache"]).exit_code == 0
    refused = CliRunner().invoke(app, [*words, "--key", "uid-1", "--no-cache"])
    assert "with the cache: use another key" in str(refused.exception)
    assert len(applied.posts()) == 3


def test_a_version_of_before_has_no_such_parameter(applied: World) -> None:
    run_id, _ = started(applied)
    assert applied.service.runs[run_id]["runtime_config"]["parameters"] == {"data_version": DATA_VERSION}
    with pytest.raises(SettingsInvalid, match=f"{VERSION} has no parameter cache.*compile and apply"):
        started(applied, "uid-2", cached=False)


# What is given


@pytest.mark.parametrize(
    ("uri", "what"),
    [("https://host/s.csv?X-Amz-Signature=hidden", "is a signed URL"), ("https://a:hidden@host/s.csv", "holds cred")],
)
def test_a_secret_is_no_parameter(applied: World, uri: str, what: str) -> None:
    result = CliRunner().invoke(app, ["start", VERSION, "--parameters", json.dumps({"data": {TABLES[0]: uri}})])
    assert isinstance(result.exception, SettingsInvalid)
    assert f"the parameter data.{TABLES[0]} {what}" in str(result.exception)
    assert "hidden" not in f"{result.output}{result.exception}"
    assert not applied.service.asked


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_no_parameter(applied: World, number: str) -> None:
    text = f'{{"thresholds": {{"top1_floor": {number}}}}}'
    result = CliRunner().invoke(app, ["start", VERSION, "--data-version", DATA_VERSION, "--parameters", text])
    assert isinstance(result.exception, SettingsInvalid)
    assert "--parameters is not " in str(result.exception)
    assert not applied.service.runs


def test_the_experiment_is_made_once(applied: World) -> None:
    started(applied, "uid-1")
    started(applied, "uid-2")
    assert [each["display_name"] for each in applied.service.experiments.values()] == ["Default", "jukebox"]


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_parameters_that_are_no_object_are_a_usage_error(applied: World, text: str) -> None:
    result = CliRunner().invoke(app, ["start", VERSION, "--parameters", text])
    assert isinstance(result.exception, SettingsInvalid)
    assert "--parameters is not " in str(result.exception)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(keys=st.sets(st.text(min_size=1, max_size=40), min_size=2, max_size=6))
def test_each_key_has_one_id_of_the_servers_form(keys: set[str]) -> None:
    ids = [run_id_of(key) for key in keys]
    assert len(set(ids)) == len(keys)
    assert ids == [str(UUID(run_id_of(key))) for key in keys]


def test_the_token_is_read_again_for_each_call(applied: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Given a pod whose token is replaced while it waits, then the next call has the new one."""
    from scripts.clients import pipeline_server as server

    (tmp_path / "namespace").write_text(NAMESPACE)
    (tmp_path / "service-ca.crt").write_bytes(applied.ca.read_bytes())
    (tmp_path / "token").write_text("first")
    monkeypatch.setattr(server, "POD", tmp_path)
    applied.tokens.clear()
    applied.tokens.add("first")
    kfp = applied.kfp()
    assert kfp.pipeline(PIPELINE)
    applied.tokens.clear()
    with pytest.raises(AccessDenied):
        kfp.pipeline(PIPELINE)
    applied.tokens.add("second")
    (tmp_path / "token").write_text("second\n")
    assert kfp.pipeline(PIPELINE)


def test_a_certificate_of_another_ca_is_not_trusted(
    applied: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from kubernetes.config import kube_config

    applied.cluster.kubeconfig(tmp_path / "other", "token", tmp_path / "missing.crt")
    text = (tmp_path / "other").read_text().replace(f"certificate-authority: {tmp_path}/missing.crt", "")
    (tmp_path / "other").write_text(text)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "other"))
    with pytest.raises(ServerUnavailable, match="certificate is not trusted"):
        started(applied)


def test_a_server_that_never_answers_is_given_up(applied: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fact 11: kfp's client would hang for ever."""
    import threading

    from scripts.clients import pipeline_server as server

    released = threading.Event()
    monkeypatch.setattr(server, "TIMEOUT", (1, 0.1))
    monkeypatch.setattr(applied.service, "answer", lambda *_: released.wait(60) or Answer(500))
    try:
        with pytest.raises(ServerAway, match="does not answer"):
            started(applied, patience=0.05)
    finally:
        released.set()


def test_the_results_of_a_run_that_was_found_say_so(applied: World, tmp_path: Path) -> None:
    started(applied)
    result = CliRunner().invoke(app, ["start", VERSION, "--key", "uid-1", "--result-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "started").read_text()) is False
    assert (tmp_path / "data-version").read_text() == DATA_VERSION
