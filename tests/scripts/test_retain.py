"""``jukebox in-use`` and ``jukebox retain``: what stays, what goes, and that nothing does if something cannot be read.

Git, the model store and the image registry are real; the Git host, the pipeline server and the cluster are stand-ins.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.core.errors import (
    ClusterRefuses,
    HostRefuses,
    JukeboxError,
    RegistryRefuses,
    ServerAway,
    SettingsInvalid,
    StoreBroken,
)
from pipeline.core.store import ModelStore, open_store
from pipeline.core.trusted_ca import trust
from pipeline.settings import PIPELINE
from scripts import image_records, in_use
from scripts.cli import app
from scripts.clients import kfp_server
from scripts.clients.git_hosts import base
from scripts.clients.registry import Registry
from scripts.layout import Layout
from scripts.pins import PIN, Pin, render
from scripts.proposals import Proposals
from tests.git_server import GitServer, serve_git
from tests.http_server import Answer, HttpServer, serve_http
from tests.kfp.execution import Look
from tests.kfp.world import World
from tests.registry_server import program, serve_registry
from tests.settings_file import use_settings, write_git_secret
from tests.tekton.manifests import ROOT
from tests.versions import publish_version

pytest_plugins = ("tests.kfp.fixtures",)
NOW = datetime.now(UTC)
TOKEN = "a-token-for-git-that-nobody-may-read"
PULLS = "/repos/acme/jukebox/pulls"
FAILED = {5, 6, 11, 16, 19, 24, 26, 28, 30, 31, 32, 33, 36, 38, 39}
needs_registry = pytest.mark.skipif(
    not (shutil.which("skopeo") and program()),
    reason="skopeo or docker-registry is not installed; the cluster tier has them",
)


def ago(days: float) -> str:
    return (NOW - timedelta(days=days)).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass
class Installation:
    """All that a command meets, and the folder of the model store."""

    world: World
    git: GitServer
    host: HttpServer
    root: str
    secret: Path

    @property
    def store(self) -> ModelStore:
        return open_store(self.root, "jukebox")

    def pin(self, version: int | None, branch: str = "main", hold: str = "", message: str = "") -> str:
        """Push a pin."""
        file = self.git.work / PIN
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(Pin("jukebox", version, "a" * 64 if version else "", hold)))
        return self.git.push(message or f"Pin {version}", branch, readme="")

    def propose(
        self, version: int, *, state: str = "open", marker: bool = True, message: str = "", run: str = "r"
    ) -> None:
        """Open a pull request that pins a version, or have one in another state."""
        at = self.git.git("rev-parse", "HEAD")
        commit = self.pin(version, "promote/jukebox/prod", message=message)
        self.git.git("reset", "--quiet", "--hard", at)
        text = f"<!-- promotion: model=jukebox environment=prod version={version} sha256={'a' * 64} run={run} -->"
        self.host.serve(PULLS, Answer(json.dumps([pull_request(commit, text if marker else "", state)]).encode()))

    def run(self, state: str, days: float = 0, run_id: str = "", version: str = "", **parameters: str) -> str:
        """Add a run of the pipeline server that began so many days ago, and took no time."""
        experiment = next(
            (name for name, each in self.world.service.experiments.items() if each["display_name"] == "jukebox"), ""
        ) or str(self.world.service.add_experiment({"display_name": "jukebox"})["experiment_id"])
        run_id = run_id or f"run-{len(self.world.service.runs)}"
        self.world.service.runs[run_id] = {
            "run_id": run_id,
            "display_name": run_id,
            "experiment_id": experiment,
            "state": state,
            "storage_state": "AVAILABLE",
            "created_at": ago(days),
            "finished_at": ago(days),
            "runtime_config": {"parameters": parameters},
            "pipeline_version_reference": {"pipeline_id": "p", "pipeline_version_id": version},
        }
        self.world.executor.looks[run_id] = Look(True, "", 0)
        self.world.service.workflows[run_id] = {"run_id": run_id, "counts": True, "phase": "Succeeded"}
        return run_id


def pull_request(commit: str, body: str, state: str) -> dict[str, Any]:
    """As GitHub shows one."""
    repository = {"full_name": "acme/jukebox"}
    return {
        "number": 7,
        "html_url": "https://github.com/acme/jukebox/pull/7",
        "title": "Serve another version",
        "body": body,
        "state": state,
        "merged_at": None,
        "merge_commit_sha": None,
        "head": {"ref": "promote/jukebox/prod", "sha": commit, "repo": repository},
        "base": {"ref": "main", "sha": commit, "repo": repository},
    }


@pytest.fixture
def there(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """An empty installation: nothing is pinned, proposed or published."""
    (tmp_path / "server").mkdir()
    with serve_git(tmp_path / "server") as git, serve_http() as host:
        git.token = TOKEN
        root = tmp_path / "models"
        root.mkdir()
        host.serve(PULLS, Answer(b"[]"))
        use_settings(
            monkeypatch, tmp_path / "settings.yaml", repository=git.url, git_api=host.url, model_store=str(root)
        )
        monkeypatch.setattr(base, "_wait", lambda _: 0)
        monkeypatch.setattr(kfp_server.Kfp.__init__, "__defaults__", (0.0,))
        found = Installation(world, git, host, str(root), write_git_secret(tmp_path / "secret", git.url, TOKEN))
        found.pin(None)
        yield found


@pytest.fixture(scope="module")
def forty_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of forty versions, of which 12 is the champion."""
    root = tmp_path_factory.mktemp("forty")
    for number in range(1, 41):
        run = f"run-of-{number}"
        if number in FAILED:
            publish_version(str(root), run, passed=False, apart=True)
        elif number == 1:
            publish_version(str(root), run)
        else:
            champion = 1 if number <= 12 else 12
            publish_version(str(root), run, worse_by=-0.1 if number == 12 else 0.01, than=champion)
    return root


