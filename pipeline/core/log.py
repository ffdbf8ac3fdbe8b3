"""Logs of a step: plain lines, which begin and end with what happened to the step."""

import contextlib
import errno
import logging
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pipeline.core.errors import ArtifactsGone, JukeboxError
from pipeline.core.trusted_ca import trust

log = logging.getLogger("jukebox")

STATUS = Path("/proc/self/status")

ENDED = re.compile(
    r"step (?P<step>[a-z-]+) (?P<state>succeeded|failed) after (?P<seconds>[\d.]+) s, peak memory (?P<mib>\d+) MiB"
)
# What a container writes here is its message in the pod's status. Argo Workflows puts it into the message of the node,
# which Kubeflow's dashboard shows, and which stays when the pod is gone.
TERMINATION_LOG = Path("/dev/termination-log")
LONGEST_LAST_WORDS = 1000  # characters; the kubelet keeps 4096 bytes


class Artifact(Protocol):
    """What a step reads: where Kubeflow keeps it, and where it has put it for the step."""

    uri: str

    @property
    def path(self) -> str:
        """The file or the folder."""


def peak_mib() -> int:
    """The most memory that this process has had, in MiB."""
    # What a process begins with in getrusage is the peak of the one that started it; the kernel's own mark is not.
    mark = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return (int(mark[1]) if mark else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) // 1024


@contextmanager
def step(name: str, *reads: Artifact, draws: bool = True) -> Iterator[None]:
    """Log the begin and the end of a step, with its time and its peak memory; in it, a company's CAs are trusted.

    A ``JukeboxError`` is printed as its message alone and ends the process with 1: the user can mend it, and a
    traceback would only hide it. So are memory that runs out and a full disk. Any other exception is a defect and keeps
    its traceback.

    What the step ``reads`` must be there: Kubeflow's launcher is silent about an artifact that its bucket has deleted.

    A step that does not draw goes without matplotlib, which Keras loads wherever it is installed: half a second.
    """
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, stream=sys.stdout, force=True
    )
    log.setLevel(logging.INFO)
    trust()
    if not draws:
        # Python's way to say that a module is not there.
        sys.modules["matplotlib"] = None  # type: ignore[assignment]
    # TensorFlow's C++ side talks much, at all levels; what matters it raises.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    begin = time.perf_counter()
    state = "failed"
    log.info("step %s started", name)
    try:
        require(*reads)
        yield
        state = "succeeded"
    except Exception as error:
        expected = _in_words(error)
        _leave_word(expected or f"{type(error).__name__}: {error}")
        if not expected:
            raise
        log.error("%s", expected)
        sys.exit(1)
    finally:
        log.info(
            "step %s %s after %.2f s, peak memory %d MiB",
            name,
            state,
            time.perf_counter() - begin,
            peak_mib(),
        )


def require(*artifacts: Artifact) -> None:
    """Raise ArtifactsGone if Kubeflow has put nothing where the artifacts should be."""
    gone = [artifact.uri for artifact in artifacts if not Path(artifact.path).exists()]
    if gone:
        raise ArtifactsGone(
            f"nothing is at {' and '.join(gone)}, expected what another step has handed on: it has expired, or was "
            "deleted; start a run without the cache: `jukebox start VERSION --no-cache`"
        )


def _in_words(error: Exception) -> str:
    """What is said of an error that the user can mend; nothing of a defect."""
    if isinstance(error, JukeboxError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return "MemoryError: the memory is used up: give the step more, or take fewer rows"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" where {error.filename} lies" if error.filename else ""
        return f"OSError: there is no space left{where}: free some, or give the step more, then start a run again"
    return ""


def _leave_word(text: str) -> None:
    """Leave the reason of a failure for the kubelet, where there is one."""
    if TERMINATION_LOG.exists():
        with contextlib.suppress(OSError):
            TERMINATION_LOG.write_text(text[:LONGEST_LAST_WORDS], encoding="utf-8")
