"""The commands that bring a model to production and back, against a real Gitea and the pipeline server's stand-in."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tenacity import retry, retry_if_exception_type, retry_if_result, stop_after_delay, wait_fixed
from typer.testing import CliRunner

from pipeline.core.candidate import Candidate, line
from pipeline.core.errors import CandidateInvalid, HostRefuses, RequestRefused, ServerUnavailable, SettingsInvalid
from pipeline.settings import PIPELINE, read_settings
from scripts import promote as module
from scripts.apply import apply, read_resources
from scripts.cli import app
from scripts.clients.kfp_server import Kfp
from scripts.clients.kubernetes_api import Cluster
from scripts.pins import PIN, Pin, parse, render
from scripts.promote import _logs, find_candidate
from scripts.proposals import proposals
from scripts.start import start
from tests.gitea import Gitea, Refused
from tests.kfp.world import DATA_VERSION, NAMESPACE, World, compiled
from tests.report_fixture import documents
from tests.scripts.proposing import sha
from tests.settings_file import use_settings, write_git_secret

pytest_plugins = ("tests.kfp.fixtures",)
VERSION = f"{PIPELINE}-000000000001"


@dataclass
class Runs:
    """Runs of the pipeline that have published something."""

    world: World

    def published(self, number: int, worse: dict[int, tuple[float, float, float]] | None = None, **model: Any) -> str:
        """Have a run publish a version; return the run's id."""
        run = self.start(number)
        lineage = documents()["lineage"]
        lineage["model"] |= {"number": number, "prod_flag": True, **model}
        lineage["run"] |= {"id": run, "commit": f"{number:040x}"}
        lineage["sha256"]["model.onnx"] = sha(number)
        for who, (version, (value, low, high)) in zip(("champion", "served"), (worse or {}).items(), strict=False):
            beside = documents()["evaluation"]["champion"]
            difference = {"metric": "cross_entropy", "value": value, "interval": [low, high]}
            lineage["beside"][who] = {**beside, "version": version, "difference": difference}
        self.log(run, f"begin\n{line(lineage)}\nend")
        return run

    def start(self, number: int) -> str:
        parameters = {"data_version": DATA_VERSION}
        run, _ = start(self.world.kfp(), VERSION, settings=read_settings(), key=f"uid-{number}", parameters=parameters)
        return str(run["run_id"])

    def log(self, run: str, text: str) -> None:
        """Have the run's last step print this, and end."""
        self.world.set(run, ("publish-model", "SUCCEEDED", text), code=0)
        self.world.service.tick()


@pytest.fixture
def runs(world: World, tmp_path: Path) -> Runs:
    """A pipeline server with the pipeline."""
    apply(Cluster(NAMESPACE), *read_resources(compiled(tmp_path / "pipeline.yaml")), timeout=5)
    return Runs(world)


def jukebox(*words: str) -> str:
    """Run a command, and return what it prints; raises what it raises."""
    result = CliRunner().invoke(app, words)
    if result.exception:
        raise result.exception
    return result.output


@dataclass
class Repository:
    """A repository of a real Gitea, whose main branch changes by pull requests alone, and the Secret for it."""

    gitea: Gitea
    name: str
    url: str
    secret: Path
    work: Path

    def git(self, *arguments: str) -> str:
        """Run git in a work tree, as the administrator."""
        environment = {**os.environ, **self.gitea.environment}
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=self.work, env=environment, check=True, capture_output=True, text=True)
        return done.stdout

    def pinned(self, branch: str = "main") -> Pin:
        """What a branch pins."""
        self.git("fetch", "--quiet", self.url, branch)
        return parse(self.git("show", f"FETCH_HEAD:{PIN}"))

    def pulls(self, state: str = "open") -> list[Any]:
        """The pull requests, newest first."""
        found = self.gitea.api("GET", f"repos/{self.name}/pulls?state={state}&sort=recentupdate")
        return sorted(found, key=lambda pull: -pull["number"])

    @retry(retry=retry_if_exception_type(Refused), stop=stop_after_delay(60), wait=wait_fixed(0.05), reraise=True)
    def merge(self) -> None:
        """Merge the open pull request, as a person does, once Gitea has found out that it can be merged."""
        [pull] = self.pulls()
        self.gitea.api("POST", f"repos/{self.name}/pulls/{pull['number']}/merge", {"Do": "squash"})

    @retry(retry=retry_if_result(bool), stop=stop_after_delay(60), wait=wait_fixed(0.05))
    def wait_until_closed(self) -> list[Any]:
        """Wait until no pull request is open: Gitea closes one in its own time."""
        return self.pulls()


