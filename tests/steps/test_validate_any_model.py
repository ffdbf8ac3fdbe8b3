"""The rules that each model has, shown by a model of one table: a regression with gaps, categories and a day."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.core.contract import Column, Data, Hyperparameters, Model, Split, Splits, Table
from pipeline.core.encoders import Number, OneHot, Season
from pipeline.core.errors import DataInvalid
from pipeline.core.kinds import Regression
from pipeline.core.parts import Unusable
from pipeline.core.rules import at_least, each, every, few, fresh
from pipeline.steps.validate_data import markdown, validate_data

TODAY = date(2026, 6, 1)
TRIPS = Table(
    "trips",
    [
        Column("trip", pl.String, unique=True),
        Column("minutes", pl.Float64, low=0, unit="minutes"),
        Column("metres", pl.Float64, Number(missing="median"), low=1, high=90_000, usual=(500, 20_000), missing=0.1),
        Column("kind", pl.String, OneHot(), values=("bus", "train", "ferry")),
        Column("day", pl.Datetime, Season()),
        Column("seats", pl.Int64, Number(), low=1, high=5, discrete=True),
        Column("kilometres", pl.Float64, Number(missing=0), derived="metres / 1000", high=90, missing=0.1),
    ],
)


@contextmanager
def examples(data: Data) -> Iterator[Splits]:
    rows = data["trips"].with_row_index("row")
    names = ("train", "validation", "test-all")
    part = {name: rows.filter(pl.col("row") % 3 == number).drop("row") for number, name in enumerate(names)}
    yield Splits({name: Split(found) for name, found in part.items()})


MODEL = Model(
    name="trips",
    title="From a trip to its minutes",
    tables=[TRIPS],
    kind=Regression("minutes"),
    examples=examples,
    network=lambda inputs, options: None,
    hyperparameters=Hyperparameters(),
    views=lambda data: {"kinds": data["trips"].group_by("kind").len("trips").sort("kind")},
    rules=[
        at_least("enough-trips", "trips", "COUNT(*)", 100, "Give more trips.", what="trips"),
        every("speed", "trips", "metres <= minutes * 2000", "Correct them.", expected="up to 2 km a minute"),
        every("past", "trips", "day <= today", "Correct the days.", expected="a day until {today}"),
        few("ferries", "trips", "CASE WHEN kind = 'ferry' THEN 1 ELSE 0 END", "Ask.", said="are by ferry", share=0.5),
        each("kinds", "kinds", "trips >= 10", "Look why.", said="{kind} has {trips} trips", severity="warning"),
        fresh("fresh", "trips", "day", 30, "Look for new ones.", what="trip"),
    ],
)


def trips(rows: int = 300) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    metres = rng.uniform(1_000, 9_000, rows)
    return pl.DataFrame(
        {
            "trip": [f"trip {row}" for row in range(rows)],
            "minutes": metres / 500,
            "metres": pl.Series(metres).set(pl.Series(np.arange(rows) % 20 == 0), None),
            "kind": rng.choice(["bus", "train", "ferry"], rows, p=[0.5, 0.4, 0.1]),
            "day": [TODAY - timedelta(days=int(days)) for days in rng.integers(0, 700, rows)],
            "seats": rng.integers(1, 6, rows),
        }
    )


def report_on(folder: Path, table: pl.DataFrame, *, model: Model = MODEL, **options: Any) -> dict[str, Any]:
    (folder / "trips").mkdir(parents=True)
    table.write_parquet(folder / "trips" / "part-00000.parquet")
    file = folder / "report" / "validation.json"
    with suppress(DataInvalid):
        validate_data(model, {"trips": folder / "trips"}, file, data_version="v1", today=TODAY, **options)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def failed(report: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["message"] for check in report["checks"] if not check["passed"]}


def test_good_data_passes_each_rule(tmp_path: Path) -> None:
    report = report_on(tmp_path, trips())
    assert report["passed"]
    assert failed(report) == {}
    of_columns = ("readable", "size", "columns", "types", "complete", "in-range", "unique", "usual", "vary")
    assert [check["name"] for check in report["checks"]] == [
        *(f"trips-{rule}" for rule in of_columns),
        *("enough-trips", "speed", "past", "ferries", "kinds", "fresh"),
        *("examples", "enough-to-train", "enough-to-validate", "shift"),
    ]


def some(column: str, value: Any, rows: int = 3) -> pl.Expr:
    return pl.when(pl.int_range(pl.len()) < rows).then(value).otherwise(column).alias(column)


AFTER = pl.lit(TODAY + timedelta(days=1))
BROKEN = [
    ("trips-columns", pl.col("trip").alias("trip"), "'metres' (is it 'metre', renamed?)"),
    ("trips-types", pl.lit("far").alias("metres"), "metres is String such as 'far', expected a number"),
    ("trips-complete", some("seats", None), "seats: 3 of 300 trips have no value, expected one in each row"),
    ("trips-complete", some("kind", pl.lit("")), "kind: 3 of 300 trips have no value"),
    ("trips-complete", some("metres", None, 60), "expected at most 10.0% without"),
    ("trips-in-range", some("minutes", -1.0), "minutes: 3 of 300 trips are not valid, expected at least 0 minutes"),
    ("trips-in-range", some("minutes", float("inf")), "minutes: 3 of 300 trips"),
    ("trips-in-range", some("seats", 2.5), "seats: 3 of 300 trips are not valid, expected a whole number from 1 to 5"),
    ("trips-in-range", some("kind", pl.lit("car")), "expected one of 'bus', 'train', 'ferry'"),
    ("trips-in-range", some("metres", 90_001.0), "kilometres: 3 of 300 trips are not valid, expected at most 90"),
    (
        "trips-unique",
        some("trip", pl.lit("trip 9"), 1),
        "trip: 2 of 300 trips share their value, expected a different value in each row",
    ),
    ("trips-usual", pl.col("metres") / 1000 + 1, "the median of metres is "),
    ("trips-vary", pl.lit("bus").alias("kind"), "100.00% of the trips have the same kind, expected at most 99%"),
    ("speed", some("minutes", 0.1, 2), "metres, minutes: 1 of 300 trips are not valid, expected up to 2 km a minute"),
    ("past", some("day", AFTER), "day: 3 of 300 trips are not valid, expected a day until 2026-06-01"),
    ("ferries", some("kind", pl.lit("ferry"), 200), "are by ferry, expected at most 150"),
]


@pytest.mark.parametrize(("rule", "change", "said"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_broken_data_is_named_by_the_rule_of_its_column_or_model(
    rule: str, change: pl.Expr, said: str, tmp_path: Path
) -> None:
    table = trips().with_columns(change)
    if rule == "trips-columns":
        table = table.rename({"metres": "metre"})
    report = report_on(tmp_path, table)
    assert said in failed(report)[rule]
    assert not report["passed"]


def test_a_rule_is_left_out_if_its_column_cannot_be_used(tmp_path: Path) -> None:
    report = report_on(tmp_path, trips().drop("metres"))
    assert set(failed(report)) == {"trips-columns"}
    names = {check["name"] for check in report["checks"]}
    assert "speed" not in names
    assert {"past", "trips-vary", "trips-in-range"} <= names


def test_more_rows_than_the_table_says_are_not_held(tmp_path: Path) -> None:
    report = report_on(tmp_path, trips(), model=replace(MODEL, tables=[replace(TRIPS, most_rows=299)]))
    assert "trips has 300 rows, expected at most 299" in failed(report)["trips-size"]


def test_old_and_rare_data_is_a_warning(tmp_path: Path) -> None:
    table = trips().with_columns(pl.col("day") - timedelta(days=40), some("kind", pl.lit("bus"), 290))
    report = report_on(tmp_path, table)
    assert report["passed"]
    assert set(failed(report)) == {"fresh", "kinds"}
    assert "the last trip is of " in failed(report)["fresh"]


def test_what_moved_since_the_champion_is_a_warning(tmp_path: Path) -> None:
    before = report_on(tmp_path / "before", trips())["profile"]
    assert before["rows"] == {"trips": 300}
    assert before["target"]["mean"] == pytest.approx(trips()["minutes"].mean())
    assert before["features"]["metres"]["mean"] == pytest.approx(trips()["metres"].mean())
    assert sum(before["categories"]["kind"].values()) == pytest.approx(1)
    assert "day" not in before["features"] | before["categories"]  # it moves by nature
    still = report_on(tmp_path / "still", trips(), reference=before)
    assert failed(still) == {}
    assert all(quantity["psi"] == 0 for quantity in still["shift"].values())
    table = trips().with_columns(pl.col("minutes") * 2, pl.col("kind").replace({"train": "ferry", "ferry": "train"}))
    moved = report_on(tmp_path / "now", table, reference=json.loads(json.dumps(before)))
    assert moved["passed"]
    assert set(failed(moved)) == {"shift"}
    assert "minutes: mean +" in failed(moved)["shift"]
    assert "kind: stability index" in failed(moved)["shift"]
    assert "seats" not in failed(moved)["shift"]
    assert moved["shift_from_served"] is None


def test_what_moved_since_the_version_that_production_serves_is_told_and_no_warning(tmp_path: Path) -> None:
    before = report_on(tmp_path / "before", trips())["profile"]
    table = trips().with_columns(pl.col("minutes") * 2)
    now = report_on(tmp_path / "now", table)["profile"]

    moved = report_on(tmp_path / "moved", table, reference=now, served=json.loads(json.dumps(before)))

    assert failed(moved) == {}
    assert moved["shift"]["minutes"]["mean_difference"] == 0
    assert moved["shift_from_served"]["minutes"]["mean_difference"] > 0.2


def test_examples_that_cannot_be_made_of_good_data_are_an_error(tmp_path: Path) -> None:
    @contextmanager
    def refuse(data: Data) -> Iterator[Splits]:
        raise Unusable("types", "kind", "no kind is known")
        yield

    report = report_on(tmp_path, trips(), model=replace(MODEL, examples=refuse))
    assert "no kind is known" in failed(report)["examples"]
    assert not report["passed"]
    # In data that breaks a rule it follows from that.
    report = report_on(tmp_path / "b", trips().with_columns(some("seats", None)), model=replace(MODEL, examples=refuse))
    assert set(failed(report)) == {"trips-complete"}


def test_the_summary_shows_checks_features_and_target(tmp_path: Path) -> None:
    text = markdown(report_on(tmp_path, trips()))
    assert "300 rows of trips: 300 examples with 300 rows behind them." in text
    assert "| trips-in-range | passed |" in text
    assert "| metres | " in text
    assert "| the target | " in text


def test_two_rules_of_one_name_are_a_defect(tmp_path: Path) -> None:
    model = replace(MODEL, rules=[at_least("trips-vary", "trips", "COUNT(*)", 1, "Give more.")])
    with pytest.raises(ValueError, match="two rules have the name trips-vary"):
        report_on(tmp_path, trips(), model=model)
