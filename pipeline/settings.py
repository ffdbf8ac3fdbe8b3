"""The settings of a fork, read from ``manifests/settings.yaml``."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from pipeline.errors import SettingsInvalid

SETTINGS_FILE = Path(__file__).parent.parent / "manifests" / "settings.yaml"
QUANTITY = re.compile(r"\d+(\.\d+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?")


@dataclass(frozen=True)
class Settings:
    """What the pipeline takes from the settings file; each field is the key of the same name with dashes."""

    repository: str
    namespace: str
    cluster_domain: str
    image: str
    songs: str
    rankings: str
    model_name: str
    model_store: str
    model_storage_pvc: str
    keep_versions: str
    s3_secret: str
    step_cpu: str
    step_memory: str
    train_cpu: str
    train_memory: str
    train_gpus: str
    gpu_resource: str

    @property
    def on_claim(self) -> bool:
        """Whether the model store lies on the claim, so that steps must mount it."""
        return not self.model_store.startswith("s3://")


def read_settings(path: Path = SETTINGS_FILE) -> Settings:
    """Read and check the settings; raises SettingsInvalid that names the key and what it should be."""
    try:
        data = yaml.safe_load(path.read_text())["data"]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise SettingsInvalid(f"{path} is no ConfigMap with data: {error}") from None
    keys = {field.name: field.name.replace("_", "-") for field in fields(Settings)}
    missing = [key for key in keys.values() if not isinstance(data.get(key), str)]
    if missing:
        raise SettingsInvalid(f"{path}: data has no string {', '.join(missing)}; quote numbers, as in a ConfigMap")
    settings = Settings(**{name: data[key] for name, key in keys.items()})
    for name in ("step_cpu", "step_memory", "train_cpu", "train_memory"):
        if not QUANTITY.fullmatch(getattr(settings, name)):
            raise SettingsInvalid(
                f"{path}: {keys[name]} is {getattr(settings, name)!r}; expected a Kubernetes quantity as 500m or 2Gi"
            )
    for name in ("train_gpus", "keep_versions"):
        if not getattr(settings, name).isdecimal():
            raise SettingsInvalid(f"{path}: {keys[name]} is {getattr(settings, name)!r}; expected a whole number")
    return settings
