"""The sample with fewer countries, which tests learn from in seconds."""

from datetime import date
from pathlib import Path

from pipeline.models.jukebox import sample


def generate(folder: Path, *, rows: int, last_day: date, labels: int = 12) -> dict[str, Path]:
    """Write the tables with the charts of so many countries; return their files by their names."""
    return sample.generate(folder, rows=rows, last_day=last_day, countries=labels)
