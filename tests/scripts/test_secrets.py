"""``jukebox secrets``: what is made, what is taken, and that nothing of it is shown."""

import json
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.core.errors import ClusterRefuses, SettingsInvalid
from pipeline.settings import read_settings
from scripts.cli import app
from scripts.secrets import KEYS
from tests.kfp.cluster import Cluster
from tests.kfp.world import World

pytest_plugins = ("tests.kfp.fixtures",)
S3 = "# the data connection\nAWS_ACCESS_KEY_ID=an-id\nAWS_SECRET_ACCESS_KEY='hidden-key'\nAWS_S3_ENDPOINT=https://s3\n"
REGISTRY = json.dumps({"auths": {"registry.example.com": {"auth": "hidden-login"}}})


def secrets(*options: str) -> Result:
    return CliRunner().invoke(app, ["secrets", *options])


def held(cluster: Cluster, name: str = "jukebox-senders") -> dict[str, str]:
    data = cluster.objects["secrets", name]["data"]
    return {key: b64decode(value).decode() for key, value in data.items()}


def names(cluster: Cluster) -> set[str]:
    return {each["metadata"]["name"] for each in cluster.list("secrets")}


def test_a_token_for_each_sender_is_made_and_none_is_shown(world: World) -> None:
    result = secrets()
    assert result.exit_code == 0, result.output
    tokens = held(world.cluster.ci)
    assert sorted(tokens) == sorted(KEYS) == ["alert", "data", "gitea", "github", "gitlab", "schedule"]
    assert len(set(tokens.values())) == 6
    assert all(len(token) >= 32 for token in tokens.values())
    assert not any(token in result.output for token in tokens.values())
    assert (
        "kubectl get secret jukebox-senders --namespace ada-jukebox-ci --output jsonpath='{.data.KEY}'" in result.output
    )
    assert world.cluster.ci.objects["secrets", "jukebox-senders"]["metadata"]["labels"]["app.kubernetes.io/part-of"]


def test_what_is_there_stays_and_what_is_empty_or_too_short_is_made_anew(world: World) -> None:
    secrets()
    before = held(world.cluster.ci)
    world.cluster.ci.objects["secrets", "jukebox-senders"]["data"] |= {"github": "", "alert": "c2hvcnQ="}
    result = secrets()
    after = held(world.cluster.ci)
    assert {key for key in KEYS if before[key] != after[key]} == {"github", "alert"}
    assert all(len(after[key]) >= 32 for key in KEYS)
    assert result.output.count("there") >= 4


def test_one_is_rotated_and_the_others_stay(world: World) -> None:
    secrets()
    before = held(world.cluster.ci)
    result = secrets("--rotate", "github", "--rotate", "data")
    assert result.exit_code == 0, result.output
    assert {key for key in KEYS if before[key] != held(world.cluster.ci)[key]} == {"github", "data"}
    assert result.output.count("replaced") == 2


def test_alertmanager_has_the_token_of_alerts_and_of_no_other_sender(world: World) -> None:
    """In the namespace of the runs, where its configuration is; what is pushed might read it."""
    secrets()
    before = held(world.cluster.ci)["alert"]
    assert names(world.cluster) == {"jukebox-alert"}
    assert held(world.cluster, "jukebox-alert") == {"token": before}
    result = secrets("--rotate", "alert")
    after = held(world.cluster.ci)["alert"]
    assert after != before
    assert held(world.cluster, "jukebox-alert") == {"token": after}
    assert after not in result.output
    world.cluster.objects.pop(("secrets", "jukebox-alert"))
    secrets()
    assert held(world.cluster, "jukebox-alert") == {"token": after}


def test_what_is_no_key_is_not_rotated(world: World) -> None:
    result = secrets("--rotate", "bitbucket")
    assert isinstance(result.exception, SettingsInvalid)
    assert "bitbucket cannot be rotated: expected one of alert, data" in str(result.exception)
    assert not names(world.cluster) | names(world.cluster.ci)


