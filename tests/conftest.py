"""Fixtures that several tests share."""

import inspect
import logging
import os
import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.core import trusted_ca
from tests.gitea import Gitea, program, serve_gitea
from tests.s3_server import S3Server, serve
from tests.settings_file import SETTINGS_FILE

# Commands find these settings unless a test names others: a fork's own are no matter of what all models share.
os.environ["JUKEBOX_SETTINGS"] = str(SETTINGS_FILE)
FIRST_MODEL = "pipeline.models.jukebox"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip what is tested by means of the first model in a fork that has removed its folder."""
    report = yield
    call = getattr(report, "call", None)
    error = call.excinfo.value if report.failed and call and call.excinfo else None
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name == FIRST_MODEL:
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 0, f"Skipped: {FIRST_MODEL}, with which this is tested, is removed")
        error = error.__cause__
    return report


@pytest.fixture(scope="session", autouse=True)
def short_stacks_for_kfp() -> Iterator[None]:
    """Spare kfp seconds: it asks for the whole stack fifty times a compilation, to name its caller in an error."""

    def stack() -> list[inspect.FrameInfo]:
        frames = sys._getframe(1), sys._getframe(2)
        return [inspect.FrameInfo(frame, *inspect.getframeinfo(frame, context=0)) for frame in frames]

    with pytest.MonkeyPatch.context() as patch:
        if task := sys.modules.get("kfp.dsl.pipeline_task"):
            patch.setattr(task, "inspect", SimpleNamespace(stack=stack))
        yield


@pytest.fixture(autouse=True)
def handlers_of_this_test_only() -> Iterator[None]:
    """Remove the handler that `step` installs for its process: it writes to a stdout that ends with the test."""
    before = logging.root.handlers[:]
    yield
    for handler in logging.root.handlers[:]:
        if handler not in before:
            logging.root.removeHandler(handler)


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


@pytest.fixture(scope="session")
def gitea(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gitea]:
    """One Gitea for the session, as its administrator: what a test makes there needs a name of its own."""
    built, missing = program()
    if missing:
        pytest.skip(missing)
    with serve_gitea(tmp_path_factory.mktemp("gitea") / "home", built) as server:
        yield server


@pytest.fixture
def private_ca(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The CA of ``certificate``, its last one, as a pod has it; nothing has looked at the file yet."""
    *_, ca = re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", certificate.read_text(), re.DOTALL)
    file = tmp_path / "trusted-ca" / trusted_ca.FILE.name
    file.parent.mkdir()
    file.write_text(ca)
    monkeypatch.setattr(trusted_ca, "FILE", file)
    for name in trusted_ca.VARIABLES:
        # So that they are taken back; an empty one is none.
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return file
