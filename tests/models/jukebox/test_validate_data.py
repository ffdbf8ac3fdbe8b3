import json
import math
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.contract import Column
from pipeline.core.errors import DataInvalid
from pipeline.models.jukebox import MODEL
from pipeline.models.jukebox.rules import RULES
from pipeline.models.jukebox.sample import COUNTRIES, generate
from pipeline.models.jukebox.splits import SPLITS
from pipeline.models.jukebox.tables import COUNTRY, DATE, FEATURE_NAMES, FEATURES, ID, RANK, RANKINGS, SONGS
from pipeline.steps.preprocess_data import preprocess_data
from pipeline.steps.validate_data import markdown, validate_data
from tests.models.jukebox.corruptions import CORRUPTIONS, LAST_DAY, TODAY, Corruption, write
from tests.models.jukebox.real_data import real_data

UNCORRUPTED = Corruption("none", "", "")
OF_TABLE = ("readable", "size", "columns", "types", "complete", "in-range")
NAMES = [
    *(f"songs-{rule}" for rule in (*OF_TABLE, "unique", "usual", "vary")),
    *(f"rankings-{rule}" for rule in OF_TABLE),
    *(rule.name for rule in RULES),
    *("examples", "enough-to-train", "enough-to-validate", "shift"),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Good songs and rankings of six countries and 17 days."""
    songs, rankings = generate(tmp_path_factory.mktemp("good"), rows=6_000, last_day=LAST_DAY, countries=6).values()
    return pl.read_parquet(songs), pl.read_parquet(rankings)


def tables_in(folder: Path) -> dict[str, Path]:
    return {"songs": folder / "songs", "rankings": folder / "rankings"}


def validate(folder: Path, songs: pl.DataFrame, rankings: pl.DataFrame, **options: Any) -> dict[str, Any]:
    write(folder, songs, rankings, options.pop("corruption", UNCORRUPTED))
    folders = tables_in(folder)
    options.setdefault("today", TODAY)
    model = options.pop("model", MODEL)
    return validate_data(model, folders, folder / "report" / "validation.json", data_version="v1", **options)


def report_on(folder: Path, songs: pl.DataFrame, rankings: pl.DataFrame, **options: Any) -> dict[str, Any]:
    """The report, whether the data passes or not."""
    with suppress(DataInvalid):
        validate(folder, songs, rankings, **options)
    report: dict[str, Any] = json.loads((folder / "report" / "validation.json").read_text())
    return report


def preprocess(folder: Path) -> str:
    """What preprocess_data says of the tables below ``folder``: nothing, or one sentence that leads to the report."""
    try:
        preprocess_data(MODEL, tables_in(folder), folder / "examples")
    except DataInvalid as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 500
        assert message.endswith(": see the report of validate-data")
        assert str(folder) not in message
        return message
    return ""


def check(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in report["checks"] if each["name"] == name)
    return dict(found)


def failed(report: dict[str, Any]) -> set[str]:
    return {each["name"] for each in report["checks"] if not each["passed"]}


Good = tuple[pl.DataFrame, pl.DataFrame]


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name.replace(" ", "-"))
def test_corrupt_data_is_refused_by_the_right_check(corruption: Corruption, good: Good, tmp_path: Path) -> None:
    with pytest.raises(DataInvalid) as raised:
        validate(tmp_path, *good, corruption=corruption)
    lines = [line for line in str(raised.value).splitlines() if line.startswith(f"- {corruption.check}: ")]
    assert len(lines) == 1, raised.value
    assert corruption.named in lines[0]
    assert str(tmp_path) not in str(raised.value)

    report = json.loads((tmp_path / "report" / "validation.json").read_text())
    found = check(report, corruption.check)
    assert not report["passed"]
    assert not found["passed"]
    assert found["severity"] == "error"
    assert found["count"] > 0
    assert corruption.named in found["message"]
    preprocess(tmp_path)  # which may run beside it, and must not speak over it


@pytest.mark.parametrize("seed", range(5))
def test_sample_data_passes_without_a_warning(seed: int, tmp_path: Path) -> None:
    songs, rankings = generate(
        tmp_path / "made", rows=4_000, last_day=LAST_DAY, countries=5 + 3 * seed, seed=seed
    ).values()
    report = validate(tmp_path, pl.read_parquet(songs), pl.read_parquet(rankings))
    assert report["passed"]
    assert failed(report) == set()
    assert [each["name"] for each in report["checks"]] == NAMES


@pytest.mark.parametrize(
    ("year", "songs", "rankings", "countries"), [(2023, 14_245, 87_266, 72), (2025, 2_393, 9_471, 71)]
)
def test_real_data_passes_with_warnings(year: int, songs: int, rankings: int, countries: int, tmp_path: Path) -> None:
    report = validate(tmp_path, *map(pl.read_parquet, real_data(year)))
    assert report["passed"]
    assert failed(report) == {"days-consecutive", "freshness"}
    profile = report["profile"]
    assert profile["rows"] == {"songs": songs, "rankings": rankings}
    assert len(profile["label_shares"]) == countries


def test_real_data_of_2025_has_drifted_from_2023_and_2023_not_from_itself(tmp_path: Path) -> None:
    before = list(map(pl.read_parquet, real_data(2023)))
    now = list(map(pl.read_parquet, real_data(2025)))
    reference = validate(tmp_path / "reference", *before)["profile"]

    still = validate(tmp_path / "still", *before, reference=reference)
    assert check(still, "shift")["passed"]
    assert all(quantity["psi"] < 1e-9 for quantity in still["shift"].values())

    moved = validate(tmp_path / "moved", *now, reference=reference)
    assert moved["passed"]  # a warning
    message = check(moved, "shift")["message"]
    for quantity in (
        "loudness: mean -0.48",
        "instrumentalness: mean +0.29",
        "danceability",
        "duration_ms",
        "labels",
    ):
        assert quantity in message
    assert "valence" not in message
    assert moved["shift"]["loudness"]["mean_difference"] == pytest.approx(-0.477, abs=1e-3)


def test_all_failures_are_named_at_once_with_counts_and_rows(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    broken = songs[7, ID]
    songs = songs.with_columns(
        pl.when(pl.col(ID) == broken).then(999.0).otherwise("tempo").alias("tempo"),
        pl.col("energy").cast(pl.String),
    )
    rankings = rankings.rename({RANK: "rank"}).with_columns(pl.col(COUNTRY).str.to_lowercase())
    with pytest.raises(DataInvalid) as raised:
        validate(tmp_path, songs, rankings)
    message = str(raised.value)
    assert "fails 4 of the checks" in message
    assert "energy is String such as '0." in message
    assert "tempo: 1 of" in message
    assert "expected 0 to 300 beats per minute" in message
    assert f"'{broken}'" in message
    assert "999.0" in message
    assert f"'{RANK}' (is it 'rank', renamed?)" in message
    assert "two capital letters" in message
    assert "No model is trained" in message


def test_a_check_whose_column_is_missing_is_left_out_and_the_others_are_done(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    with pytest.raises(DataInvalid):
        validate(tmp_path, songs.drop("tempo"), rankings.rename({COUNTRY: "nation"}))
    report = json.loads((tmp_path / "report" / "validation.json").read_text())
    assert failed(report) == {"songs-columns", "rankings-columns"}
    left_out = set(NAMES) - {each["name"] for each in report["checks"]}
    assert {"country-codes", "enough-countries", "places-unique", "shift"} <= left_out
    assert not {"rankings-in-range", "dates", "rankings-have-songs", "songs-in-range"} & left_out
    assert report["profile"]["rows"] == {"songs": len(songs), "rankings": len(rankings)}


def test_what_cannot_be_told_of_no_rankings_is_left_out(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    with pytest.raises(DataInvalid):
        validate(tmp_path, songs, rankings.clear())
    report = json.loads((tmp_path / "report" / "validation.json").read_text())
    assert failed(report) == {name for name in NAMES if name.startswith("enough-")}
    assert not {"freshness", "days-consecutive"} & {each["name"] for each in report["checks"]}
    assert all(each["message"] for each in report["checks"])
    assert report["profile"]["last_day"] is None


def test_the_profile_is_written_when_validation_fails(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    with pytest.raises(DataInvalid):
        validate(tmp_path, songs.with_columns(pl.col("energy") * 100), rankings)
    report = json.loads((tmp_path / "report" / "validation.json").read_text())
    assert report["profile"]["rows"]["rankings"] == len(rankings)
    assert report["profile"]["features"]["energy"]["max"] > 1
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["validation.json"]


def test_a_day_in_the_future_is_not_the_last_day_with_a_chart(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    late = pl.when(pl.int_range(pl.len()) == 3).then(pl.col(DATE) + timedelta(days=90)).otherwise(DATE).alias(DATE)
    report = report_on(tmp_path, songs, rankings.with_columns(late))
    assert f"the last chart is of {LAST_DAY}, 1 day before" in check(report, "freshness")["message"]
    assert failed(report) == {"dates"}


COMPATIBLE = {
    "32 bits": (
        [pl.col(pl.Float64).cast(pl.Float32), pl.col("key", "mode").cast(pl.Int8)],
        [pl.col(RANK).cast(pl.UInt8)],
    ),
    "whole numbers as floats": ([pl.col("key", "duration_ms").cast(pl.Float64)], [pl.col(RANK).cast(pl.Float64)]),
    "truth as 0 and 1": ([pl.col("is_explicit").cast(pl.Int64)], []),
    "days as dates": ([], [pl.col(DATE).cast(pl.Date)]),
    "days in milliseconds": ([], [pl.col(DATE).cast(pl.Datetime("ms"))]),
    "days with a time zone": ([], [pl.col(DATE).dt.replace_time_zone("UTC")]),
    "decimals": ([pl.col("energy").cast(pl.Decimal(9, 4))], [pl.col(RANK).cast(pl.Decimal(5, 0))]),
    "ids of categories": ([pl.col(ID, "name").cast(pl.Categorical)], [pl.col(ID, COUNTRY).cast(pl.Categorical)]),
    "countries as an enumeration": ([], [pl.col(COUNTRY).cast(pl.Enum(COUNTRIES))]),
    "text as bytes": ([pl.col(ID, "artists").cast(pl.Binary)], [pl.col(ID, COUNTRY).cast(pl.Binary)]),
    "days as ISO text": ([], [pl.col(DATE).dt.to_string("%F")]),
    "days as categories": ([], [pl.col(DATE).dt.to_string("%F").cast(pl.Categorical)]),
    "days as bytes": ([], [pl.col(DATE).dt.to_string("%F").cast(pl.Binary)]),
    "moments as ISO text": ([], [pl.col(DATE).dt.to_string("%FT%T%.3fZ")]),
    "moments of a zone as text": ([], [pl.col(DATE).dt.to_string("%F %T+09:00")]),
    "midnights of Tokyo": ([], [pl.col(DATE).dt.cast_time_unit("ms").dt.replace_time_zone("Asia/Tokyo")]),
    "no name known": ([pl.lit(None).alias("name")], []),
    "more columns": ([pl.lit("pop").alias("genre")], [pl.lit(1).alias("popularity")]),
}


def splits(folder: Path) -> list[pl.DataFrame]:
    """The examples that preprocess_data makes of the tables below ``folder``."""
    assert preprocess(folder) == ""
    return [pl.read_parquet(folder / "examples" / f"{split}.parquet") for split in SPLITS]


@pytest.mark.parametrize("kind", COMPATIBLE)
def test_storage_is_not_type(kind: str, good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    of_songs, of_rankings = COMPATIBLE[kind]
    as_made = validate(tmp_path / "made", songs, rankings)
    report = validate(tmp_path / "stored", songs.with_columns(of_songs), rankings.with_columns(of_rankings))
    assert failed(report) == set()
    for of in ("rows", "examples", "first_day", "last_day", "label_shares"):
        assert report["profile"][of] == as_made["profile"][of]
    for ours, theirs in zip(splits(tmp_path / "stored"), splits(tmp_path / "made"), strict=True):
        assert ours["counts"].equals(theirs["counts"])


def test_text_with_a_dictionary_as_other_tools_write_it(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    as_made = validate(tmp_path / "made", songs, rankings)
    validate(tmp_path / "stored", songs, rankings)
    for table, frame in (("songs", songs), ("rankings", rankings)):
        arrow = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        for number, name in enumerate(arrow.column_names):
            if arrow[name].type == pa.large_string():
                arrow = arrow.set_column(number, name, arrow[name].cast(pa.string()).dictionary_encode())
        pq.write_table(arrow, tmp_path / "stored" / table / "part-00000.parquet")
    folders = tables_in(tmp_path / "stored")
    assert validate_data(MODEL, folders, tmp_path / "again.json", data_version="v1", today=TODAY) == as_made
    assert pl.concat(splits(tmp_path / "stored")).equals(pl.concat(splits(tmp_path / "made")))


PARTS = {
    "another column as a whole number and as a fraction": (
        [pl.lit(1).alias("weekly_movement")],
        [pl.lit(None, pl.Float64).alias("weekly_movement")],
    ),
    "an index in one only": ([], [pl.int_range(pl.len()).alias("__index_level_0__")]),
    "days in micro- and nanoseconds": ([pl.col(DATE).cast(pl.Datetime("us"))], [pl.col(DATE).cast(pl.Datetime("ns"))]),
    "days, and text": ([pl.col(DATE).cast(pl.Date)], [pl.col(DATE).dt.to_string("%F")]),
    "widths": ([pl.col(RANK).cast(pl.Int8)], [pl.col(RANK).cast(pl.Float32)]),
    "text with and without a dictionary": ([pl.col(ID, COUNTRY).cast(pl.Categorical)], []),
    "nothing but Global in one": ([], [pl.when(pl.col(COUNTRY).is_null()).then(None).alias(COUNTRY)]),
    "another order": ([], []),
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_may_differ_in_what_the_contract_leaves_open(kind: str, good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    # The Global chart comes last, so that it may be a part of its own.
    rankings = rankings.sort(COUNTRY, nulls_last=True, maintain_order=True)
    whole = validate(tmp_path / "whole", songs, rankings)
    of_one, of_other = PARTS[kind]
    validate(tmp_path / "parts", songs, rankings)
    folder = tmp_path / "parts" / "rankings"
    is_global = pl.col(COUNTRY).is_null()
    rankings.filter(~is_global).with_columns(of_one).write_parquet(folder / "part-00000.parquet")
    other = rankings.filter(is_global).with_columns(of_other)
    other.select(reversed(other.columns)).write_parquet(folder / "part-00001.parquet")
    folders = tables_in(tmp_path / "parts")
    report = validate_data(MODEL, folders, tmp_path / "again.json", data_version="v1", today=TODAY)
    assert report == whole
    assert pl.concat(splits(tmp_path / "parts")).equals(pl.concat(splits(tmp_path / "whole")))


def _without_a_week(rankings: pl.DataFrame) -> pl.DataFrame:
    return rankings.filter((LAST_DAY - pl.col(DATE).dt.date()).dt.total_days().is_between(3, 9).not_())


def _with_a_country_of_three_rows(rankings: pl.DataFrame) -> pl.DataFrame:
    return pl.concat(
        [rankings, rankings.filter(pl.col(COUNTRY) == "AE").head(3).with_columns(pl.lit("ZW").alias(COUNTRY))]
    )


def _with_holes(rankings: pl.DataFrame) -> pl.DataFrame:
    return rankings.filter(pl.col(RANK) != 20)


WARNINGS = [
    ("days-consecutive", _without_a_week, TODAY, "7 days between"),
    ("countries-covered", _with_a_country_of_three_rows, TODAY, "'ZW' has 3 rankings"),
    ("charts-complete", _with_holes, TODAY, "fewer rows than places"),
    ("freshness", pl.DataFrame.clone, TODAY + timedelta(days=31), f"the last chart is of {LAST_DAY}, 32 days before"),
]


@pytest.mark.parametrize(("warning", "change", "today", "words"), WARNINGS)
def test_what_only_warns_does_not_fail(
    warning: str, change: Any, today: date, words: str, good: Good, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    songs, rankings = good
    report = validate(tmp_path, songs, change(rankings), today=today)
    assert report["passed"]
    assert failed(report) == {warning}
    assert words in check(report, warning)["message"]
    assert f"{warning}: " in caplog.text


def test_it_is_tomorrow_already_at_utc_plus_14(good: Good, tmp_path: Path) -> None:
    yesterday = LAST_DAY - timedelta(days=1)
    report = validate(tmp_path / "a", *good, today=yesterday)
    assert report["passed"]
    assert failed(report) == {"days-ahead"}
    assert check(report, "days-ahead")["count"] == 350
    assert report["profile"]["last_day"] == str(LAST_DAY)
    assert check(report, "freshness")["message"].startswith(f"the last chart is of {LAST_DAY}, 0 days before")
    with pytest.raises(DataInvalid, match=rf"- dates: {DATE}: 350 of .* to 2026-09-29"):
        validate(tmp_path / "b", *good, today=yesterday - timedelta(days=1))


def test_some_orphans_and_repeated_rows_are_tolerated_and_counted(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    unknown = rankings.head(20).with_columns(pl.lit("nobody").alias(ID) + pl.int_range(20).cast(pl.String))
    report = validate(tmp_path, songs, pl.concat([unknown, rankings.tail(-20), rankings.tail(3)]))
    assert failed(report) == set()
    assert check(report, "rankings-have-songs")["message"].startswith("20 of ")
    assert check(report, "rankings-unique")["message"].startswith("3 of ")


def test_what_is_missing_hides_no_repetition_and_is_none(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    chart = rankings.filter((pl.col(COUNTRY) == "AE") & (pl.col(DATE) == pl.col(DATE).max()))
    missing = chart.head(1).with_columns(
        pl.lit(None).cast(pl.String).alias(ID), pl.lit(None).cast(pl.Int64).alias(RANK)
    )
    report = report_on(tmp_path, songs, pl.concat([rankings, *[chart.tail(1)] * 7, missing]))
    assert failed(report) == {"rankings-complete", "rankings-unique"}
    assert check(report, "rankings-unique")["count"] == 7
    assert check(report, "places-unique")["message"].startswith("7 of ")


def test_every_rule_can_fail() -> None:
    warnings = {rule for rule, *_ in WARNINGS} | {"shift", "days-ahead"}
    sizes = {"songs-size", "rankings-size"}
    assert {corruption.check for corruption in CORRUPTIONS} | warnings | sizes | {"examples"} == set(NAMES)
    assert {rule.name for rule in RULES if rule.severity == "warning"} == warnings - {"shift"}
    columns = {f"{table.name}.{column}" for table in (SONGS, RANKINGS) for column in table.schema}
    views = ("charts.", "entries.", "country_charts.", "countries.")
    assert all(each in columns or each.startswith(views) for rule in RULES for each in rule.needs)


@pytest.mark.parametrize("order", ["by day", "by country", "none"])
def test_batches_and_buckets_change_nothing(
    order: str, good: Good, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs, rankings = good
    rankings = pl.concat([rankings, rankings.sample(3_000, seed=1)]).sample(fraction=1, shuffle=True, seed=2)
    rankings = {"by day": rankings.sort(DATE), "by country": rankings.sort(COUNTRY), "none": rankings}[order]
    whole = report_on(tmp_path / "whole", songs, rankings)
    examples = splits(tmp_path / "whole")
    for rule in ("rankings-unique", "places-unique"):
        assert check(whole, rule)["message"].startswith("3,000 of ")
    monkeypatch.setattr("pipeline.core.parts.BATCH", 2_000)
    for bucket in (1_000, 40):  # less than a chart, too
        monkeypatch.setattr("pipeline.models.jukebox.charts.BUCKET", bucket)
        assert report_on(tmp_path / f"pieces {bucket}", songs, rankings) == whole
    monkeypatch.setattr(sys.modules["pipeline.models.jukebox.examples"], "SLICE", 50)
    assert pl.concat(splits(tmp_path / "pieces 40")).equals(pl.concat(examples))


@pytest.mark.parametrize(
    ("most_songs", "most_ids", "most_charts", "said"),
    [
        (500, 2000, 2000, "songs-size: songs has 920 rows, expected at most 500"),
        (920, 920, 2000, "rankings-size: rankings has more than 920 different ids"),
        (920, 2000, 100, "rankings-size: rankings has more than 100 pairs of a country and a day"),
    ],
)
def test_what_no_memory_holds_is_refused_before_it_is_held(
    most_songs: int,
    most_ids: int,
    most_charts: int,
    said: str,
    good: Good,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    songs, rankings = good
    monkeypatch.setattr("pipeline.models.jukebox.charts.MOST_SONGS", most_ids)
    monkeypatch.setattr("pipeline.models.jukebox.charts.MOST_CHARTS", most_charts)
    model = replace(MODEL, tables=[replace(SONGS, most_rows=most_songs), RANKINGS])
    unknown = pl.format("unknown-{}", pl.int_range(pl.len())).alias(ID)
    with pytest.raises(DataInvalid) as raised:
        validate(tmp_path, songs, pl.concat([rankings, rankings.head(600).with_columns(unknown)]), model=model)
    assert f"- {said}" in str(raised.value)


MANY_ROWS = """
import sys
from datetime import date
from pathlib import Path
from pipeline.core.errors import DataInvalid
from pipeline.core.log import peak_mib
from pipeline.models.jukebox import MODEL
from pipeline.steps.preprocess_data import preprocess_data
from pipeline.steps.validate_data import validate_data
songs, rankings, folder = map(Path, sys.argv[1:])
tables = {"songs": songs, "rankings": rankings}
before = peak_mib()
for step in (
    lambda: validate_data(MODEL, tables, folder / "report.json", data_version="", today=date(2026, 10, 1)),
    lambda: preprocess_data(MODEL, tables, folder / "examples"),
):
    try:
        step()
    except DataInvalid:
        pass
print(peak_mib() - before)
"""


ONE_STEP = """
import sys
from contextlib import suppress
from datetime import date
from pathlib import Path
from pipeline.core.errors import DataInvalid
from pipeline.core.log import peak_mib
from pipeline.models.jukebox import MODEL
step, folder = sys.argv[1], Path(sys.argv[2])
tables = {name: folder / name for name in ("songs", "rankings")}
with suppress(DataInvalid):
    if step == "validate_data":
        from pipeline.steps.validate_data import validate_data
        validate_data(MODEL, tables, folder / "report.json", data_version="", today=date(2026, 10, 1))
    else:
        from pipeline.steps.preprocess_data import preprocess_data
        preprocess_data(MODEL, tables, folder / "examples")
print(peak_mib())
"""


@pytest.mark.parametrize("ids", ["the same", "all of their own"])
def test_memory_does_not_grow_with_the_rows_of_a_row_group(ids: str, good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    validate(tmp_path, songs, rankings)
    rows = 5_000_000
    again = rankings[np.arange(rows) % len(rankings)].lazy()
    if ids == "all of their own":
        again = again.with_columns(pl.int_range(pl.len()).cast(pl.String).alias(ID))
    again.sink_parquet(tmp_path / "rankings" / "part-00000.parquet", row_group_size=rows)
    program = [sys.executable, "-c", MANY_ROWS, *(str(tmp_path / name) for name in ("songs", "rankings", "."))]
    used = int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    assert used < 450


def charts_of(folder: Path, songs: int, rows: int) -> None:
    """Write that many songs, and chart rows of them in 60 countries, day by day, each song for a month or so."""
    rng = np.random.default_rng(0)
    ids = pl.Series("id", np.arange(songs)).cast(pl.String) + "-of-the-song-22"
    table = pl.DataFrame({ID: ids, "name": ids, "artists": ids, **{name: rng.random(songs) for name in FEATURE_NAMES}})
    codes = pl.Series([f"{first}{second}" for first in "ABC" for second in "ABCDEFGHIJKLMNOPQRST"])
    at = np.arange(rows)
    song = (at * (songs - 1000) // rows) + rng.integers(1000, size=rows)
    day = pl.Series(at // (rows // 500)).cast(pl.Int32) + (date(2024, 1, 1) - date(1970, 1, 1)).days
    rankings = pl.DataFrame(
        {ID: ids[song], COUNTRY: codes[rng.integers(60, size=rows)], DATE: day.cast(pl.Date), RANK: at % 50 + 1}
    )
    for frame, name in ((table, "songs"), (rankings, "rankings")):
        (folder / name).mkdir(parents=True)
        frame.write_parquet(folder / name / "part-00000.parquet", row_group_size=100_000)


@pytest.mark.parametrize("step", ["validate_data", "preprocess_data"])
def test_memory_hardly_grows_with_the_songs_and_the_rows(step: str, tmp_path: Path) -> None:
    peaks = []
    for songs, rows in ((10_000, 600_000), (200_000, 4_000_000)):
        folder = tmp_path / str(songs)
        charts_of(folder, songs, rows)
        program = [sys.executable, "-c", ONE_STEP, step, str(folder)]
        peaks.append(int(subprocess.run(program, check=True, capture_output=True, text=True).stdout.split()[-1]))
    assert peaks[1] < 1.5 * peaks[0], peaks


def test_features_that_moved_are_a_warning(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    reference = validate(tmp_path / "before", songs, rankings)["profile"]
    explicit = pl.when(pl.int_range(pl.len()) % 20 == 0).then(False).otherwise(True).alias("is_explicit")
    moved = songs.with_columns(pl.col("loudness") + 4, explicit)
    report = validate(tmp_path / "now", moved, rankings, reference=json.loads(json.dumps(reference)))
    assert report["passed"]
    assert failed(report) == {"shift"}
    assert {row["quantity"] for row in check(report, "shift")["examples"]} == {"is_explicit", "loudness"}
    loudness = report["shift"]["loudness"]
    assert loudness["mean_difference"] * reference["features"]["loudness"]["std"] == pytest.approx(4, rel=1e-5)
    assert loudness["psi"] > 0.25
    assert report["shift"]["is_explicit"]["psi"] > 0.25
    assert report["shift"]["tempo"] == {"psi": 0, "mean_difference": 0}


def test_a_feature_that_leaves_its_most_common_value_has_moved(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    reference = validate(tmp_path / "before", songs, rankings)["profile"]
    most = reference["features"]["instrumentalness"]["shares"][0]
    assert most == pytest.approx((rankings.drop_nulls(COUNTRY).join(songs, on=ID)["instrumentalness"] == 0).mean())
    tiny = songs.with_columns(pl.col("instrumentalness").clip(1e-9))
    report = validate(tmp_path / "now", tiny, rankings, reference=reference)
    assert {row["quantity"] for row in check(report, "shift")["examples"]} == {"instrumentalness"}


def test_a_mix_of_countries_that_moved_is_a_warning(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    reference = validate(tmp_path / "before", songs, rankings)["profile"]
    without = rankings.filter((pl.col(COUNTRY) != "AE").fill_null(True))
    report = validate(tmp_path / "now", songs, without, reference=reference)
    assert "labels: stability index" in check(report, "shift")["message"]
    # Six countries of a sixth each become five of a fifth, and none is as if it had one row of ten thousand.
    expected = 5 * (1 / 5 - 1 / 6) * math.log(6 / 5) + (1e-4 - 1 / 6) * math.log(6e-4)
    assert report["shift"]["labels"] == {"psi": pytest.approx(expected), "mean_difference": None}


def test_without_a_reference_the_check_says_so(good: Good, tmp_path: Path) -> None:
    report = validate(tmp_path, *good)
    assert check(report, "shift")["passed"]
    assert "no champion" in check(report, "shift")["message"]
    assert report["shift"] is None


def test_a_reference_that_lacks_a_feature_is_compared_in_the_others(good: Good, tmp_path: Path) -> None:
    reference = validate(tmp_path / "before", *good)["profile"]
    del reference["features"]["tempo"]
    report = validate(tmp_path / "now", *good, reference=reference)
    assert "tempo" not in report["shift"]
    assert report["shift"]["energy"]["psi"] == pytest.approx(0)


def test_the_profile_weighs_songs_by_their_rows_in_the_charts_of_countries(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    profile = validate(tmp_path, songs, rankings)["profile"]
    rows = rankings.drop_nulls(COUNTRY).join(songs, on=ID)
    assert profile["rows"] == {"songs": len(songs), "rankings": len(rankings)}
    assert profile["rows_of_examples"] == len(rows)
    assert (profile["first_day"], profile["last_day"]) == (str(rows[DATE].dt.date().min()), str(LAST_DAY))
    shares = rows[COUNTRY].value_counts(normalize=True)
    assert profile["label_shares"] == pytest.approx(dict(shares.iter_rows()))
    assert list(profile["features"]) == list(FEATURE_NAMES)
    for name, found in profile["features"].items():
        values = rows[name].cast(pl.Float64)
        assert found["mean"] == pytest.approx(values.mean())
        assert found["std"] == pytest.approx(values.std(ddof=0))
        assert (found["min"], found["max"]) == pytest.approx((values.min(), values.max()))
        assert len(found["edges"]) == 11
        assert found["edges"] == sorted(found["edges"])
        assert sum(found["shares"]) == pytest.approx(1)
    tempo = profile["features"]["tempo"]
    assert tempo["shares"] == pytest.approx([0.1] * 10, abs=0.03)
    assert tempo["edges"][5] == pytest.approx(rows["tempo"].median(), rel=0.01)
    assert profile["features"]["mode"]["shares"][-1] == pytest.approx(rows["mode"].mean())


def test_markdown_shows_failures_first_and_no_markup_of_the_data(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    evil = songs.with_columns(
        pl.lit("<img src=x> | ![a](https://example.org/b.png)\n# c").alias("name"), tempo=pl.col("tempo") + 500
    )
    with pytest.raises(DataInvalid):
        validate(tmp_path, evil, rankings, today=TODAY + timedelta(days=99))
    text = markdown(json.loads((tmp_path / "report" / "validation.json").read_text()))
    assert text.startswith("# Data validation: failed")
    assert (
        text.index("| songs-in-range | **error**") < text.index("| freshness | **warning**") < text.index("| passed |")
    )
    assert "<img" not in text
    assert "![a]" not in text
    assert all(
        line.startswith(("#", "|")) or "example" in line or "songs" in line for line in text.splitlines() if line
    )
    assert "| tempo |" in text


def test_markdown_of_data_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="songs-readable"):
        validate_data(MODEL, tables_in(tmp_path), tmp_path / "validation.json", data_version="", today=TODAY)
    assert "rankings-readable" in markdown(json.loads((tmp_path / "validation.json").read_text()))


def test_long_texts_are_shortened(good: Good, tmp_path: Path) -> None:
    songs, rankings = good
    with pytest.raises(DataInvalid) as raised:
        validate(tmp_path, songs, rankings.with_columns(pl.lit("X" * 10_000).alias(COUNTRY)))
    assert len(str(raised.value)) < 3_000


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    table=st.sampled_from(["songs", "rankings"]),
    damages=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    tail=st.booleans(),
)
def test_no_damage_of_a_file_is_a_crash(
    table: str,
    damages: list[tuple[float, int]],
    tail: bool,
    good: Good,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def spoil(*folders: Path) -> None:
        part = folders[table == "rankings"] / "part-00000.parquet"
        data = bytearray(part.read_bytes())
        for place, value in damages:
            data[int((1 - place) * 3_000 if tail else place * len(data)) * (-1 if tail else 1)] = value
        part.write_bytes(data)

    folder = tmp_path_factory.mktemp("spoilt")
    passed = True
    try:
        validate(folder, *good, corruption=Corruption("spoilt", "", "", damage=spoil))
    except DataInvalid:
        passed = False
    assert json.loads((folder / "report" / "validation.json").read_text())["passed"] == passed
    assert not (preprocess(folder) and passed)


@st.composite
def _cells(draw: st.DrawFn) -> tuple[Column, float]:
    feature = draw(st.sampled_from(FEATURES))
    margin = draw(st.floats(1e-3, 1e12))
    assert isinstance(feature.low, int)
    assert isinstance(feature.high, int)
    wrong = [feature.low - margin, feature.high + margin]
    if feature.discrete:
        wrong.append(feature.low + 0.5)
    return feature, draw(st.sampled_from(wrong))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(cell=_cells(), row=st.integers(0, 10**6))
def test_one_cell_outside_its_range_is_caught(
    cell: tuple[Column, float], row: int, good: Good, tmp_path_factory: pytest.TempPathFactory
) -> None:
    songs, rankings = good
    feature, value = cell
    row %= len(songs)
    column = pl.col(feature.name).cast(pl.Float64)
    songs = songs.with_columns(pl.when(pl.int_range(pl.len()) == row).then(value).otherwise(column).alias(feature.name))
    with pytest.raises(DataInvalid) as raised:
        validate(tmp_path_factory.mktemp("cell"), songs, rankings)
    assert f"- songs-in-range: {feature.name}: 1 of" in str(raised.value)
    assert songs[row, ID] in str(raised.value)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    column=st.sampled_from([RANK, COUNTRY, DATE]),
    row=st.integers(0, 10**6),
    rank=st.one_of(st.integers(-(2**31), 0), st.integers(201, 2**31)),
    country=st.text(min_size=0, max_size=4).filter(
        lambda text: not (len(text) == 2 and text.isascii() and text.isupper())
    ),
    day=st.one_of(st.dates(date(1, 1, 1), date(1999, 12, 31)), st.dates(TODAY + timedelta(days=2))),
)
def test_one_wrong_cell_of_the_rankings_is_caught(
    column: str, row: int, rank: int, country: str, day: date, good: Good, tmp_path_factory: pytest.TempPathFactory
) -> None:
    songs, rankings = good
    rankings = rankings.with_columns(pl.col(DATE).cast(pl.Date))
    value, name = {RANK: (rank, "rankings-in-range"), COUNTRY: (country, "country-codes"), DATE: (day, "dates")}[column]
    wrong = pl.int_range(pl.len()) == row % len(rankings)
    rankings = rankings.with_columns(pl.when(wrong).then(pl.lit(value)).otherwise(column).alias(column))
    with pytest.raises(DataInvalid, match=f"- {name}: {column}: 1 of"):
        validate(tmp_path_factory.mktemp("cell"), songs, rankings)
