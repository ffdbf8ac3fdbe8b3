"""What a team does to a clone that wants this model: it adds the folder, and names it and its data in the settings."""

import shutil
from pathlib import Path

import yaml

from tests.models.second import MODEL

HERE = Path(__file__).parent
FILES = ("__init__.py", "sample.py")


def adopt(clone: Path, uri: str, *, alone: bool = False) -> None:
    """Make this the model of a clone, whose table is at ``uri``; ``alone``: without the folder of the first model."""
    folder = clone / "pipeline" / "models" / MODEL.name
    folder.mkdir(exist_ok=True)
    for name in FILES:
        (folder / name).write_text((HERE / name).read_text().replace("tests.models.second", "pipeline.models.second"))
    settings = clone / "manifests" / "settings" / "settings.yaml"
    document = yaml.safe_load(settings.read_text())
    document["data"] |= {"model-name": MODEL.name, "data": f"flats: {uri}\n"}
    settings.write_text(yaml.safe_dump(document, sort_keys=False))
    if alone:
        for part in ("pipeline", "tests"):
            shutil.rmtree(clone / part / "models" / "jukebox", ignore_errors=True)  # the clone may be of a fork
