"""Thousands of requests of nobody whom the listener knows: none of them starts anything, and it stays alive."""

import contextlib
import copy
import http.client
import json
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from scripts.replay import SENDERS, Event, Kind, build_event
from tests.cluster.listener import PUSHES, SECRETS, Listener, signed

REQUESTS, ROUND, SEED = 10_000, 500, 20_260_401  # the first is of a soak; else it is a tenth
NASTY = (
    *("", " ", "\0", "$(id)", "`id`", "; rm -rf /", "$(params.commit)", "$(tt.params.run-name)", "$(context.name)"),
    *(
        "' || true || '",
        '"}],"x":[{"',
        "../../etc/passwd",
        "{{.}}",
        "%s%n",
        "♥\u202e\ud7ff",
        "é" * 300,
        "x" * 5000,
        "\\",
    ),
)
CREDENTIALS = ("X-Hub-Signature-256", "X-Hub-Signature", "X-Gitea-Signature", "X-Gitlab-Token", "Authorization")


@dataclass
class Request:
    """What is written to the listener's port; a header may be there twice, and be no text."""

    kind: Kind
    method: str
    path: str
    headers: list[tuple[str, bytes]]
    body: bytes


def replaced(value: Any, chance: random.Random, rate: float) -> Any:
    """A JSON value with some of what is in it replaced."""
    if chance.random() < rate:
        return chance.choice((*NASTY, None, True, -1, 1e308, [], {}, ["x"] * 50))
    if isinstance(value, dict):
        return {key: replaced(inner, chance, rate) for key, inner in value.items()}
    return [replaced(inner, chance, rate) for inner in value] if isinstance(value, list) else value


def spoiled(body: bytes, chance: random.Random) -> bytes:
    """A body that is another, as a rule no JSON."""
    at = chance.randrange(len(body))
    return chance.choice(
        (
            body[:at],
            body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :],
            body[:at] + chance.choice(NASTY).encode() + body[at:],
            body + body,
            b"",
            b"[" * chance.randrange(1, 20_000),
            b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
            chance.randbytes(chance.randrange(1, 4_000)),
            b'{"x":"' + b"x" * chance.choice((10, 1_000, 300_000)) + b'"}',
            b"payload=" + body,
        )
    )


def authentic(request: Request) -> bool:
    """Whether the listener may take the request for its sender's own: it brings the secret, or was signed with it."""
    secret = SECRETS[SENDERS[request.kind]]
    right = signed(Event({"X-Hub-Signature-256": ""}, request.body), secret).headers["X-Hub-Signature-256"]
    proofs = {secret.encode(), f"Bearer {secret}".encode(), right.encode()}
    return any(value in proofs for _, value in request.headers)


def forged(chance: random.Random, listener: Listener) -> Request:
    """A request that is genuine but for its credentials, and often strange in other ways."""
    kind = chance.choice(list(Kind))
    own = SECRETS[SENDERS[kind]]
    others = sorted(set(SECRETS.values()) - {own})
    wrong = ("", " ", own[:-1], own + "x", own.upper(), own + "\0", own[1:], *NASTY[3:8], *others, "Bearer", "null")
    secret = chance.choice(wrong)
    event = build_event(kind, listener.facts(), secret)
    body = event.body
    headers = [(key, value.encode()) for key, value in event.headers.items()]

    def credentials(change: Callable[[bytes], bytes | None]) -> None:
        kept = [(key, change(value) if key in CREDENTIALS else value) for key, value in headers]
        headers[:] = [(key, value) for key, value in kept if value is not None]

    match chance.randrange(6):
        case 0:
            credentials(lambda value: None)
        case 1:
            credentials(lambda value: chance.choice(NASTY).encode())
        case 2:
            credentials(lambda value: value[: chance.randrange(len(value) + 1)])
        case 3 if kind in PUSHES and kind != Kind.PUSH_GITLAB:  # a good signature, of another body
            good = build_event(kind, listener.facts(), own)
            credentials(lambda value: good.headers["X-Hub-Signature-256"].encode())
        case 4:
            headers += [(key, value) for key, value in headers if key in CREDENTIALS]
    for _ in range(chance.choice((0, 0, 1, 2, 3))):
        match chance.randrange(6):
            case 0:
                strange = replaced(json.loads(event.body), chance, 0.1)
                body = json.dumps(strange, ensure_ascii=chance.random() < 0.5).encode()
            case 1:
                body = spoiled(event.body, chance)
            case 2 if headers:
                del headers[chance.randrange(len(headers))]
            case 3 if headers:
                headers.append(chance.choice(headers))
            case 4:
                change = chance.choice((str.upper, str.lower, str.swapcase))
                headers = [(change(key), value) for key, value in headers]
            case 5:
                name = chance.choice(("X-Forwarded-For", "Content-Type", "X-GitHub-Event", "Ce-Type", "Ce-Id", "X-é"))
                headers.append((name, chance.choice(NASTY).encode()))
    method = chance.choice(("GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "BREW", *("POST",) * 60))
    path = chance.choice((*("/",) * 30, "/live", "//", "/?a=$(id)", "/jukebox", "/%2e%2e/%00", "/" + "x" * 3000))
    return Request(kind, method, path, copy.copy(headers), body)


def test_forged_requests_start_nothing(listener: Listener, share: float) -> None:
    chance = random.Random(SEED)
    answers: Counter[str] = Counter()

    def send(request: Request) -> str:
        place = urlsplit(listener.urls[request.kind]).netloc
        with contextlib.closing(http.client.HTTPConnection(place, timeout=60)) as connection:
            try:
                connection.putrequest(request.method, request.path, skip_accept_encoding=True)
                for key, value in request.headers:
                    with contextlib.suppress(ValueError, UnicodeError):  # what no HTTP client sends
                        connection.putheader(key, value)
                connection.putheader("Content-Length", str(len(request.body)))
                connection.endheaders(request.body)
                return str(connection.getresponse().status)
            except (OSError, http.client.HTTPException) as error:  # as an answer to a body that is not waited for
                return type(error).__name__

    listener.control()
    before = listener.names()
    controls: set[str] = set()
    sent = 0
    with ThreadPoolExecutor(4) as pool:
        while sent < REQUESTS * share:
            batch = [request for _ in range(ROUND) if not authentic(request := forged(chance, listener))]
            answers.update(pool.map(send, batch))
            sent += len(batch)
            controls |= listener.control()  # which passes when the listener is alive, and no longer busy with the batch
    print(f"{sent} requests: {dict(answers)}")
    assert listener.names() - before == controls
    assert answers["202"] > sent / 2, "most are taken, so that Triggers looks at them"
    assert "429" not in answers
    assert not any(answer.startswith("5") for answer in answers), answers
    assert restarts(listener) == 0


def restarts(listener: Listener) -> int:
    pods = listener.kubectl.get("pods", "--selector=app.kubernetes.io/managed-by=EventListener")["items"]
    assert len(pods) == 3
    return sum(status["restartCount"] for pod in pods for status in pod["status"]["containerStatuses"])
