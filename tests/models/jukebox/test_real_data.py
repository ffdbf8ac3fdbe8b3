"""The real charts arrive as they are."""

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pipeline.core.contract import Table
from pipeline.core.tables import to_parquet
from pipeline.models.jukebox import MODEL
from pipeline.models.jukebox.tables import RANKINGS, SONGS
from pipeline.steps.fetch_data import fetch_data, resolve_data_version
from tests.models.jukebox.real_data import real_data


def test_the_real_rows_arrive(tmp_path: Path) -> None:
    songs, rankings = real_data(2023)
    uris = {"songs": str(songs), "rankings": rankings.as_uri()}
    found = fetch_data(MODEL, uris, tmp_path / "tables", data_version=resolve_data_version(uris))
    assert (found["songs"].rows, found["rankings"].rows) == (14245, 87266)


@pytest.mark.parametrize("table", [SONGS, RANKINGS], ids=lambda table: table.name)
def test_real_rows_are_the_same_from_csv(tmp_path: Path, table: Table) -> None:
    real = pl.read_parquet(dict(zip(("songs", "rankings"), real_data(2023), strict=True))[table.name])
    (tmp_path / "in").mkdir()
    real.write_csv(tmp_path / "in" / "download")
    to_parquet([("csv", tmp_path / "in" / "download")], tmp_path / "in", table.schema)
    found = pl.read_parquet(tmp_path / "in" / "part-00000.parquet")
    assert_frame_equal(found.select(*table.schema), real.select(*table.schema), check_dtypes=False)