@pytest.fixture
def repository(gitea: Gitea, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> Repository:
    """A repository that pins nothing."""
    name = f"story-{uuid4().hex[:8]}/jukebox"
    url, bot = gitea.repository(name), gitea.user("promoter", "write:repository", "write:issue", "read:user")
    work = tmp_path / "work"
    work.mkdir()
    made = Repository(gitea, name, url, write_git_secret(tmp_path / "secret", url, bot.token), work)
    made.git("init", "--quiet", "--initial-branch=main")
    (work / PIN).parent.mkdir(parents=True)
    (work / PIN).write_text(render(Pin("jukebox")))
    made.git("add", ".")
    made.git("commit", "--quiet", "--message=Begin")
    made.git("push", "--quiet", url, "main")
    gitea.allow(name, bot.name)
    gitea.protect(name)
    use_settings(monkeypatch, tmp_path / "settings.yaml", repository=url, git_host="gitea")
    return made


def promote(repository: Repository, run: str, *more: str) -> str:
    return jukebox("promote", run, "--git-secret", str(repository.secret), *more)


def test_models_go_to_production_and_back(runs: Runs, repository: Repository) -> None:
    first = runs.published(1)
    assert "jukebox 1 is proposed: " in promote(repository, first, "--reason", "push")
    [pull] = repository.pulls()
    assert (pull["title"], pull["head"]["ref"]) == ("Promote jukebox 1 to production", "promote/jukebox/prod")
    [changed] = repository.gitea.api("GET", f"repos/{repository.name}/pulls/{pull['number']}/files")
    assert changed["filename"] == PIN
    promote(repository, first, "--reason", "push")
    assert repository.pulls() == [pull]
    assert repository.pinned() == Pin("jukebox")
    repository.merge()
    assert repository.pinned() == Pin("jukebox", 1, sha(1))
    assert "production's pin has this version" in promote(repository, first)

    second = runs.published(2, {1: (-0.2, -0.3, -0.1)})
    assert "jukebox 2 is proposed: " in promote(repository, second)
    [pull] = repository.pulls()
    assert "from version 1 is −0.2 (−0.3 to −0.1)" in pull["body"]
    assert f"/compare/{1:040x}...{2:040x}" in pull["body"]
    repository.merge()
    assert repository.pinned() == Pin("jukebox", 2, sha(2))

    third = runs.published(3)
    promote(repository, third)
    said = jukebox("rollback", "--reason", "wrong answers", "--git-secret", str(repository.secret))
    assert "The rollback to jukebox 1 is proposed: " in said
    [pull] = repository.pulls()
    assert pull["title"] == "Roll jukebox back to 1 in production"
    assert "proposes a rollback" in promote(repository, third, "--again")
    repository.merge()
    now = repository.pinned()
    assert (now.version, now.sha256) == (1, sha(1))
    assert now.hold.startswith("rolled back from version 2 on ")
    assert "holds promotions" in promote(repository, third, "--again")


def test_a_better_version_replaces_what_is_proposed_and_people_are_told(runs: Runs, repository: Repository) -> None:
    promote(repository, runs.published(1))
    [pull] = repository.pulls()
    repository.gitea.api(
        "PATCH", f"repos/{repository.name}/pulls/{pull['number']}", {"body": f"Mine.\n\n{pull['body']}"}
    )
    promote(repository, runs.published(2, {1: (-0.2, -0.3, -0.1)}))
    [after] = repository.pulls()
    assert (after["number"], after["title"]) == (pull["number"], "Promote jukebox 2 to production")
    assert after["body"].startswith("Mine.")
    assert repository.pinned("promote/jukebox/prod") == Pin("jukebox", 2, sha(2))
    [comment] = repository.gitea.api("GET", f"repos/{repository.name}/issues/{pull['number']}/comments")
    assert comment["body"].startswith("Version 2 replaces version 1: it is better, on the same rows")


def test_promotions_at_once_end_with_one_pull_request_that_says_what_it_pins(
    runs: Runs, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.proposals.OPENING", 30.0)  # Gitea is slow on a busy machine
    # The first one knows neither of the others: whichever comes later, 2 is the best.
    alike, better = {20: (0.0, -0.1, 0.1)}, {1: (-0.2, -0.3, -0.1)}
    worse = {1: alike, 2: better, 3: {1: (0.2, 0.1, 0.3), 2: (0.4, 0.3, 0.5)}}
    candidates = []
    for number, than in worse.items():
        run = runs.published(number, than)
        found = find_candidate(runs.world.kfp(), None, run)
        assert found
        candidates.append(found)

    def one(candidate: Candidate) -> str:
        with proposals(read_settings(), repository.secret) as proposed:
            return module.promote(proposed, candidate)

    with ThreadPoolExecutor() as pool:
        said = [*pool.map(one, candidates)]
    [pull] = repository.pulls("all")
    assert "jukebox 2 is proposed: " in said[1]
    assert pull["title"] == "Promote jukebox 2 to production"
    assert "version=2 " in pull["body"]
    assert repository.pinned("promote/jukebox/prod") == Pin("jukebox", 2, sha(2))


def test_what_a_person_has_closed_or_whose_branch_is_gone_is_proposed_only_again(
    runs: Runs, repository: Repository
) -> None:
    run = runs.published(1)
    promote(repository, run)
    repository.gitea.api("DELETE", f"repos/{repository.name}/branches/promote%2Fjukebox%2Fprod")
    repository.wait_until_closed()  # Gitea closes it with its branch
    assert "was closed without a merge; --again proposes it again" in promote(repository, run)
    assert "is proposed" in promote(repository, run, "--again")
    assert repository.pinned("promote/jukebox/prod") == Pin("jukebox", 1, sha(1))
    said = jukebox("withdraw", "1", "--reason", "wrong labels", "--git-secret", str(repository.secret))
    assert " is closed.\n" in said
    assert repository.pulls() == []


def test_it_is_merged_without_a_person_after_its_checks(
    runs: Runs, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = repository.url
    use_settings(monkeypatch, tmp_path / "s.yaml", repository=url, git_host="gitea", merge_promotions="after-checks")
    run = runs.published(1)
    assert "It is not merged: it has no checks" in promote(repository, run)
    [pull] = repository.pulls()
    status = {"state": "success", "context": "tests"}
    repository.gitea.api("POST", f"repos/{repository.name}/statuses/{pull['head']['sha']}", status)
    assert "it is merged" in promote(repository, run)
    assert repository.pinned() == Pin("jukebox", 1, sha(1))
    after = repository.gitea.api("GET", f"repos/{repository.name}/pulls/{pull['number']}")
    assert after["merged_by"]["login"] == "promoter"


def test_commits_are_signed_if_the_secret_has_a_key(runs: Runs, repository: Repository) -> None:
    key = repository.secret / "signing-key"
    made = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)]
    subprocess.run(made, check=True)
    (repository.secret / "signing-email").write_text("promoter@example.com\n")
    promote(repository, runs.published(1))
    signers = repository.work / "signers"
    signers.write_text(f"promoter@example.com {key.with_suffix('.pub').read_text()}")
    repository.git("fetch", "--quiet", repository.url, "promote/jukebox/prod")
    verified = ("-c", f"gpg.ssh.allowedSignersFile={signers}", "log", "-1", "--format=%G? %ae", "FETCH_HEAD")
    assert repository.git(*verified) == "G promoter@example.com\n"


def test_a_token_that_has_expired_is_said_without_the_token(runs: Runs, repository: Repository) -> None:
    run = runs.published(1)
    write_git_secret(repository.secret, repository.url, "a-token-that-has-expired")
    with pytest.raises(HostRefuses) as refused:
        promote(repository, run)
    assert "a-token" not in str(refused.value)


def test_without_a_token_a_promotion_says_so_and_a_rollback_is_an_error(
    runs: Runs, repository: Repository, tmp_path: Path
) -> None:
    run = runs.published(1)
    assert "contains no token for the Git host" in jukebox("promote", run, "--git-secret", str(tmp_path / "none"))
    with pytest.raises(SettingsInvalid, match="contains no token for the Git host: give the folder"):
        jukebox("rollback")


def test_what_is_not_for_production_needs_no_git_host(runs: Runs) -> None:
    assert "prod_flag false" in jukebox("promote", runs.published(1, prod_flag=False))


def test_a_run_that_published_nothing_proposes_nothing(runs: Runs) -> None:
    run = runs.start(1)
    runs.log(run, "step publish-model begins")
    assert jukebox("promote", run) == f"Nothing is proposed: run {run} published no version.\n"


def test_a_record_that_is_damaged_is_an_error(runs: Runs) -> None:
    run = runs.start(1)
    runs.log(run, 'candidate {"model": "jukebox"}')
    with pytest.raises(CandidateInvalid):
        jukebox("promote", run)


def test_the_log_of_the_pod_is_read_if_the_server_has_none(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.published(1, prod_flag=False)
    [log] = _logs(runs.world.kfp(), None, runs.world.kfp().run(run) or {})

    def gone(*given: Any) -> str:
        raise RequestRefused(200, "The specified key does not exist")

    monkeypatch.setattr(Kfp, "log", gone)
    with pytest.raises(ServerUnavailable, match="does not exist any more"):
        jukebox("promote", run)
    pod = runs.world.cluster.add_pod(run, "publish-model", phase="Succeeded")
    runs.world.cluster.logs[pod["metadata"]["name"]] = log
    assert "prod_flag false" in jukebox("promote", run)


def test_a_run_that_does_not_exist_is_said_so(runs: Runs) -> None:
    with pytest.raises(ServerUnavailable, match="has no run 6f1c3c2e"):
        jukebox("promote", "6f1c3c2e-0000-0000-0000-000000000000")
