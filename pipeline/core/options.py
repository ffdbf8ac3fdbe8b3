"""What a run may be tuned with, checked before anything costly starts."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.errors import HyperparametersInvalid

# A verdict that says no: stops the run, is only said, is not even sought.
GATE_MODES = ("enforce", "warn", "off")


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Hyperparameters(_Options):
    """How the network is trained. Whole numbers may come as floats: Kubeflow hands 2 over as 2.0."""

    epochs: int = Field(2, ge=1, le=10_000)
    """Passes over the chart rows of the training split, at most."""
    batch_size: int = Field(512, ge=1, le=1_000_000)
    """Chart rows behind one step of the optimiser; more if so many rows are trained on that a step would grow tiny."""
    learning_rate: float = Field(0.003, gt=0, le=1)
    """Adam's rate at the start; it falls to 0 along a cosine over ``epochs``."""
    hidden_layers: list[Annotated[int, Field(ge=1, le=8192)]] = Field([128, 128], max_length=16)
    """Units of each hidden layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden units that a step leaves out."""
    patience: int = Field(3, ge=1)
    """Epochs without a better validation loss after which training stops; the best epoch's weights are kept."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of the weights, the order of the examples and dropout."""


class Thresholds(_Options):
    """What a model must reach to be published; the gate's checks, in the order in which it shows them."""

    gain_over_baseline: float = Field(0.02, ge=0)
    """Nats by which the cross entropy must lie below that of the country frequencies, on songs never seen."""
    champion_tolerance: float = Field(0.05, ge=0)
    """Nats by which the cross entropy may lie above the champion's on the same test rows."""
    top5_floor: float = Field(0.1, ge=0, le=1)
    """Smallest share of test rows whose country is among the five most probable."""
    calibration_ceiling: float = Field(0.15, ge=0, le=1)
    """Largest expected calibration error over all test rows."""


O = TypeVar("O", bound=_Options)  # noqa: E741 - the type of the options


def parse(options: type[O], values: Mapping[str, Any]) -> O:
    """Return the checked options; raises HyperparametersInvalid that names every wrong key, and the known ones."""
    try:
        return options.model_validate(dict(values))
    except ValidationError as error:
        known = ", ".join(options.model_fields)
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: found {e['input']!r}, "
            + (f"which is no known key (known: {known})" if e["type"] == "extra_forbidden" else e["msg"].lower())
            for e in error.errors()
        )
        raise HyperparametersInvalid(f"{options.__name__.lower()}: {wrong}") from None
