"""Real chart rows, which are not part of the repository: where they lie beside it, tests use them, else they skip."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[4] / "shared" / "data"


def real_data(year: int) -> tuple[Path, Path]:
    """The Parquet files of songs and rankings of 2023 or 2025; skips the test where they are not there."""
    suffix = "" if year == 2023 else f"_{year}"
    songs, rankings = FOLDER / f"song_properties{suffix}.parquet", FOLDER / f"song_rankings{suffix}.parquet"
    if not (songs.is_file() and rankings.is_file()):
        pytest.skip(f"the real charts of {year} are not at ../shared/data beside the repository")
    return songs, rankings
