import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core import log
from pipeline.core.errors import DataInvalid

PROGRAM = """
from pipeline.core.errors import DataInvalid
from pipeline.core.log import step
with step("train-model", {reads} draws={draws}):
    {body}
"""


def run(body: str, *, reads: str = "", draws: bool = True) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(body=body, reads=reads and f"{reads},", draws=draws)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_a_step_tells_its_begin_its_end_its_time_and_its_memory() -> None:
    done = run("pass")
    first, last = done.stdout.splitlines()
    assert done.returncode == 0
    assert first.endswith("INFO step train-model started")
    assert "INFO step train-model succeeded after 0." in last
    assert int(last.split()[-2]) > 1
    assert last.endswith("MiB")


def test_the_memory_of_a_step_is_not_that_of_what_started_it() -> None:
    ballast = b"x" * (300 << 20)
    mib = int(run("pass").stdout.split()[-2])
    assert mib < 200 < len(ballast) >> 20


def test_what_a_user_can_mend_is_told_without_a_traceback() -> None:
    done = run("raise DataInvalid('two rows are wrong: mend them')")
    assert done.returncode == 1
    assert "ERROR DataInvalid: two rows are wrong: mend them" in done.stdout
    assert "step train-model failed after" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise MemoryError", "ERROR MemoryError: the step ran out of memory"),
        ("raise OSError(28, 'No space left on device', '/models/a')", "no space left for /models/a"),
        ("import os; os.write(os.open('/dev/full', os.O_WRONLY), b'x')", "ERROR OSError: there is no space left"),
    ],
)
def test_a_machine_that_is_full_is_told_without_a_traceback(body: str, message: str) -> None:
    done = run(body)
    assert done.returncode == 1
    assert message in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (DataInvalid("two rows are wrong: mend them"), "DataInvalid: two rows are wrong: mend them"),
        (KeyError("missing"), "KeyError: 'missing'"),
        (DataInvalid("ä" * 10_000), "DataInvalid: " + "ä" * 987),
    ],
)
def test_the_reason_is_left_for_the_kubelet_which_keeps_it_when_the_pod_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kept: str
) -> None:
    monkeypatch.setattr(log, "TERMINATION_LOG", tmp_path / "termination-log")
    with pytest.raises((SystemExit, KeyError)), log.step("train-model"):
        raise error
    assert not list(tmp_path.iterdir()), "on a laptop there is no such file, and none is made"
    log.TERMINATION_LOG.touch()
    with pytest.raises((SystemExit, KeyError)), log.step("train-model"):
        raise error
    assert log.TERMINATION_LOG.read_text() == kept
    assert len(kept.encode()) < 4096


def test_a_defect_keeps_its_traceback() -> None:
    done = run("{}['missing']")
    assert done.returncode == 1
    assert "step train-model failed after" in done.stdout
    assert "Traceback" in done.stderr
    assert "KeyError: 'missing'" in done.stderr


def test_a_step_that_does_not_draw_does_not_load_what_draws() -> None:
    body = "import importlib.util, sys; print(sys.modules.get('matplotlib', 'loadable'))"
    assert "\nNone\n" in run(body, draws=False).stdout
    assert "\nloadable\n" in run(body).stdout


def test_an_artifact_that_is_gone_is_named_by_its_address_with_what_to_do() -> None:
    done = run(
        "...",
        reads="*(type('Artifact', (), {'uri': 'minio://b/' + path[1:], 'path': path})() for path in ('/x', '/tmp'))",
    )
    assert done.returncode == 1
    assert "ERROR ArtifactsGone: nothing found at minio://b/x, expected the output of an earlier step" in done.stdout
    assert "--no-cache" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
