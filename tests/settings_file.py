"""Settings that commands find instead of those of the checkout, which are a fork's own."""

from pathlib import Path

import pytest
import yaml

SETTINGS_FILE = Path(__file__).with_name("settings.yaml")


def use_settings(monkeypatch: pytest.MonkeyPatch, file: Path, **data: str) -> None:
    """Write the tests' settings with other values to a file, and have JUKEBOX_SETTINGS name it."""
    document = yaml.safe_load(SETTINGS_FILE.read_text())
    document["data"] |= {key.replace("_", "-"): str(value) for key, value in data.items()}
    file.write_text(yaml.safe_dump(document))
    monkeypatch.setenv("JUKEBOX_SETTINGS", str(file))


def write_git_secret(folder: Path, repository: str, token: str) -> Path:
    """Write the Secret jukebox-git-host to a folder, as a pod has it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(f"{token}\n")
    (folder / "repository").write_text(repository)
    return folder
