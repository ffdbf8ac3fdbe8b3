"""Splits that do not leak, for models whose examples are the rows of one table.

A row's split must not depend on other rows, or a champion would be tested on rows that it was trained on.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import date

import polars as pl

from pipeline.core.contract import TRAIN, VALIDATION, Data, Split, Splits

TEST = "test"
# Shares of the rows that are held out.
TESTED, VALIDATED = 0.2, 0.15

Place = Callable[[pl.DataFrame], pl.Series]


def by_hash(*columns: str) -> Place:
    """Place rows by the hash of these columns: an id, or all columns that identify a row.

    A row keeps its split when the data grows, and identical rows are in one split.
    """

    def place(frame: pl.DataFrame) -> pl.Series:
        texts = frame.select(pl.concat_str(pl.col(columns).cast(pl.String).fill_null("\1"), separator="\0")).to_series()
        digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
        return pl.Series([int.from_bytes(digest) / 2**64 for digest in digests], dtype=pl.Float64)

    return place


def by_time(column: str) -> Place:
    """Place rows by their moment: the latest are the test, those before them validate.

    The model is tested on rows that are later than all that it learnt from, as it will be used. Rows of the same moment
    are in the same split.
    """

    def place(frame: pl.DataFrame) -> pl.Series:
        return 1 - frame[column].rank("max") / max(1, len(frame))

    return place


def one_table(
    table: str, target: str, place: Place, *, day: str = ""
) -> Callable[[Data], AbstractContextManager[Splits]]:
    """Return the ``examples`` of a model whose examples are the rows of ``table`` that have the ``target``.

    ``day`` is the column of their moments, if they have one.
    """

    @contextmanager
    def examples(data: Data) -> Iterator[Splits]:
        frame = data[table].drop_nulls(target).collect()
        places = place(frame)
        named = (
            pl.when(places < TESTED)
            .then(pl.lit(TEST))
            .when(places < TESTED + VALIDATED)
            .then(pl.lit(VALIDATION))
            .otherwise(pl.lit(TRAIN))
        )
        split = pl.select(named.alias("split")).to_series()
        yield Splits({name: _split(frame.filter(split == name), day) for name in (TRAIN, VALIDATION, TEST)})

    return examples


def _split(frame: pl.DataFrame, day: str) -> Split:
    first, last = (_day(frame[day].min()), _day(frame[day].max())) if day else (None, None)
    return Split(frame.lazy(), first, last)


def _day(found: object) -> date | None:
    return found if isinstance(found, date) else None
