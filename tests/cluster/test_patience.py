"""A busy node is asked again, and one that refuses is not: what ``kubectl`` and HTTP make of each answer."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import node
from tests.cluster.kubectl import Kubectl
from tests.http_server import Answer, serve_http

PROGRAM = """#!/bin/sh
echo asked >> {folder}/asked
turn=$(wc -l < {folder}/asked)
[ -f {folder}/$turn ] || exec echo done
cat {folder}/$turn >&2
exit 1
"""
DEADLINE = (
    'Error from server (InternalError): Internal error occurred: failed calling webhook "w": failed to call webhook: '
    'Post "https://tekton-pipelines-webhook.tekton-pipelines.svc:443/?timeout=10s": context deadline exceeded'
)
BUSY = (
    DEADLINE,
    "Error from server (TooManyRequests): the server has received too many requests and has asked us to try again",
    "Error from server (ServiceUnavailable): the server is currently unable to handle the request",
    "The connection to the server 10.0.0.2:6443 was refused - did you specify the right host or port?",
    "Unable to connect to the server: dial tcp 10.0.0.2:6443: connect: connection refused",
    "Unable to connect to the server: net/http: TLS handshake timeout",
    "Error from server: etcdserver: request timed out",
    "error: http2: client connection lost",
    'Get "https://10.0.0.2:6443/api": dial tcp 10.0.0.2:6443: i/o timeout',
    'Get "https://10.0.0.2:6443/api": read tcp 10.0.0.1:40000->10.0.0.2:6443: read: connection reset by peer',
)
REFUSED = (
    'Error from server (BadRequest): admission webhook "validation.webhook.pipeline.tekton.dev" denied the request: no',
    'Error from server (Forbidden): pods "p" is forbidden: exceeded quota: jukebox',
    'Error from server (NotFound): pods "p" not found',
    'The Pod "p" is invalid: spec: Forbidden: may not change',
    'Error from server (AlreadyExists): namespaces "n" already exists',
    "error: timed out waiting for the condition on pods/p",
)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def kubectl(tmp_path: Path) -> Kubectl:
    """A program that fails at its n-th call with the words of a file ``n``, and else prints ``done``."""
    program = tmp_path / "kubectl"
    program.write_text(PROGRAM.format(folder=tmp_path))
    program.chmod(0o755)
    return Kubectl(str(program), "none")


def say(folder: Path, *words: str) -> Callable[[], int]:
    """Have the program fail with these words in turn; returns what counts its calls."""
    for turn, text in enumerate(words, 1):
        (folder / str(turn)).write_text(text)
    return lambda: len((folder / "asked").read_text().splitlines())


@pytest.mark.parametrize("words", BUSY)
def test_a_busy_node_is_asked_again(kubectl: Kubectl, tmp_path: Path, words: str) -> None:
    asked = say(tmp_path, words, words)
    assert kubectl("apply", "--filename=-") == "done\n"
    assert asked() == 3


@pytest.mark.parametrize("words", REFUSED)
def test_a_refusal_is_the_answer(kubectl: Kubectl, tmp_path: Path, words: str) -> None:
    asked = say(tmp_path, words)
    with pytest.raises(RuntimeError) as refused:
        kubectl("create", "namespace", "n")
    assert words in str(refused.value)
    assert asked() == 1


def test_what_was_created_although_its_answer_was_lost_is_created(kubectl: Kubectl, tmp_path: Path) -> None:
    asked = say(tmp_path, "error: http2: client connection lost", REFUSED[4])
    kubectl("create", "namespace", "n")
    assert asked() == 2


def test_what_was_deleted_although_its_answer_was_lost_is_deleted(kubectl: Kubectl, tmp_path: Path) -> None:
    asked = say(tmp_path, "error: unexpected EOF", REFUSED[2])
    kubectl("delete", "pod", "p")
    assert asked() == 2


def test_a_node_that_stays_busy_is_given_up(kubectl: Kubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "PATIENCE", 0)
    say(tmp_path, *[DEADLINE] * 100)
    with pytest.raises(RuntimeError, match="context deadline exceeded"):
        kubectl("apply", "--filename=-")


def test_over_http_it_is_asked_again_with_the_whole_body(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x" * 100_000)
    with serve_http() as server, body.open("rb") as file:
        url = server.serve("/", *(Answer(status=status) for status in node.BUSY_STATUSES), Answer(b"done"))
        assert node.session().post(url, data=file, timeout=30).content == b"done"
        sent = [int(headers["Content-Length"]) for _, headers in server.requests]
    assert sent == [100_000] * 6


def test_over_http_a_refusal_is_the_answer() -> None:
    with serve_http() as server:
        url = server.serve("/", Answer(status=422), Answer(b"done"))
        assert node.session().post(url, data="x", timeout=30).status_code == 422