@pytest.fixture
def forty(there: Installation, forty_versions: Path) -> Installation:
    """These, of which production was pinned to 3, 14, 3, nothing, 17 and 20, and is to 18."""
    shutil.copytree(forty_versions, there.root, dirs_exist_ok=True)
    for version in (3, 14, 3, None, 17, 20, 18):
        there.pin(version)
    there.git.git("push", "--quiet", str(there.git.bare), "HEAD:refs/heads/production")
    Path(there.root, "jukebox", "8.pinned").touch()
    there.run("RUNNING", run_id="still-running", served_version="18", champion_version="22")
    there.propose(40)
    return there


def publish_many(there: Installation) -> None:
    """Publish 1, which stays the champion, to 20."""
    for number in range(20):
        publish_version(there.root, str(number), worse_by=0.01 if number else None, than=1 if number else None)


def jukebox(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def retain(there: Installation, *options: object) -> str:
    return jukebox("retain", "--git-secret", there.secret, *options)


def reasons(there: Installation) -> dict[int, str]:
    """By the number of each version why it stays; an empty text if it goes."""
    rows = map(json.loads, retain(there, "--part", "models", "--dry-run", "--output", "json").splitlines())
    return {int(row["name"]): "; ".join(row["stays"]) for row in rows if "name" in row}


STAY = {
    3: "production was pinned to it 3 promotions ago",
    8: "8.pinned protects it",
    12: "it is the champion, with which new models are compared",
    14: "production was pinned to it 4 promotions ago",
    17: "production was pinned to it 2 promotions ago",
    18: "Git pins it on main; Git pins it on production; run still-running compares its model with it",
    20: "production was pinned to it 1 promotion ago",
    22: "run still-running compares its model with it; one of the 10 newest that passed",
    40: "the open pull request 7 proposes it; it is the newest that passed, which dev serves; "
    "one of the 10 newest that passed",
}


def test_of_forty_versions_stays_what_something_needs(forty: Installation) -> None:
    passed = sorted({*range(1, 41)} - FAILED)
    newest, newest_failed = passed[-10:], sorted(FAILED)[-10:]
    expected = dict.fromkeys(range(1, 41), "")
    expected |= dict.fromkeys(newest, "one of the 10 newest that passed")
    expected |= dict.fromkeys(newest_failed, "one of the 10 newest that failed")
    assert reasons(forty) == expected | STAY
    retain(forty, "--part", "models")
    assert set(forty.store.versions()) == {*newest, *STAY}
    assert forty.store.failed() == newest_failed
    assert publish_version(forty.root, "the next run") == 41


def test_a_dry_run_shows_each_version_and_deletes_nothing(forty: Installation) -> None:
    shown = retain(forty, "--part", "models", "--dry-run")
    assert re.search(r"^7 +passed +goes *$", shown, re.MULTILINE)
    assert re.search(r"^5 +failed +goes *$", shown, re.MULTILINE)
    assert re.search(r"^8 +passed +8.pinned protects it *$", shown, re.MULTILINE)
    assert len(forty.store.versions()) + len(forty.store.failed()) == 40


def test_a_second_time_nothing_goes(forty: Installation) -> None:
    assert re.search(r"passed +goes", retain(forty, "--part", "models"))
    assert "Nothing goes" in retain(forty, "--part", "models")


def test_what_a_new_hold_changes_is_not_another_promotion(there: Installation) -> None:
    publish_many(there)
    for version in (2, 3, 4, 5, 6):
        there.pin(version)
    for hold in ("it is slow", "it is wrong", ""):
        there.pin(6, hold=hold)
    assert [number for number in range(2, 7) if reasons(there)[number]] == [2, 3, 4, 5, 6]
    there.pin(None)
    there.pin(7)
    assert [number for number in range(2, 8) if reasons(there)[number]] == [3, 4, 5, 6, 7]


def test_production_that_is_behind_keeps_what_it_serves(there: Installation) -> None:
    publish_many(there)
    there.pin(2)
    there.git.git("push", "--quiet", str(there.git.bare), "HEAD:refs/heads/production")
    for version in (3, 4, 5, 6, 7, 8, 9):
        there.pin(version)
    found = reasons(there)
    assert found[2] == "Git pins it on production"
    assert found[3] == ""


@pytest.mark.parametrize("marker", [True, False], ids=["as its text says", "as its file says, its text was edited"])
def test_what_is_proposed_stays_until_the_pull_request_is_closed(there: Installation, *, marker: bool) -> None:
    publish_many(there)
    there.propose(5, marker=marker)
    assert reasons(there)[5] == "the open pull request 7 proposes it"
    there.propose(5, state="closed", marker=marker)
    assert reasons(there)[5] == ""


def test_what_a_version_was_compared_with_stays_for_as_long_as_that_would_change_the_champion(
    there: Installation,
) -> None:
    """2 is the champion; 3 was compared with 1, which a person asked for, so it has proven nothing."""
    publish_version(there.root, "a")
    publish_version(there.root, "b", worse_by=-0.1, than=1)
    verdict = {
        "passed": True,
        "summary": "Good enough.",
        "checks": [{"name": "no-worse-than-champion", "value": -0.1, "passed": True}],
        "champion": {"version": 1, "is_best": False},
    }
    publish_version(there.root, "c", verdict=verdict)
    for number in range(12):
        publish_version(there.root, f"failed {number}", passed=False, apart=True)
    use = {"keep_versions": "1"}
    with pytest.MonkeyPatch.context() as patch:
        use_settings(
            patch, there.secret / "settings.yaml", repository=there.git.url, git_api=there.host.url,
            model_store=there.root, **use,
        )  # fmt: skip
        assert reasons(there)[1] == "version 3 was compared with it"
        assert reasons(there)[2] == "it is the champion, with which new models are compared"


def git_away(there: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(there.git, "token", "another one")


def no_branch(there: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    there.git.git("--git-dir", str(there.git.bare), "update-ref", "-d", "refs/heads/main")


def invalid_pin(there: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    (there.git.work / PIN).write_text("version: 18")
    there.git.push("Pin in another way", readme="")


def host_fails(there: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    there.host.serve(PULLS, Answer(b"{}", status=500))


def token_expired(there: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    there.host.serve(PULLS, Answer(b'{"message": "Bad credentials"}', status=401))


def proposal_of_nothing(there: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    there.git.git("push", "--quiet", str(there.git.bare), ":refs/heads/promote/jukebox/prod")
    there.host.serve(PULLS, Answer(json.dumps([pull_request("c" * 40, "", "open")]).encode()))


def server_away(there: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    there.world.service.faults.database_away = True


def store_unreadable(there: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(there.root, "jukebox", ".failed")
    folder.rename(folder.with_name("moved"))
    folder.write_text("a file where a folder must be")


def store_not_mounted(there: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(there.root).rename(Path(there.root).with_name("moved"))


def another_store(there: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    there.store.delete(18)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (git_away, HostRefuses, "cannot be read from the repository"),
        (no_branch, HostRefuses, "has no branch main"),
        (invalid_pin, SettingsInvalid, "is not a valid pin"),
        (host_fails, HostRefuses, "500"),
        (token_expired, HostRefuses, "401"),
        (proposal_of_nothing, HostRefuses, "cannot be read which version the pull request .*/pull/7 proposes"),
        (server_away, ServerAway, "500"),
        (store_unreadable, StoreBroken, "cannot read the model store"),
        (store_not_mounted, StoreBroken, "is not here: the models are on a claim"),
        (another_store, StoreBroken, "18 does not exist, but Git pins version 18. Nothing is deleted"),
    ],
)
def test_nothing_goes_if_something_cannot_be_read(
    forty: Installation,
    fault: Callable[[Installation, pytest.MonkeyPatch], None],
    error: type[JukeboxError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(forty, monkeypatch)
    parent = Path(forty.root).parent
    before = sorted(parent.rglob("model.onnx"))
    with pytest.raises(error, match=message):
        retain(forty, "--part", "models")
    assert sorted(parent.rglob("model.onnx")) == before


# The job beside the claim, which cannot ask Git


def written(there: Installation, tmp_path: Path, **changes: object) -> Path:
    """What `jukebox in-use` writes to its ConfigMap, as the job beside the claim finds it."""
    config_map = there.world.cluster.objects.get(("configmaps", in_use.NAME))
    if config_map is None:
        there.world.cluster.add("configmaps", {"metadata": {"name": in_use.NAME}})
    jukebox("in-use", "--git-secret", there.secret, "--write")
    text = there.world.cluster.objects["configmaps", in_use.NAME]["data"][in_use.FILE]
    file = tmp_path / in_use.FILE
    file.write_text(json.dumps(json.loads(text) | changes))
    return file


def test_what_is_in_use_reaches_the_job_beside_the_claim(forty: Installation, tmp_path: Path) -> None:
    file = written(forty, tmp_path)
    expected = reasons(forty)
    forty.git.token = "another one"
    rows = jukebox("retain", "--part", "models", "--in-use", file, "--output", "json").splitlines()
    found = {int(row["name"]): "; ".join(row["stays"]) for row in map(json.loads, rows) if "name" in row}
    assert found == expected
    assert set(forty.store.versions()) == {number for number, why in found.items() if why and number not in FAILED}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not say which versions are in use: .*No such file"),
        ("", "does not say which versions are in use"),
        ("{}", "does not say which versions are in use"),
        ({"model": "another"}, "is about the model 'another', expected 'jukebox'"),
        ({"made": "2026-01-01T00:00:00Z"}, "is of 2026-01-01T00:00:00.*, expected at most 6 hours ago"),
        ({"made": ago(6.1 / 24)}, "expected at most 6 hours ago"),
        ({"made": ago(-1)}, "expected at most 6 hours ago"),
        ({"made": "2026-11-28T00:00:00"}, "expected at most 6 hours ago"),
    ],
)
def test_the_job_deletes_nothing_unless_it_is_told_lately_what_is_in_use(
    forty: Installation, tmp_path: Path, content: str | dict[str, object] | None, message: str
) -> None:
    file = written(forty, tmp_path, **(content if isinstance(content, dict) else {}))
    if content is None:
        file.unlink()
    elif isinstance(content, str):
        file.write_text(content)
    with pytest.raises(SettingsInvalid, match=message):
        jukebox("retain", "--part", "models", "--in-use", file)
    assert len(forty.store.versions()) + len(forty.store.failed()) == 40


def test_who_may_not_write_what_is_in_use_is_told_so(there: Installation) -> None:
    there.world.cluster.forbidden = {"configmaps"}
    with pytest.raises(ClusterRefuses, match="forbidden"):
        jukebox("in-use", "--git-secret", there.secret, "--write")


# Damage


def test_a_damaged_version_that_stays_is_withdrawn(forty: Installation, tmp_path: Path) -> None:
    file, promotions = written(forty, tmp_path), mounted(tmp_path)
    folder = Path(forty.root, "jukebox")
    (folder / "17" / "model.onnx").write_bytes(b"other bytes")
    (folder / "20" / "labels.json").unlink()
    (folder / "22" / "lineage.json").write_bytes(b"{")
    newer = json.loads((folder / "40" / "lineage.json").read_text()) | {"schema": 99, "sha256": {}}
    (folder / "40" / "lineage.json").write_text(json.dumps(newer))
    (folder / ".failed" / "39" / "model.onnx").write_bytes(b"other bytes")
    forty.store.withdraw(14, "its labels are wrong")
    (folder / "14" / "model.onnx").write_bytes(b"other bytes")
    said = errors_of_the_job(file, promotions, "--dry-run")
    assert re.findall(r"^Version (\d+) is damaged: .*run `jukebox withdraw", said, re.MULTILINE) == ["17", "20", "22"]
    assert forty.store.withdrawn(17) is None, "a dry run writes nothing"
    said = errors_of_the_job(file, promotions)
    assert re.findall(r"^Version (\d+) is damaged: .*It is withdrawn", said, re.MULTILINE) == ["17", "20", "22"]
    there = {number: why for number in forty.store.versions() if (why := forty.store.withdrawn(number))}
    assert set(there) == {14, 17, 20, 22}, "nothing else, such as a version of a newer release"
    assert there[14] == "its labels are wrong"
    assert there[17].startswith("damaged, as jukebox retain has found: the sha256 of its model.onnx is ")
    assert "It is withdrawn" not in errors_of_the_job(file, promotions), "a second time nothing is done"


def test_a_version_that_cannot_be_read_is_not_withdrawn_and_nothing_goes(forty: Installation, tmp_path: Path) -> None:
    file, promotions = written(forty, tmp_path), mounted(tmp_path)
    golden = Path(forty.root, "jukebox", "17", "golden.json")
    golden.unlink()
    golden.symlink_to(golden)  # neither a file nor absent: reading it fails, as on a claim with errors
    with pytest.raises(StoreBroken, match="cannot read the model store"):
        jukebox("retain", "--part", "models", "--in-use", file, "--promotions", promotions)
    assert forty.store.withdrawn(17) is None
    assert len(forty.store.versions()) + len(forty.store.failed()) == 40


# Proposals of what must not be served


def add_thresholds(there: Installation, number: int, **thresholds: float) -> None:
    """A PipelineVersion whose runs have these thresholds unless they are given others."""
    cluster = there.world.cluster
    if number == 1:
        cluster.add("pipelines", {"metadata": {"name": PIPELINE}, "spec": {}})
    defaults = {"thresholds": {"parameterType": "STRUCT", "defaultValue": thresholds}}
    spec = {"pipelineName": PIPELINE, "pipelineSpec": {"root": {"inputDefinitions": {"parameters": defaults}}}}
    made = {"name": f"{PIPELINE}-{number}", "uid": f"id-{number}", "creationTimestamp": ago(100 - number)}
    cluster.add("pipelineversions", {"metadata": made, "spec": spec})


FACTS = f"Promote\n\nFacts: {json.dumps({'checks': {'floor': [0.5, '>=']}})}"
PROPOSALS = ("--part", "proposals", "--model-store", "/not/mounted/here")


@pytest.fixture
def closed(there: Installation, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Run the job; return with which comments it closes pull requests."""
    said: list[str] = []
    monkeypatch.setattr(Proposals, "close", lambda _, pull, why: said.append(f"{pull.number}: {why}"))

    def run(*options: object) -> list[str]:
        said.clear()
        retain(there, *PROPOSALS, *options)
        return said

    return run


def test_the_proposal_of_a_version_that_must_not_be_served_is_closed_with_the_reason(
    forty: Installation, closed: Callable[..., list[str]]
) -> None:
    forty.store.withdraw(40, "its labels are wrong")
    told(forty, *retain(forty, "--part", "models", "--dry-run", "--output", "json").splitlines()[:-1])
    assert closed("--dry-run") == []
    assert closed() == ["7: Version 40 must not be served: its labels are wrong"]


def test_the_proposal_of_a_damaged_version_is_closed_though_the_job_may_not_mark_it(
    forty: Installation, closed: Callable[..., list[str]]
) -> None:
    Path(forty.root, "jukebox", "40", "model.onnx").write_bytes(b"other bytes")
    told(forty, *retain(forty, "--part", "models", "--dry-run", "--output", "json").splitlines()[:-1])
    [said] = closed()
    assert "Version 40 must not be served" in said
    assert "the sha256 of its model.onnx is" in said


def test_a_proposal_that_the_thresholds_of_today_refuse_is_closed(
    there: Installation, closed: Callable[..., list[str]]
) -> None:
    told(there)
    there.propose(40, message=FACTS, run=there.run("SUCCEEDED"))
    assert closed() == [], "no PipelineVersion"
    add_thresholds(there, 1, floor=0.9)
    add_thresholds(there, 2, floor=0.4, another=9.0)
    assert closed() == [], "the newest one counts"
    add_thresholds(there, 3, floor=0.6)
    [said] = closed()
    assert said == r"7: Version 40 does not meet the thresholds any more: floor is 0.5, must be \>= 0.6"


def test_a_proposal_whose_run_was_given_thresholds_is_judged_by_these(
    there: Installation, closed: Callable[..., list[str]]
) -> None:
    told(there)
    run = there.run("SUCCEEDED", run_id="of-a-person")
    there.world.service.runs[run]["runtime_config"]["parameters"]["thresholds"] = {"floor": 0.3}
    there.propose(40, message=FACTS, run=run)
    add_thresholds(there, 1, floor=0.6)
    assert closed() == []


def test_a_proposal_that_was_replaced_meanwhile_is_left_alone(
    there: Installation, closed: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told(there)
    there.propose(40, message=FACTS, run=there.run("SUCCEEDED"))
    add_thresholds(there, 1, floor=0.6)
    monkeypatch.setattr("scripts.retain._show", lambda *_: there.propose(41))
    assert closed() == []


# The records of promotions


def record(number: int, commit: str = "c", **changes: object) -> str:
    """A record as the ConfigMap has it."""
    found = {
        "model": "jukebox",
        "version": number,
        "sha256": "a" * 64,
        "from": None,
        "commit": commit * 40,
        "kind": "promotion",
        "why": f"Promote jukebox {number}",
        "url": "https://git.corp/pulls/1",
        "merged_by": "ada",
        "merged_at": "2026-11-28T10:00:00Z",
        "approved_by": ["bob"],
        "served_since": "2026-11-28T10:05:00Z",
    }
    return json.dumps(found | changes)


def mounted(tmp_path: Path, **records: str) -> Path:
    """The ConfigMap as Kubernetes mounts it: each key is a link through a folder whose name begins with two dots."""
    folder = tmp_path / "promotions"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "..data").mkdir(parents=True)
    for name, text in records.items():
        (folder / "..data" / name).write_text(text)
        (folder / name).symlink_to(Path("..data") / name)
    return folder


def errors_of_the_job(file: Path, promotions: Path, *more: str) -> str:
    """Run it as the CronJob does, and return what it says beside its result."""
    words = ["retain", "--part=models", f"--in-use={file}", "--output=json", f"--promotions={promotions}", *more]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    for line in result.stdout.splitlines():
        json.loads(line)
    return result.stderr


def test_the_records_of_promotions_are_written_beside_the_versions_that_stay(
    forty: Installation, tmp_path: Path
) -> None:
    file = written(forty, tmp_path)
    promotions = mounted(tmp_path, a=record(18), b=record(7), c=record(99))
    forty.store.add_promotions(4, [json.loads(record(4))])
    assert errors_of_the_job(file, promotions, "--dry-run") == ""
    assert forty.store.promotions(18) == []
    assert errors_of_the_job(file, promotions) == "Version 18: 1 record of its promotion added\n"
    assert forty.store.promotions(18) == [json.loads(record(18))]
    assert [path for path in forty.store.files() if "promotions" in path] == ["18.promotions.json"], "7 and 4 are gone"
    path = Path(forty.root, "jukebox", "18.promotions.json")
    before = path.stat()
    assert errors_of_the_job(file, promotions) == ""
    assert path.stat() == before, "nothing is written a second time"
    later = record(18, "d", served_since="2026-11-29T10:05:00Z")
    promotions = mounted(tmp_path, d=later)
    assert errors_of_the_job(file, promotions) == "Version 18: 1 record of its promotion added\n"
    assert forty.store.promotions(18) == [json.loads(later), json.loads(record(18))]


def test_a_record_that_is_not_valid_is_left_out_and_named(forty: Installation, tmp_path: Path) -> None:
    file = written(forty, tmp_path)
    bad = {
        "a": "{",
        "b": "[" * 100_000,
        "c": record(18, version="18"),
        "d": record(18, model="another"),
        "e": record(18, commit=""),
        "f": record(18, why=None),
    }
    said = errors_of_the_job(file, mounted(tmp_path, **bad, z=record(18)))
    for name in bad:
        assert re.search(rf"^The record {name} is .*(not valid|expected jukebox)", said, re.MULTILINE), name
    assert len(said.splitlines()) == len(bad) + 1
    assert forty.store.promotions(18) == [json.loads(record(18))]
    Path(forty.root, "jukebox", "18.promotions.json").write_text("{")
    said = errors_of_the_job(file, mounted(tmp_path, z=record(18), y=record(20)))
    assert "The records of version 18 are not written: " in said
    assert forty.store.promotions(20) == [json.loads(record(20))]


def test_without_a_folder_the_records_are_those_of_the_cluster(forty: Installation) -> None:
    forty.world.cluster.add("configmaps", {"metadata": {"name": "jukebox-promotions"}, "data": {"18-c": record(18)}})
    retain(forty, "--part", "models")
    assert forty.store.promotions(18) == [json.loads(record(18))]


def test_nothing_goes_if_the_records_cannot_be_read(forty: Installation, tmp_path: Path) -> None:
    file = written(forty, tmp_path)
    with pytest.raises(SettingsInvalid, match="the records of promotions cannot be read from"):
        jukebox("retain", "--part", "models", "--in-use", file, "--promotions", tmp_path / "missing")
    assert len(forty.store.versions()) + len(forty.store.failed()) == 40


# What made the models


@pytest.fixture
def lab(there: Installation) -> Installation:
    """Runs of five PipelineVersions; version 2 of the store is of the run that used the second one."""
    cluster = there.world.cluster
    pipeline = cluster.add("pipelines", {"metadata": {"name": PIPELINE}, "spec": {}})
    for number in range(1, 6):
        image = f"registry.example.com/training@sha256:{str(number) * 64}"
        spec = {
            "pipelineName": PIPELINE,
            "pipelineSpec": {"deploymentSpec": {"executors": {"e": {"container": {"image": image}}}}},
        }
        made = {"name": f"{PIPELINE}-{number}", "uid": f"id-{number}", "creationTimestamp": ago(100 - number)}
        cluster.add("pipelineversions", {"metadata": made, "spec": spec})
        there.run("SUCCEEDED", 100 - number, f"run-of-{number}", f"id-{number}")
    publish_version(there.root, "run-of-1")
    publish_version(there.root, "run-of-2", worse_by=0.01, than=1, image="i@sha256:" + "b" * 64)
    there.store.delete(1)
    assert pipeline
    return there


def gone(there: Installation, *options: object) -> set[str]:
    """What a command deletes of runs and PipelineVersions."""
    before = {
        *there.world.service.runs,
        *(each["metadata"]["name"] for each in there.world.cluster.list("pipelineversions")),
    }
    retain(there, *options)
    after = {
        *there.world.service.runs,
        *(each["metadata"]["name"] for each in there.world.cluster.list("pipelineversions")),
    }
    return before - after


SERVER = ("--part", "models", "--part", "runs", "--part", "pipeline-versions", "--days", 30)


def test_runs_and_pipeline_versions_go_that_made_no_model_that_stays(lab: Installation) -> None:
    lab.run("SUCCEEDED", 20, "of-last-month", "id-3")
    assert gone(lab, *SERVER, "--keep", 1) == {
        *("run-of-1", "run-of-3", "run-of-4", "run-of-5"),
        # 2 made a model, 3 is used by the run that stays, 5 is the newest.
        *(f"{PIPELINE}-1", f"{PIPELINE}-4"),
    }


def test_a_running_run_stays_however_old(lab: Installation) -> None:
    lab.world.service.runs["run-of-1"]["state"] = "RUNNING"
    assert gone(lab, *SERVER, "--keep", 1) == {"run-of-3", "run-of-4", f"{PIPELINE}-3", f"{PIPELINE}-4"}


def test_what_a_recurring_run_starts_and_what_belongs_to_other_experiments_stays(lab: Installation) -> None:
    reference = {"pipeline_id": "p", "pipeline_version_id": "id-3"}
    lab.world.service.recurring_runs.append({"recurring_run_id": "nightly", "pipeline_version_reference": reference})
    other = lab.world.service.add_experiment({"display_name": "of a person"})["experiment_id"]
    lab.world.service.runs["run-of-4"]["experiment_id"] = other
    assert gone(lab, *SERVER, "--keep", 1) == {"run-of-1", "run-of-3", f"{PIPELINE}-1"}


def test_the_newest_and_the_young_stay(lab: Installation) -> None:
    assert gone(lab, *SERVER, "--keep", 5) == set()
    assert gone(lab, *SERVER, "--keep", 1, "--days", 98) == {"run-of-1", f"{PIPELINE}-1"}


def test_pipeline_versions_alone_go_by_all_runs_that_there_are(lab: Installation) -> None:
    assert gone(lab, "--part", "models", "--part", "pipeline-versions", "--keep", 1) == set()


def of_the_job() -> list[dict[str, Any]]:
    """The containers of the CronJob beside the model store."""
    job = yaml.safe_load((ROOT / "manifests/base/storage/cronjob-retention.yaml").read_text())
    containers: list[dict[str, Any]] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return containers


def told(there: Installation, *lines: str, phase: str = "Succeeded", made: str = "", model: str = "jukebox") -> None:
    """The pod of the job beside the model store, with what it has printed."""
    metadata = {"name": "jukebox-retention-1", "labels": {"app.kubernetes.io/name": "retention"}}
    [container] = of_the_job()
    there.world.cluster.add(
        "pods", {"metadata": metadata, "spec": {"containers": [container]}, "status": {"phase": phase}}
    )
    end = json.dumps({"model": model, "made": made or ago(0), "dry_run": False})
    there.world.cluster.logs["jukebox-retention-1"] = "\n".join([*lines, end])


def test_the_job_beside_the_claim_tells_which_models_stay(lab: Installation) -> None:
    told(lab, *retain(lab, "--part", "models", "--dry-run", "--output", "json").splitlines()[:-1])
    lab.world.cluster.asked.clear()
    options = ("--part", "runs", "--part", "pipeline-versions", "--keep", 1, "--model-store", "/not/mounted/here")
    assert "run-of-2" not in gone(lab, *options)
    assert "run-of-2" in lab.world.service.runs
    assert "run-of-1" not in lab.world.service.runs


@pytest.mark.parametrize(
    ("say", "message"),
    [
        (lambda lab: None, "No job in ada-jukebox has said which models stay"),
        (lambda lab: told(lab, phase="Failed"), "No job in ada-jukebox has said which models stay"),
        (lambda lab: told(lab, made=ago(0.3)), "expected at most 6 hours ago"),
        (lambda lab: told(lab, model="another"), "does not say which versions of jukebox stay"),
        (lambda lab: told(lab, "{cut"), "does not say which versions of jukebox stay"),
    ],
    ids=["no pod", "a failed one", "an old one", "one of another model", "a damaged line"],
)
def test_nothing_goes_unless_that_job_has_lately_said_which_models_stay(
    lab: Installation, say: Callable[[Installation], None], message: str
) -> None:
    say(lab)
    with pytest.raises(SettingsInvalid, match=message):
        retain(lab, "--part", "runs", "--part", "pipeline-versions", "--keep", 1)
    assert len(lab.world.service.runs) == 5


# Images


@pytest.fixture
def registry(
    certificate: Path, lab: Installation, private_ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A real registry, which the settings name; it has no images."""
    trust()
    with serve_registry(tmp_path / "registry", certificate) as address:
        use_settings(
            monkeypatch,
            tmp_path / "settings.yaml",
            repository=lab.git.url,
            git_api=lab.host.url,
            model_store=lab.root,
            image=f"{address}/training",
            ci_image=f"{address}/tasks:1",
        )
        yield address


def push(folder: Path, reference: str, name: str) -> str:
    """Push an image of nothing but a name; return its digest."""
    layout = Layout(folder / name)
    layer = layout.add(name.encode())
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    content = json.dumps(config).encode()
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": {"mediaType": f"{kind}.config.v1+json", **layout.add(content)},
        "layers": [{"mediaType": f"{kind}.layer.v1.tar", **layer}],
    }
    layout.write(json.dumps(manifest).encode(), content)
    return Registry().push(layout, reference, compress=False)


@pytest.fixture
def images(lab: Installation, registry: str, tmp_path: Path) -> dict[str, str]:
    """Images by what they are: the digest of each. All were built 60 days ago."""
    tags = {
        "made a model": "1" * 64,
        "of a PipelineVersion": "2" * 64,
        "old": "3" * 64,
        "old packages": "deps-" + "3" * 64,
        "young": "4" * 64,
        "newest packages": "deps-" + "5" * 64,
        "never tested": "push-0123456789ab",
        "of a run": "push-ba9876543210-deps",
        "of a person": "v1",
    }
    digests = {name: push(tmp_path, f"{registry}/training:{tag}", name) for name, tag in tags.items()}
    digests["of the tasks"] = push(tmp_path, f"{registry}/tasks:1", "tasks")
    digests["old of the tasks"] = push(tmp_path, f"{registry}/tasks:ci-{'6' * 64}", "old tasks")
    digests["of the tasks now"] = push(tmp_path, f"{registry}/tasks:ci-{'7' * 64}", "new tasks")
    tags |= {"old of the tasks": "ci-" + "6" * 64, "of the tasks now": "ci-" + "7" * 64}
    days = {"young": 1, "newest packages": 59, "of the tasks now": 59}
    recorded = {
        tags[name]: f"{digest} {ago(days.get(name, 60))}"
        for name, digest in digests.items()
        if len(tags.get(name, "")) > 60
    }
    lab.world.cluster.ci.add("configmaps", {"metadata": {"name": image_records.NAME}, "data": recorded})
    publish_version(lab.root, "r", worse_by=0.01, than=2, image=f"i@{digests['made a model']}")
    spec = lab.world.cluster.objects["pipelineversions", f"{PIPELINE}-5"]["spec"]
    spec["pipelineSpec"]["deploymentSpec"]["executors"]["e"]["container"]["image"] = (
        f"{registry}/training@{digests['of a PipelineVersion']}"
    )
    add_pipeline_run(lab.world, "push-ba9876543210", 60, 59)
    return digests


def images_there(registry: str, images: dict[str, str]) -> set[str]:
    """What of these the registry still has."""
    repository = {name: "tasks" if "tasks" in name else "training" for name in images}
    return {name for name, digest in images.items() if Registry().digest(f"{registry}/{repository[name]}@{digest}")}


IMAGES = ("--part", "models", "--part", "images", "--keep", 1)


@needs_registry
def test_images_go_that_nothing_needs(lab: Installation, registry: str, images: dict[str, str]) -> None:
    retain(lab, *IMAGES)
    assert images.keys() - images_there(registry, images) == {
        *("old", "old packages", "never tested", "old of the tasks")
    }
    assert "Nothing goes" in retain(lab, *IMAGES), "what has no tag any more is not asked for again"


@needs_registry
def test_no_image_goes_while_a_run_may_use_it(lab: Installation, registry: str, images: dict[str, str]) -> None:
    add_pipeline_run(lab.world, "push-running", 0.1, None)
    assert "Nothing goes" in retain(lab, *IMAGES)
    assert images_there(registry, images) == images.keys()


@needs_registry
def test_a_registry_that_deletes_nothing_is_no_error(
    lab: Installation, registry: str, images: dict[str, str], tmp_path: Path, certificate: Path
) -> None:
    with serve_registry(tmp_path / "registry", certificate, delete=False) as address:
        with pytest.MonkeyPatch.context() as patch:
            use_settings(
                patch, tmp_path / "of-another.yaml", repository=lab.git.url, git_api=lab.host.url,
                model_store=lab.root, image=f"{address}/training", ci_image=f"{address}/tasks:1",
            )  # fmt: skip
            result = CliRunner().invoke(app, ["retain", "--git-secret", str(lab.secret), *map(str, IMAGES)])
        assert result.exit_code == 0, result.output
        assert "does not allow the deletion of images: they stay" in result.stderr
        assert result.stderr.count("does not allow") == 1
        assert images_there(address, images) == images.keys()


@needs_registry
def test_nothing_goes_if_the_registry_is_away(lab: Installation, registry: str, tmp_path: Path) -> None:
    lab.world.cluster.ci.add("configmaps", {"metadata": {"name": image_records.NAME}})
    with pytest.MonkeyPatch.context() as patch:
        use_settings(
            patch, tmp_path / "of-another.yaml", repository=lab.git.url, git_api=lab.host.url, model_store=lab.root,
            image="127.0.0.1:1/training", keep_versions="1",
        )  # fmt: skip
        with pytest.raises(RegistryRefuses, match="cannot be listed"):
            retain(lab)
    assert len(lab.world.service.runs) == 5


# The namespace of the tasks


def add_pipeline_run(world: World, name: str, begun: float, ended: float | None, **metadata: Any) -> None:
    """Add a run that began and ended so many days ago, with its claim, which an ended pod of it still holds."""
    status = {} if ended is None else {"completionTime": ago(ended)}
    labels = {"app.kubernetes.io/name": "continuous-training"}
    metadata = {"name": name, "labels": labels, "creationTimestamp": ago(begun), **metadata}
    run = world.cluster.ci.add("pipelineruns", {"metadata": metadata, "spec": {}, "status": status})
    owner = {"kind": "PipelineRun", "name": name, "uid": run["metadata"]["uid"]}
    finalizers = ["kubernetes.io/pvc-protection"]
    world.cluster.ci.add(
        "persistentvolumeclaims",
        {"metadata": {"name": f"claim-{name}", "ownerReferences": [owner], "finalizers": finalizers}},
    )


def left(world: World, plural: str) -> set[str]:
    return {each["metadata"]["name"] for each in world.cluster.ci.list(plural)}


@pytest.fixture
def tasks(world: World) -> World:
    add_pipeline_run(world, "old", 50, 49)
    add_pipeline_run(world, "older-but-running", 60, None)
    add_pipeline_run(world, "last-week", 7, 6)
    add_pipeline_run(world, "an-hour-ago", 0.2, 0.04)
    add_pipeline_run(world, "running", 0.1, None)
    add_pipeline_run(world, "of-another-pipeline", 50, 49, labels={"app.kubernetes.io/name": "other"})
    world.cluster.ci.add("persistentvolumeclaims", {"metadata": {"name": "of-somebody-else"}})
    return world


TASKS = ("retain", "--part", "tasks", "--keep", 2)


def test_old_pipeline_runs_go_and_sooner_the_claims_of_ended_ones(tasks: World) -> None:
    output = jukebox(*TASKS)
    assert left(tasks, "pipelineruns") == {
        *("older-but-running", "last-week", "an-hour-ago", "running", "of-another-pipeline")
    }
    # What the old run owned the cluster collects.
    assert left(tasks, "persistentvolumeclaims") - {"claim-old"} == {
        *("claim-older-but-running", "claim-an-hour-ago", "claim-running", "claim-of-another-pipeline"),
        "of-somebody-else",
    }
    assert tasks.cluster.asked == [], "it has to do with the namespace of the CI alone"
    assert re.search("PipelineRun old +goes", output)
    assert re.search("PersistentVolumeClaim claim-last-week of last-week +goes", output)


def test_a_dry_run_of_the_tasks_says_the_same_and_deletes_nothing(tasks: World) -> None:
    before = dict(tasks.cluster.ci.objects)
    dry = jukebox(*TASKS, "--dry-run")
    assert tasks.cluster.ci.objects == before
    assert {method for method, _, _ in tasks.cluster.ci.asked} == {"GET"}
    goes = [" ".join(line.split()) for line in dry.splitlines() if line.endswith("goes") or "  goes" in line]
    assert goes == [" ".join(line.split()) for line in jukebox(*TASKS).splitlines() if "goes" in line]


def test_the_newest_pipeline_runs_stay_however_old(tasks: World) -> None:
    jukebox("retain", "--part", "tasks", "--keep", 4, "--days", 0)
    assert "old" in left(tasks, "pipelineruns")
    jukebox("retain", "--part", "tasks", "--keep", 3, "--days", 0)
    assert "old" not in left(tasks, "pipelineruns")
    assert "older-but-running" in left(tasks, "pipelineruns")


def test_many_runs_of_one_day_leave_room_for_the_next_one(world: World) -> None:
    """The namespace's quota is 50 claims."""
    for number in range(50):
        add_pipeline_run(world, f"run-{number}", 0.5 - number / 1000, 0.4 - number / 1000)
    add_pipeline_run(world, "running", 0.6, None)
    jukebox("retain", "--part", "tasks")
    last = {f"claim-run-{number}" for number in range(30, 50)}
    assert left(world, "persistentvolumeclaims") == last | {"claim-running"}
    assert len(left(world, "pipelineruns")) == 51


def test_who_may_not_delete_is_told_so(tasks: World) -> None:
    tasks.cluster.ci.forbidden = {"persistentvolumeclaims"}
    with pytest.raises(ClusterRefuses, match="forbidden"):
        jukebox(*TASKS)