def test_what_people_give_goes_from_files_into_the_cluster(world: World, tmp_path: Path) -> None:
    options = []
    for option, text in {
        "--git-token-file": "hidden-token\n",
        "--registry-file": REGISTRY,
        "--data-file": S3.replace("an-id", "reads"),
        "--s3-file": S3,
        "--store-file": S3.replace("an-id", "adds"),
        "--chat-file": "https://chat.example.com/hidden-hook\n",
    }.items():
        (tmp_path / option).write_text(text)
        options += [option, str(tmp_path / option)]
    result = secrets(*options)
    assert result.exit_code == 0, result.output
    assert held(world.cluster.ci, "jukebox-git-host") == {
        "token": "hidden-token",
        "repository": read_settings().repository,
    }
    assert held(world.cluster.ci, "jukebox-chat") == {"url": "https://chat.example.com/hidden-hook"}
    registry = world.cluster.ci.objects["secrets", "jukebox-registry"]
    assert registry["type"] == "kubernetes.io/dockerconfigjson"
    assert held(world.cluster.ci, "jukebox-registry") == {".dockerconfigjson": REGISTRY}
    for name, cluster, identity in (
        ("jukebox-data", world.cluster.ci, "reads"),
        ("jukebox-data", world.cluster, "reads"),
        ("jukebox-s3", world.cluster, "an-id"),
        ("jukebox-store", world.cluster, "adds"),
    ):
        assert held(cluster, name) == {
            "AWS_ACCESS_KEY_ID": identity,
            "AWS_SECRET_ACCESS_KEY": "hidden-key",
            "AWS_S3_ENDPOINT": "https://s3",
        }
    # The runs have no key to what builds and releases them.
    assert names(world.cluster) == {"jukebox-alert", "jukebox-data", "jukebox-s3", "jukebox-store"}
    assert not {"jukebox-s3", "jukebox-store", "jukebox-alert"} & names(world.cluster.ci)
    assert "hidden" not in result.output
    assert "missing" not in result.output
    assert "missing" not in secrets().output


def test_what_is_missing_is_named_with_the_option_that_gives_it(world: World) -> None:
    rows = {line.split()[1]: line for line in secrets().output.splitlines() if line.strip()}
    assert "missing: set it with --git-token-file" in rows["jukebox-git-host"]
    assert "(optional)" in rows["jukebox-chat"]
    assert "(optional)" not in rows["jukebox-s3"]


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("--git-token-file", "", "is empty"),
        ("--git-token-file", "two hidden words", "expected only the token"),
        ("--registry-file", "hidden", "not JSON with auths"),
        ("--registry-file", '{"auths": {}}', "not JSON with auths"),
        ("--s3-file", "AWS_ACCESS_KEY_ID=hidden", "lacks AWS_SECRET_ACCESS_KEY"),
        ("--s3-file", S3 + "hidden", "has 1 unknown lines"),
        ("--chat-file", None, "cannot be read"),
        ("--pull-file", REGISTRY, "set pull-secret in the settings"),
    ],
)
def test_a_file_that_is_wrong_is_refused_unseen_and_nothing_is_written(
    world: World, tmp_path: Path, option: str, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / "file").write_text(text)
    result = secrets(option, str(tmp_path / "file"))
    assert isinstance(result.exception, SettingsInvalid)
    assert words in str(result.exception)
    assert "hidden" not in str(result.exception)
    assert not names(world.cluster) | names(world.cluster.ci)


OLD = {
    "jukebox-senders": dict.fromkeys(KEYS, "hidden-token-that-a-sender-knows"),
    "jukebox-listener": {"qps": "70", "burst": "140"},
    "jukebox-git-host": {"token": "hidden-token"},
    "jukebox-registry": {".dockerconfigjson": REGISTRY},
    "jukebox-chat": {"url": "https://chat.example.com/hidden-hook"},
    "jukebox-s3": {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "hidden-key"},
}


@pytest.fixture
def old(world: World) -> World:
    """An installation from when there was one namespace."""
    for name, data in OLD.items():
        kind = "kubernetes.io/dockerconfigjson" if name == "jukebox-registry" else "Opaque"
        encoded = {key: b64encode(value.encode()).decode() for key, value in data.items()}
        world.cluster.add("secrets", {"metadata": {"name": name}, "type": kind, "data": encoded})
    return world


