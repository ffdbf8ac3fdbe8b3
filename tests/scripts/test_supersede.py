"""``jukebox supersede``: which runs a newer push cancels, with a real Git server and the cluster's stand-in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_none
from typer.testing import CliRunner

from pipeline.core.errors import ClusterRefuses, CommitOutdated, HostRefuses, SettingsInvalid
from scripts.cli import app
from scripts.clients import kubernetes_api
from scripts.supersede import COMMIT, RECORD, SUPERSEDED_BY
from tests.git_server import GitServer, serve_git
from tests.kfp.world import World
from tests.settings_file import use_settings

pytest_plugins = ("tests.kfp.fixtures",)


@pytest.fixture(params=[True, False], ids=["commits alone", "a server that sends all"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[GitServer]:
    (tmp_path / "server").mkdir()
    with serve_git(tmp_path / "server", filters=request.param) as served:
        yield served


def add(
    world: World, name: str, commit: str, *tasks: str, ended: str = "", reason: str = "push", **metadata: Any
) -> Any:
    """Add a run whose tasks have begun; ``ended`` is True or False."""
    labels = {"app.kubernetes.io/name": "continuous-training", "jukebox.github.io/reason": reason, COMMIT: commit}
    status = {
        "conditions": [{"type": "Succeeded", "status": ended or "Unknown"}],
        "childReferences": [{"pipelineTaskName": task} for task in tasks],
    }
    return world.cluster.ci.add(
        "pipelineruns", {"metadata": {"name": name, "labels": labels, **metadata}, "spec": {}, "status": status}
    )


@pytest.fixture(autouse=True)
def noted(world: World, server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is noted of the newest commit; the settings name the server."""
    use_settings(monkeypatch, tmp_path / "settings.yaml", repository=server.url)
    monkeypatch.setattr(kubernetes_api, "wait_random", lambda *_: wait_none())
    data: dict[str, str] = world.cluster.ci.add("configmaps", {"metadata": {"name": RECORD}, "data": {}})["data"]
    return data


def supersede(world: World, run: str, commit: str = "") -> str:
    found = world.cluster.ci.objects.get(("pipelineruns", run), {"metadata": {"labels": {COMMIT: "1" * 40}}})
    commit = commit or found["metadata"]["labels"][COMMIT]
    result = CliRunner().invoke(app, ["supersede", run, "--commit", commit])
    if result.exception:
        raise result.exception
    return result.output


def cancelled(world: World) -> dict[str, str]:
    """Who was cancelled for whom, gracefully."""
    runs = [run for run in world.cluster.ci.list("pipelineruns") if run["spec"].get("status")]
    assert {run["spec"]["status"] for run in runs} <= {"CancelledRunFinally"}
    return {run["metadata"]["name"]: run["metadata"]["annotations"][SUPERSEDED_BY] for run in runs}


def test_an_older_run_that_has_not_begun_to_train_is_cancelled(world: World, server: GitServer) -> None:
    commits = [server.push(str(number)) for number in range(4)]
    add(world, "first", commits[0], "checkout", "test", "start")
    add(world, "second", commits[1], "checkout", "test")
    add(world, "third", commits[2])
    add(world, "promotion", commits[2], "checkout", "release", "wait-served")
    add(world, "both", commits[2], "checkout", "test", "release", "wait-served")
    add(world, "ours", commits[3], "checkout")
    output = supersede(world, "ours")
    assert cancelled(world) == {"second": "ours", "third": "ours", "both": "ours"}
    assert "second is superseded by ours" in output


def test_what_is_no_older_push_is_left_alone(world: World, server: GitServer) -> None:
    first, second = server.push("1"), server.push("2")
    add(world, "data", first, reason="data")
    add(world, "failed", first, ended="False")
    add(world, "succeeded", first, ended="True")
    add(world, "same", second)
    add(world, "rerun-x7k2p", first, generateName="rerun-")
    add(world, "ours", second)
    assert supersede(world, "ours") == ""
    assert cancelled(world) == {}


@pytest.mark.parametrize("state", [{"ended": "True"}, {}], ids=["that ended well", "that goes on"])
def test_a_late_delivery_of_an_older_push_gives_way_to_a_newer_run(
    world: World, server: GitServer, state: dict[str, str]
) -> None:
    first, second = server.push("1"), server.push("2")
    add(world, "newer", second, "start", **state)
    add(world, "ours", first)
    assert "ours is superseded by newer" in supersede(world, "ours")
    assert cancelled(world) == {"ours": "newer"}


def test_a_newer_run_that_failed_or_was_cancelled_supersedes_nothing(
    world: World, server: GitServer, noted: dict[str, str]
) -> None:
    noted["newest"] = server.push("0")
    first, second = server.push("1"), server.push("2")
    add(world, "failed", second, ended="False")
    add(world, "cancelled", second)["spec"]["status"] = "CancelledRunFinally"
    add(world, "ours", first)
    supersede(world, "ours")
    assert "status" not in world.cluster.ci.objects["pipelineruns", "ours"]["spec"]


def test_a_branch_that_was_forced_elsewhere_supersedes_nothing(world: World, server: GitServer) -> None:
    root = server.push("root")
    gone = server.push("gone")
    server.git("checkout", "--quiet", root)
    ours = server.push("another way")
    add(world, "of-the-old-branch", gone)
    add(world, "of-nothing", "1" * 40)
    add(world, "ours", ours)
    supersede(world, "ours")
    assert cancelled(world) == {}


