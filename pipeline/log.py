"""Logs of a step: plain lines, which begin and end with what happened to the step."""

import logging
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import JukeboxError
from pipeline.trusted_ca import trust

log = logging.getLogger("jukebox")

ENDED = re.compile(
    r"step (?P<step>[a-z-]+) (?P<state>succeeded|failed) after (?P<seconds>[\d.]+) s, peak memory (?P<mib>\d+) MiB"
)


@contextmanager
def step(name: str, *, draws: bool = True) -> Iterator[None]:
    """Log the begin and the end of a step, with its time and its peak memory; in it, a company's CAs are trusted.

    A ``JukeboxError`` is printed as its message alone and ends the process with 1: the user can mend it, and a
    traceback would only hide it. Any other exception is a defect and keeps its traceback.

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
        yield
        state = "succeeded"
    except JukeboxError as error:
        log.error("%s: %s", type(error).__name__, error)
        sys.exit(1)
    finally:
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        log.info(
            "step %s %s after %.2f s, peak memory %d MiB",
            name,
            state,
            time.perf_counter() - begin,
            kib // 1024,
        )
