"""What the steps leave, as the fixtures of a small run hand it over."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Tables:
    """The folders of fetched songs and rankings."""

    songs: Path
    rankings: Path


@dataclass(frozen=True)
class Trained:
    """What train_model wrote."""

    model: Path
    predictions: Path
    report: Path

    @property
    def training(self) -> dict[str, Any]:
        """training.json."""
        found: dict[str, Any] = json.loads(self.report.read_text())
        return found