def test_a_rerun_by_hand_stays_and_forgets_what_its_first_run_was_told(world: World, server: GitServer) -> None:
    first, second = server.push("1"), server.push("2")
    add(world, "newer", second, ended="True")
    add(
        world, "push-1-r-x7k2p", first, generateName="push-1-r-", annotations={SUPERSEDED_BY: "newer", "other": "stays"}
    )
    assert "started by hand" in supersede(world, "push-1-r-x7k2p")
    assert cancelled(world) == {}
    metadata = world.cluster.ci.objects["pipelineruns", "push-1-r-x7k2p"]["metadata"]
    assert metadata["annotations"] == {"other": "stays"}
    assert noted_of(world) == ("", "")


def noted_of(world: World) -> tuple[str, str]:
    """The commit that is noted, and the name of its run."""
    data = world.cluster.ci.objects["configmaps", RECORD]["data"]
    names = {run["metadata"]["uid"]: run["metadata"]["name"] for run in world.cluster.ci.list("pipelineruns")}
    return data.get("newest", ""), names.get(data.get("run"), data.get("run", ""))


def replayed(world: World, name: str, commit: str) -> str:
    """Run the event of a commit when all earlier runs have been pruned; return the error."""
    for run in world.cluster.ci.list("pipelineruns"):
        del world.cluster.ci.objects["pipelineruns", run["metadata"]["name"]]
    add(world, name, commit)
    try:
        supersede(world, name)
    except CommitOutdated as error:
        return str(error)
    assert noted_of(world) == (commit, name)
    return ""


def test_an_old_event_is_not_replayed_when_its_run_is_forgotten(world: World, server: GitServer) -> None:
    commits = [server.push(str(number)) for number in range(5)]
    assert "expected the branch's head" in replayed(world, "first-of-all", commits[3]), "nothing is noted yet"
    server.git("push", "--quiet", "--force", str(server.bare), f"{commits[1]}:refs/heads/main")
    assert replayed(world, "push-1", commits[1]) == ""
    server.git("push", "--quiet", "--force", str(server.bare), f"{commits[4]}:refs/heads/main")
    assert replayed(world, "push-2", commits[2]) == "", "one that came late, and is not older than what has run"
    for old in (0, 1, 2):
        message = replayed(world, f"push-{old}", commits[old])
        assert f"about commit {commits[old][:12]}, expected the branch's head {commits[4][:12]} or a commit" in message
        assert "generateName" in message
        assert noted_of(world)[0] == commits[2]
    assert replayed(world, "push-4", commits[4]) == ""
    assert replayed(world, "push-3", commits[3])
    assert replayed(world, "push-4", commits[4]) == "", "the head may run again"


def test_after_a_forced_push_only_the_head_runs(world: World, server: GitServer) -> None:
    root, gone = server.push("root"), server.push("gone")
    assert replayed(world, "push-gone", gone) == ""
    server.git("checkout", "--quiet", root)
    first, second = server.push("another"), server.push("way")
    for old in (root, gone, first):
        assert replayed(world, "old", old)
    assert replayed(world, "push-second", second) == ""


def test_a_second_attempt_of_the_task_passes_though_the_branch_goes_on(world: World, server: GitServer) -> None:
    first = server.push("1")
    add(world, "ours", first)
    supersede(world, "ours")
    server.push("2")
    supersede(world, "ours")
    assert noted_of(world) == (first, "ours")


def test_two_runs_at_once_note_the_newer_commit(
    world: World, server: GitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = server.push("0")
    add(world, "root", root)
    supersede(world, "root")
    first, second = server.push("1"), server.push("2")
    add(world, "ours", first)
    answer, once = world.cluster.ci.answer, iter([True])

    def meanwhile(method: str, path: str, *rest: Any) -> Any:
        if method == "PATCH" and path.endswith(RECORD) and next(once, False):
            found = world.cluster.ci.objects["configmaps", RECORD]
            found["data"] |= {"newest": second, "run": "of-the-newer"}
            world.cluster.ci.touch(found)
        return answer(method, path, *rest)

    monkeypatch.setattr(world.cluster.ci, "answer", meanwhile)
    with pytest.raises(CommitOutdated):
        supersede(world, "ours")
    assert noted_of(world) == (second, "of-the-newer")


@pytest.mark.parametrize("moves_on", [True, False], ids=["begins to train", "goes on testing"])
def test_a_run_that_moves_on_meanwhile_is_judged_anew(
    world: World, server: GitServer, moves_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = server.push("1"), server.push("2")
    older = add(world, "older", first, "test")
    add(world, "ours", second)
    answer, once = world.cluster.ci.answer, iter([True])

    def meanwhile(method: str, path: str, *rest: Any) -> Any:
        if method == "PATCH" and next(once, False):
            older["status"]["childReferences"].append({"pipelineTaskName": "start" if moves_on else "compile"})
            world.cluster.ci.touch(older)
        return answer(method, path, *rest)

    monkeypatch.setattr(world.cluster.ci, "answer", meanwhile)
    supersede(world, "ours")
    assert cancelled(world) == ({} if moves_on else {"older": "ours"})


def test_what_is_missing_is_said(world: World, server: GitServer) -> None:
    commit = server.push()
    with pytest.raises(SettingsInvalid, match="no PipelineRun ours in ada-jukebox"):
        supersede(world, "ours")
    add(world, "ours", "1" * 40)
    with pytest.raises(HostRefuses, match=r"1{40}"):
        supersede(world, "ours")
    add(world, "ours", commit)
    del world.cluster.ci.objects["configmaps", RECORD]
    with pytest.raises(
        SettingsInvalid, match="no ConfigMap jukebox-commits in ada-jukebox-ci: run `jukebox bootstrap`"
    ):
        supersede(world, "ours")
    world.cluster.ci.forbidden = {"pipelineruns"}
    with pytest.raises(ClusterRefuses, match="forbidden"):
        supersede(world, "ours")
