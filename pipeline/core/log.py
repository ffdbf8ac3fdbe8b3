"""Logs of a step: plain lines; the first and the last report the step's state."""

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
# A container's text in this file becomes its message in the pod's status. Argo Workflows copies it to the node's
# message, which Kubeflow's dashboard shows, and which stays when the pod is gone.
TERMINATION_LOG = Path("/dev/termination-log")
LONGEST_LAST_WORDS = 1000  # characters; the kubelet keeps 4096 bytes


class Artifact(Protocol):
    """An input of a step: its address in Kubeflow's store, and its local path."""

    uri: str

    @property
    def path(self) -> str:
        """The file or the folder."""


def peak_mib() -> int:
    """The most memory that this process has had, in MiB."""
    # getrusage starts with the peak of the parent process; the kernel's high-water mark does not.
    mark = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return (int(mark[1]) if mark else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) // 1024


@contextmanager
def step(name: str, *reads: Artifact, draws: bool = True) -> Iterator[None]:
    """Log the start and the end of a step, with its time and peak memory; within it, a company's CAs are trusted.

    A ``JukeboxError`` is printed without a traceback and ends the process with exit code 1, because the user can fix
    it. The same holds for exhausted memory and a full disk. Any other exception is a defect and keeps its traceback.

    The artifacts that the step ``reads`` must exist: Kubeflow's launcher does not report one that its bucket has
    deleted.

    A step that does not draw runs without matplotlib, which Keras would import if it is installed: half a second.
    """
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, stream=sys.stdout, force=True
    )
    log.setLevel(logging.INFO)
    trust()
    if not draws:
        # For Python, None means that the module does not exist.
        sys.modules["matplotlib"] = None  # type: ignore[assignment]
    # TensorFlow's C++ code logs much at all levels; real errors are raised.
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
    """Raise ArtifactsGone if an artifact does not exist at its path."""
    gone = [artifact.uri for artifact in artifacts if not Path(artifact.path).exists()]
    if gone:
        raise ArtifactsGone(
            f"nothing found at {' and '.join(gone)}, expected the output of an earlier step: it has expired or was "
            "deleted; start a run without the cache: `jukebox start VERSION --no-cache`"
        )


def _in_words(error: Exception) -> str:
    """The message of an error that the user can fix; an empty text for a defect."""
    if isinstance(error, JukeboxError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return "MemoryError: the step ran out of memory: give it more memory, or use fewer rows"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return f"OSError: there is no space left{where}: free some space, or give the step more, then start a new run"
    return ""


def _leave_word(text: str) -> None:
    """Write the reason of a failure for the kubelet, if there is one."""
    if TERMINATION_LOG.exists():
        with contextlib.suppress(OSError):
            TERMINATION_LOG.write_text(text[:LONGEST_LAST_WORDS], encoding="utf-8")
