"""``jukebox secrets``: what is made, what is taken, and that nothing of it is shown."""

import json
from base64 import b64decode
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.errors import ClusterRefuses, SettingsInvalid
from scripts.cli import app
from scripts.secrets import KEYS
from tests.kfp.world import World

pytest_plugins = ("tests.kfp.fixtures",)
S3 = "# the data connection\nAWS_ACCESS_KEY_ID=an-id\nAWS_SECRET_ACCESS_KEY='hidden-key'\nAWS_S3_ENDPOINT=https://s3\n"
REGISTRY = json.dumps({"auths": {"registry.example.com": {"auth": "hidden-login"}}})


def secrets(*options: str) -> Result:
    return CliRunner().invoke(app, ["secrets", *options])


def held(world: World, name: str = "jukebox-senders") -> dict[str, str]:
    data = world.cluster.objects["secrets", name]["data"]
    return {key: b64decode(value).decode() for key, value in data.items()}


def test_a_token_for_each_sender_is_made_and_none_is_shown(world: World) -> None:
    result = secrets()
    assert result.exit_code == 0, result.output
    tokens = held(world)
    assert sorted(tokens) == sorted(KEYS) == ["alert", "data", "gitea", "github", "gitlab", "schedule"]
    assert len(set(tokens.values())) == 6
    assert all(len(token) >= 32 for token in tokens.values())
    assert not any(token in result.output for token in tokens.values())
    assert "kubectl get secret jukebox-senders --namespace ada-jukebox --output jsonpath='{.data.KEY}'" in result.output
    assert world.cluster.objects["secrets", "jukebox-senders"]["metadata"]["labels"]["app.kubernetes.io/part-of"]


def test_what_is_there_stays_and_what_is_empty_or_too_short_is_made_anew(world: World) -> None:
    secrets()
    before = held(world)
    world.cluster.objects["secrets", "jukebox-senders"]["data"] |= {"github": "", "alert": "c2hvcnQ="}
    result = secrets()
    after = held(world)
    assert {key for key in KEYS if before[key] != after[key]} == {"github", "alert"}
    assert all(len(after[key]) >= 32 for key in KEYS)
    assert result.output.count("there") >= 4


def test_one_is_rotated_and_the_others_stay(world: World) -> None:
    secrets()
    before = held(world)
    result = secrets("--rotate", "github", "--rotate", "data")
    assert result.exit_code == 0, result.output
    assert {key for key in KEYS if before[key] != held(world)[key]} == {"github", "data"}
    assert result.output.count("replaced") == 2


def test_what_is_no_key_is_not_rotated(world: World) -> None:
    result = secrets("--rotate", "bitbucket")
    assert isinstance(result.exception, SettingsInvalid)
    assert "bitbucket cannot be rotated: expected one of alert, data" in str(result.exception)
    assert not world.cluster.list("secrets")


def test_what_people_give_goes_from_files_into_the_cluster(world: World, tmp_path: Path) -> None:
    options = []
    for option, text in {
        "--git-token-file": "hidden-token\n",
        "--registry-file": REGISTRY,
        "--s3-file": S3,
        "--chat-file": "https://chat.example.com/hidden-hook\n",
    }.items():
        (tmp_path / option).write_text(text)
        options += [option, str(tmp_path / option)]
    result = secrets(*options)
    assert result.exit_code == 0, result.output
    assert held(world, "jukebox-git-host") == {"token": "hidden-token"}
    assert held(world, "jukebox-chat") == {"url": "https://chat.example.com/hidden-hook"}
    registry = world.cluster.objects["secrets", "jukebox-registry"]
    assert registry["type"] == "kubernetes.io/dockerconfigjson"
    assert held(world, "jukebox-registry") == {".dockerconfigjson": REGISTRY}
    assert held(world, "jukebox-s3") == {
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": "hidden-key",
        "AWS_S3_ENDPOINT": "https://s3",
    }
    assert "hidden" not in result.output
    assert "missing" not in result.output
    assert "missing" not in secrets().output


def test_what_is_missing_is_named_with_the_option_that_gives_it(world: World) -> None:
    rows = {line.split()[0]: line for line in secrets().output.splitlines() if line.strip()}
    assert "missing: give it with --git-token-file" in rows["jukebox-git-host"]
    assert "(optional)" in rows["jukebox-chat"]
    assert "(optional)" not in rows["jukebox-s3"]


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("--git-token-file", "", "is empty"),
        ("--git-token-file", "two hidden words", "expected the token alone"),
        ("--registry-file", "hidden", "no JSON with auths"),
        ("--registry-file", '{"auths": {}}', "no JSON with auths"),
        ("--s3-file", "AWS_ACCESS_KEY_ID=hidden", "lacks AWS_SECRET_ACCESS_KEY"),
        ("--s3-file", S3 + "hidden", "has 1 other lines"),
        ("--chat-file", None, "cannot be read"),
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
    assert not world.cluster.list("secrets")


def test_what_another_program_keeps_is_left_to_it(world: World, tmp_path: Path) -> None:
    secrets()
    owner = {"kind": "ExternalSecret", "name": "jukebox-senders"}
    world.cluster.objects["secrets", "jukebox-senders"]["metadata"]["ownerReferences"] = [owner]
    before = held(world)
    assert secrets().exit_code == 0
    result = secrets("--rotate", "github")
    assert isinstance(result.exception, SettingsInvalid)
    assert "kept by ExternalSecret jukebox-senders" in str(result.exception)
    assert held(world) == before


def test_who_may_not_is_told_so(world: World) -> None:
    world.cluster.forbidden = {"secrets"}
    result = secrets()
    assert isinstance(result.exception, ClusterRefuses)
    assert "forbidden" in str(result.exception)


def test_a_namespace_that_nobody_has_named_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUKEBOX_NAMESPACE")
    result = secrets()
    assert isinstance(result.exception, SettingsInvalid)
    assert "<USER_NAME>-jukebox is a placeholder" in str(result.exception)
