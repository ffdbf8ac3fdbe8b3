"""Invented flats, seeded, with something to learn in them."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from tests.models.second import DISTRICTS

PRICES = np.array([21.0, 17.0, 15.0, 11.0, 12.0])  # € a month and m², by district
CLASSES = np.array(["A", "B", "C", "D", None])


def generate(folder: Path, *, rows: int = 3_000, last_day: date, seed: int = 0) -> dict[str, Path]:
    """Write ``flats.csv`` with so many rows; return the paths by the names of the tables."""
    rng = np.random.default_rng(seed)
    district = rng.integers(len(DISTRICTS), size=rows)
    rooms = rng.integers(1, 7, size=rows)
    size = (rooms * rng.normal(22, 4, rows).clip(9, 40)).round(1)
    built = rng.integers(1890, 2024, size=rows)
    age = rng.integers(0, 3 * 365, size=rows)
    price = PRICES[district] * (1 + 0.05 * (age < 365)) + (built > 2000) * 1.5
    rent = (size * price + 40 * rooms + rng.normal(0, 60, rows)).clip(60).round(2)
    table = pl.DataFrame(
        {
            "id": [f"flat-{number:06}" for number in range(rows)],
            "district": np.array(DISTRICTS)[district],
            "size": size,
            "rooms": rooms,
            "built": built,
            "energy": CLASSES[rng.integers(len(CLASSES), size=rows)].tolist(),
            "advertised": [last_day - timedelta(days=int(days)) for days in age],
            "viewings": rng.integers(0, 40, size=rows),
            "rent": rent,
        }
    )
    table = table.with_columns(
        built=pl.when(pl.Series(rng.random(rows) < 0.1)).then(None).otherwise(pl.col("built")),
        rent=pl.when(pl.Series(rng.random(rows) < 0.02)).then(None).otherwise(pl.col("rent")),
    )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "flats.csv"
    table.write_csv(file)
    return {"flats": file}
