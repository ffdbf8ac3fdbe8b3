"""The picture of a report: ``python -m tests.docs.picture`` makes docs/images/report.png from the newest `make run`."""

import io
from pathlib import Path

from PIL import Image

from tests.browser import browser

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "images" / "report.png"
WIDTH, HEIGHT = 1100, 890  # CSS pixels; what is below is cut off


def take(report: Path, picture: Path) -> None:
    """Save the upper part of the report in light mode, as a PNG of 64 colours."""
    shot = picture.with_suffix(".whole.png")
    with browser() as page:
        page.open(report, width=WIDTH)
        page.screenshot(shot)
    with Image.open(io.BytesIO(shot.read_bytes())) as whole:
        part = whole.convert("RGB").crop((0, 0, WIDTH, min(HEIGHT, whole.height)))
    part.quantize(64).save(picture, optimize=True)
    shot.unlink()


if __name__ == "__main__":
    reports = (ROOT / "build" / "runs").glob("*/report.html")
    take(max(reports, key=lambda report: report.stat().st_mtime), PICTURE)
