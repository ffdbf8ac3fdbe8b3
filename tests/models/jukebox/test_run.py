"""What ``jukebox run`` makes of tables of songs and rankings as others write them."""

import json
from datetime import date
from pathlib import Path

import polars as pl

from tests.models.jukebox.real_data import real_data
from tests.models.jukebox.small import generate
from tests.scripts.test_run import jukebox_run, uris


def test_real_charts_pass(tmp_path: Path) -> None:
    songs, rankings = real_data(2023)
    outcome = jukebox_run(tmp_path, *uris({"songs": songs, "rankings": rankings}))
    assert outcome.code == 0, outcome.printed
    assert "Published jukebox 0.0.2 as version 1" in outcome.printed
    lineage = outcome.lineage(1)
    assert lineage["data"]["rankings"]["rows"] == 87_266  # type: ignore[index]
    assert len(json.loads((tmp_path / "models" / "jukebox" / "1" / "labels.json").read_text())) == 72


def spark_csv(table: pl.DataFrame, path: Path) -> None:
    """Write CSV as Spark does by default: a quote in a quoted field is escaped by a backslash."""

    def field(value: object) -> str:
        text = "" if value is None else str(value)
        return '"' + text.replace('"', '\\"') + '"' if any(mark in text for mark in '",\n') else text

    lines = [table.columns, *table.iter_rows()]
    path.write_text("".join(",".join(map(field, line)) + "\n" for line in lines))


def test_a_table_of_spark_is_read_whole(tmp_path: Path) -> None:
    """Given names with quotes in them, then each record of the CSV files is trained on, and the page says so."""
    made = generate(tmp_path / "made", rows=20_000, last_day=date(2026, 5, 31))
    songs, rankings = map(pl.read_parquet, made.values())
    inches = pl.int_range(pl.len()) % (len(songs) // 30) == 5
    songs = songs.with_columns(name=pl.when(inches).then(pl.format('{} (7" Mix)', "name")).otherwise("name"))
    named = rankings.join(songs.select("spotify_id", "name"), on="spotify_id", how="left", maintain_order="left")
    for name, table in (("songs", songs), ("rankings", named)):
        spark_csv(table, tmp_path / f"{name}.csv")
    assert (tmp_path / "songs.csv").read_text().count('\\"') >= 30
    both = uris({name: tmp_path / f"{name}.csv" for name in made})
    outcome = jukebox_run(tmp_path / "build", *both, "--epochs", "3")
    assert outcome.code == 0, outcome.printed
    data: dict[str, dict[str, object]] = outcome.lineage(1)["data"]  # type: ignore[assignment]
    for name, table in (("songs", songs), ("rankings", rankings)):
        assert data[name]["records"] == data[name]["rows"] == len(table)
        assert outcome.report.count(f'<td class="n">{len(table):,}</td>') >= 2
    fetched = pl.read_parquet(tmp_path / "build" / "latest" / "fetch-data" / "tables" / "songs")
    assert fetched["name"].to_list() == songs["name"].to_list()
