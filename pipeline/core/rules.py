"""Rules: what must hold of the data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import polars as pl

if TYPE_CHECKING:
    from pipeline.core.contract import Data


@dataclass(frozen=True)
class Violation:
    """What breaks a rule: a sentence, how many, and some of it, a row each."""

    text: str
    count: int = 1
    examples: pl.DataFrame | None = None


@dataclass(frozen=True)
class Rule:
    """A test of the data: ``look`` yields what breaks it, or nothing.

    ``remedy`` says what to do if it is broken, ``holds`` what is so if it is not.
    """

    name: str
    look: Callable[["Data"], Iterator[Violation]]
    remedy: str
    holds: str = ""
    needs: Sequence[str] = ()
    severity: Literal["error", "warning"] = "error"