def test_an_installation_with_one_namespace_is_moved_without_loss(old: World) -> None:
    result = secrets()
    assert result.exit_code == 0, result.output
    assert names(old.cluster) == {"jukebox-alert", "jukebox-s3"}
    assert held(old.cluster, "jukebox-s3") == OLD["jukebox-s3"]
    for name in OLD.keys() - {"jukebox-s3", "jukebox-git-host"}:
        assert held(old.cluster.ci, name) == OLD[name]
        assert f"Secret {name} is moved from ada-jukebox" in result.output
    # Which lacks what it is for, as the settings say it.
    assert held(old.cluster.ci, "jukebox-git-host") == {
        "token": "hidden-token",
        "repository": read_settings().repository,
    }
    assert old.cluster.ci.objects["secrets", "jukebox-registry"]["type"] == "kubernetes.io/dockerconfigjson"
    assert held(old.cluster, "jukebox-alert") == {"token": "hidden-token-that-a-sender-knows"}
    assert "hidden" not in result.output
    assert "moved" not in secrets().output


def test_a_move_that_was_interrupted_goes_on(old: World) -> None:
    old.cluster.ci.add(
        "secrets", {**old.cluster.objects["secrets", "jukebox-senders"], "metadata": {"name": "jukebox-senders"}}
    )
    assert secrets().exit_code == 0
    assert "jukebox-senders" not in names(old.cluster)
    assert held(old.cluster.ci) == OLD["jukebox-senders"]


def test_of_two_secrets_that_differ_none_is_lost(old: World) -> None:
    old.cluster.ci.add("secrets", {"metadata": {"name": "jukebox-senders"}, "data": {"alert": "b3RoZXI="}})
    result = secrets()
    assert isinstance(result.exception, SettingsInvalid)
    assert "is in ada-jukebox and, with different values, in ada-jukebox-ci" in str(result.exception)
    assert held(old.cluster) == OLD["jukebox-senders"]
    assert held(old.cluster.ci) == {"alert": "other"}


def test_what_another_program_keeps_is_not_moved(old: World) -> None:
    owner = {"kind": "ExternalSecret", "name": "jukebox-chat"}
    old.cluster.objects["secrets", "jukebox-chat"]["metadata"]["ownerReferences"] = [owner]
    secrets()
    assert "jukebox-chat" in names(old.cluster)
    assert "jukebox-chat" not in names(old.cluster.ci)


def test_a_new_token_is_for_the_repository_of_the_settings(world: World, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hidden-token")
    elsewhere = {"token": "b2xk", "repository": b64encode(b"https://elsewhere.example.com/a/b").decode()}
    world.cluster.ci.add("secrets", {"metadata": {"name": "jukebox-git-host"}, "data": elsewhere})
    secrets()
    # It was given for that one, so it is not declared to be for another.
    assert held(world.cluster.ci, "jukebox-git-host")["repository"] == "https://elsewhere.example.com/a/b"
    secrets("--git-token-file", str(tmp_path / "token"))
    assert held(world.cluster.ci, "jukebox-git-host") == {
        "token": "hidden-token",
        "repository": read_settings().repository,
    }


def test_what_another_program_keeps_is_left_to_it(world: World, tmp_path: Path) -> None:
    secrets()
    owner = {"kind": "ExternalSecret", "name": "jukebox-senders"}
    world.cluster.ci.objects["secrets", "jukebox-senders"]["metadata"]["ownerReferences"] = [owner]
    before = held(world.cluster.ci)
    assert secrets().exit_code == 0
    result = secrets("--rotate", "github")
    assert isinstance(result.exception, SettingsInvalid)
    assert "managed by ExternalSecret jukebox-senders" in str(result.exception)
    assert held(world.cluster.ci) == before


def test_who_may_not_is_told_so(world: World) -> None:
    world.cluster.ci.forbidden = {"secrets"}
    result = secrets()
    assert isinstance(result.exception, ClusterRefuses)
    assert "forbidden" in str(result.exception)


def test_a_namespace_that_nobody_has_named_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUKEBOX_CI_NAMESPACE")
    result = secrets()
    assert isinstance(result.exception, SettingsInvalid)
    assert "<USER_NAME>-jukebox-ci is a placeholder" in str(result.exception)
