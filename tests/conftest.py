"""Fixtures that several tests share."""

from collections.abc import Iterator

import pytest

from tests.s3_server import S3Server, serve


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for the session: it starts with the first test that asks for it."""
    with serve(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with the environment naming it as a data connection does."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3
