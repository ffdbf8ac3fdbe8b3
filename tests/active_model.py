"""The model that the tests' settings name, for tests that need the names of its tables."""

from pathlib import Path

from pipeline.models.jukebox import MODEL

__all__ = ["MODEL", "TABLES", "write_tables"]
TABLES = tuple(table.name for table in MODEL.tables)


def write_tables(folder: Path) -> dict[str, str]:
    """Write a CSV file for each table, each with another content; return their paths by the names of the tables."""
    files = {name: folder / f"{name}.csv" for name in TABLES}
    for number, file in enumerate(files.values()):
        file.write_text(f"a\n{number}\n")
    return {name: str(file) for name, file in files.items()}
