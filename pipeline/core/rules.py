"""Rules: what must hold of the data.

A rule looks at the tables and at the model's views, and yields findings. Common rules have a
constructor here; any other rule is a function. Conditions and values are SQL over the columns of a table or a
view, which may also ask for ``today`` and ``tomorrow``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

if TYPE_CHECKING:
    from pipeline.core.contract import Data

EXAMPLES = 5
SENTENCES = 13
CLOCK = ("today", "tomorrow")


@dataclass(frozen=True)
class Finding:
    """The result of a rule: a sentence, how many rows break the rule, and some of these rows.

    A count of 0 breaks nothing: the report shows the sentence.
    """

    text: str
    count: int = 0
    examples: pl.DataFrame | None = None


@dataclass(frozen=True)
class Rule:
    """A test of the data.

    Args:
        name: lower case letters, digits and dashes.
        look: yields what it finds.
        remedy: what to do if the rule is broken.
        holds: the report's sentence if ``look`` finds nothing; "": the report then omits the rule.
        needs: columns, ``table.column``. The rule is skipped if one of them cannot be used.
        severity: an error stops the pipeline, a warning does not.
    """

    name: str
    look: Callable[["Data"], Iterable[Finding]]
    remedy: str
    holds: str = ""
    needs: Sequence[str] = ()
    severity: Literal["error", "warning"] = "error"


def every(
    name: str,
    source: str,
    condition: str,
    remedy: str,
    *,
    expected: str,
    of: str = "",
    weight: str = "1",
    show: Sequence[str] = (),
    **others: Any,
) -> Rule:
    """Each row of ``source`` meets ``condition``; null counts as met.

    ``expected`` describes valid values of the condition's columns; it may contain {today} and {tomorrow}. ``weight`` is
    the number of rows of ``of``, a table, that a row of a view stands for. ``show`` are the columns that identify a
    row.
    """
    columns = _columns(condition)

    def look(data: "Data") -> Iterator[Finding]:
        rows = clocked(data, source)
        total = _sum(rows, weight)
        failing = rows.filter(~pl.sql_expr(condition))
        words = expected.format(today=data.today, tomorrow=data.today + timedelta(days=1))
        if count := _sum(failing, weight):
            text = f"{', '.join(columns)}: {count:,} of {total:,} {of or source} are not valid, expected {words}"
            yield Finding(text, count, _head(failing, [*show, *columns]))
        else:
            yield Finding(f"{', '.join(columns)}: all {of or source} have {words}")

    return _rule(name, look, remedy, source, columns, others)


def few(
    name: str,
    source: str,
    broken: str,
    remedy: str,
    *,
    said: str,
    share: float,
    of: str = "",
    weight: str = "1",
    show: Sequence[str] = (),
    **others: Any,
) -> Rule:
    """``broken``, a number for each row of ``source``, adds up to at most ``share`` of ``weight``.

    ``said`` completes the sentence "so many rows ``of`` the table …". ``show`` are the columns that identify a row.
    """

    def look(data: "Data") -> Iterator[Finding]:
        rows = clocked(data, source)
        count, total = _sum(rows, broken), _sum(rows, weight)
        most = int(share * total)
        text = f"{count:,} of {total:,} {of or source} {said}, expected at most {most:,}"
        number = pl.sql_expr(broken).cast(pl.Float64)
        worst = rows.filter(number > 0).sort(number, descending=True, maintain_order=True)
        yield Finding(text, count if count > most else 0, _head(worst, [*show, *_columns(broken)]))

    return _rule(name, look, remedy, source, _columns(broken), others)


def at_least(
    name: str, source: str, value: str, least: float, remedy: str, *, what: str = "rows", **others: Any
) -> Rule:
    """``value``, an aggregate over ``source`` such as COUNT(*), is at least ``least``; ``what`` says what it counts."""

    def look(data: "Data") -> Iterator[Finding]:
        found = _value(clocked(data, source), pl.sql_expr(value)) or 0
        lacking = max(1, int(least - found)) if found < least else 0
        yield Finding(f"{found:,} {what}, expected at least {least:,}", lacking)

    return _rule(name, look, remedy, source, _columns(value), others)


def each(name: str, source: str, condition: str, remedy: str, *, said: str, **others: Any) -> Rule:
    """Each row of ``source``, which has few rows, meets ``condition``; ``said`` is the sentence about one that fails.

    The sentence has the columns of the row in braces; the first column identifies the row.
    """

    def look(data: "Data") -> Iterator[Finding]:
        yield from told(clocked(data, source).collect(), pl.sql_expr(condition), said)

    return _rule(name, look, remedy, source, _columns(condition), {"holds": f"{condition} in {source}"} | others)


def fresh(name: str, source: str, column: str, days: int, remedy: str, *, what: str, **others: Any) -> Rule:
    """The last day of ``column`` is at most ``days`` before today; ``what`` names what has that day."""

    def look(data: "Data") -> Iterator[Finding]:
        last = _value(data[source], pl.col(column).max())
        if last is not None:
            age = max(0, (data.today - last).days)
            text = (
                f"the last {what} is of {last}, {age:,} {'day' if age == 1 else 'days'} before {data.today}, "
                f"expected at most {days:,}"
            )
            yield Finding(text, age if age > days else 0)

    return _rule(name, look, remedy, source, [column], {"severity": "warning"} | others)


def told(rows: pl.DataFrame, condition: pl.Expr, said: str) -> Iterator[Finding]:
    """A sentence for each row that breaks ``condition``, see ``each``."""
    failing = rows.filter(~condition)
    if len(failing):
        sentences = [said.format(**row) for row in failing.head(SENTENCES).to_dicts()]
        more = [f"and {len(failing) - SENTENCES} more"] if len(failing) > SENTENCES else []
        asked = [name for name in condition.meta.root_names() if name in rows.columns]
        yield Finding("; ".join(sentences + more), len(failing), _head(failing.lazy(), [rows.columns[0], *asked[:1]]))


def clocked(data: "Data", source: str) -> pl.LazyFrame:
    """A table or a view, with ``today`` and ``tomorrow`` as columns."""
    return data[source].with_columns(
        pl.lit(data.today).alias(CLOCK[0]), pl.lit(data.today + timedelta(days=1)).alias(CLOCK[1])
    )


def _rule(name: str, look: Any, remedy: str, source: str, columns: Sequence[str], others: dict[str, Any]) -> Rule:
    """The rule, which needs these columns of its source if that is a table."""
    needs = (*(f"{source}.{column}" for column in columns), *others.pop("needs", ()))
    return Rule(name, look, remedy, needs=needs, **others)


def _columns(sql: str) -> list[str]:
    """The columns that an expression uses; raises, when the model is built, if it is not valid SQL."""
    return [name for name in dict.fromkeys(pl.sql_expr(sql).meta.root_names()) if name not in CLOCK]


def _value(rows: pl.LazyFrame, aggregate: pl.Expr) -> Any:
    return rows.select(aggregate).collect(engine="streaming").item()


def _sum(rows: pl.LazyFrame, number: str) -> int:
    """The sum of an expression over the rows, each of which may have the same."""
    return int(_value(rows.with_columns(pl.sql_expr(number).alias("")), pl.col("").sum()) or 0)


def _head(rows: pl.LazyFrame, columns: Sequence[str]) -> pl.DataFrame:
    return rows.select(list(dict.fromkeys(columns))).head(EXAMPLES).collect(engine="streaming")
