"""Where each host is asked, and what is said of its refusals."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tenacity import wait_none

from pipeline.core.errors import HostRefuses, SettingsInvalid
from scripts.clients.git_hosts import GitHost, Host, base
from scripts.clients.git_hosts.base import find_api
from tests.http_server import serve_http
from tests.scripts.git_hosts.connecting import TOKEN, host_at
from tests.scripts.git_hosts.stub import Answer, Stub, serve_stub

pytest_plugins = ("tests.kfp.fixtures",)  # the certificate
R = "/repos/acme/jukebox"


@pytest.mark.parametrize(
    ("kind", "repository", "api", "found"),
    [
        (Host.GITHUB, "https://github.com/o/n.git", "", ("https://api.github.com", "o/n")),
        (Host.GITHUB, "https://octo.ghe.com/o/n", "", ("https://api.octo.ghe.com", "o/n")),
        (Host.GITHUB, "https://git.corp/o/n/", "", ("https://git.corp/api/v3", "o/n")),
        (Host.GITHUB, "https://git.corp/o/n", "https://api.git.corp/", ("https://api.git.corp", "o/n")),
        (Host.GITLAB, "https://g.l:8443/a/b/n", "", ("https://g.l:8443/api/v4", "a/b/n")),
        (Host.GITLAB, "https://g.l/gitlab/a/b/n", "https://g.l/gitlab/api/v4", ("https://g.l/gitlab/api/v4", "a/b/n")),
        (Host.GITEA, "https://tea.corp/git/o/n", "https://tea.corp/git/api/v1", ("https://tea.corp/git/api/v1", "o/n")),
        (Host.GITEA, "https://tea.corp/o/n", "", ("https://tea.corp/api/v1", "o/n")),
    ],
)
def test_the_api_follows_from_the_repository_or_is_set(
    kind: Host, repository: str, api: str, found: tuple[str, str]
) -> None:
    assert find_api(kind, repository, api) == found


@pytest.mark.parametrize("repository", ["git@x:o/n", "https://x/n", "ssh://git@x/o/n"])
def test_what_is_not_an_address_of_a_repository_is_refused(repository: str) -> None:
    with pytest.raises(SettingsInvalid, match="expected https://host/organisation/name"):
        find_api(Host.GITHUB, repository)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr(base, "wait_exponential_jitter", lambda **_: wait_none())
    with serve_stub("") as served:
        yield served


@pytest.fixture
def host(stub: Stub) -> GitHost:
    return host_at(stub.url, "gitea")


def refusal(host: GitHost) -> str:
    with pytest.raises(HostRefuses) as error:
        host.pull_request(7)
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            Answer({"message": "Bad credentials"}, 401),
            "answers 401: Bad credentials. The token is wrong or",
        ),
        (
            Answer({"error": "insufficient_scope", "error_description": "more", "scope": "api"}, 403),
            "answers 403: insufficient_scope; more. Check the repository's address, and the token's rights",
        ),
        (
            Answer({"errors": None, "message": "not found"}, 404),
            "answers 404: not found. Check the repository's address",
        ),
        (Answer({"message": {"base": ["a", "b"]}}, 400), "answers 400: base: a, b. "),
        (Answer({"message": ["a", "b"]}, 409), "answers 409: a, b. "),
        (Answer({"message": f"odd\n{TOKEN}\x1b[2J"}, 418), "answers 418: odd …"),
        (Answer(["x"], 418), "answers 418: ['x']. "),
        (Answer("<html>Sign in</html>", 403), "answers 403. Check the repository's address"),
        (Answer("<html>Sign in</html>"), "answers 200 without JSON (content type: text/html). Set git-api"),
        (Answer({"message": "x" * 1000}, 418), f"answers 418: {'x' * 300}. "),
        (
            Answer({"message": "Moved"}, 301, {"Location": "https://git.example.com/repositories/9?token=secret"}),
            "answers 301: Moved. It redirects to https://git.example.com/repositories/9. If the repository was renamed",
        ),
        (
            Answer({"message": "slow down"}, 429, {"Retry-After": "3600"}),
            "answers 429: slow down. It asks to wait 3600 s: run this again then",
        ),
    ],
)
def test_a_refusal_says_what_and_what_to_do_and_nothing_secret(
    stub: Stub, host: GitHost, answer: Answer, said: str
) -> None:
    stub.on("GET", f"{R}/pulls/7", answer)
    assert f"GET {stub.url}{R}/pulls/7 {said}" in refusal(host)
    assert len(stub.calls) == 1


def test_a_redirect_is_not_followed(stub: Stub, host: GitHost) -> None:
    stub.on("GET", f"{R}/pulls/7", Answer({}, 307, {"Location": f"{stub.url}/elsewhere"}))
    refusal(host)
    assert [call.path for call in stub.calls] == [f"{R}/pulls/7"]


def test_a_host_that_does_not_answer_is_asked_four_times(host: GitHost, stub: Stub) -> None:
    stub.on("GET", f"{R}/pulls/7", Answer({"message": "down"}, 503))
    assert "The host is busy or out of order: run this again later" in refusal(host)
    assert len(stub.calls) == 4
    assert "the host does not answer: " in refusal(host_at("http://127.0.0.1:1", "gitea"))


@pytest.mark.parametrize("code", [403, 429])
def test_the_host_says_how_long_to_wait(stub: Stub, host: GitHost, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    waited: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waited.append)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    limit = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1040"}
    answers = Answer({}, code, {"Retry-After": "7"}), Answer({}, code, limit), Answer({}, 404)
    stub.on("GET", f"{R}/pulls/7", *answers)
    refusal(host)
    assert waited == [7, 40]


def test_a_netrc_does_not_replace_the_token(
    stub: Stub, host: GitHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login ada password secret\n")
    monkeypatch.setenv("NETRC", str(file))
    refusal(host)
    assert stub.calls[0].headers["Authorization"] == f"token {TOKEN}"


def test_a_certificate_that_is_not_trusted_is_said_at_once(certificate: Path) -> None:
    with serve_http(certificate) as server:
        words = refusal(host_at(server.url, "gitea"))
    assert "the certificate is not trusted" in words
    assert "jukebox-trusted-ca" in words


def test_a_private_ca_is_trusted_if_the_environment_names_it(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with serve_http(certificate) as server:
        assert "answers 404" in refusal(host_at(server.url, "gitea"))
