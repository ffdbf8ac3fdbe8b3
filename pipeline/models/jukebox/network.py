"""The jukebox network and its hyperparameters; both are defined only here."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.core.contract import INPUT, Hyperparameters, Inputs

if TYPE_CHECKING:
    import keras


class JukeboxHyperparameters(Hyperparameters):
    """Those of training, and of this network."""

    hidden_layers: list[Annotated[int, Field(ge=1, le=8192)]] = Field([128, 128], max_length=16)
    """Units of each hidden layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden units that a step leaves out."""


def network(inputs: Inputs, options: JukeboxHyperparameters) -> "keras.Model":
    """A multilayer perceptron from raw features, float32[batch, 13], to a softmax, float32[batch, labels].

    Normalisation is its first layer, so that callers of the model do not need the constants.
    """
    import keras  # takes three seconds; only the steps that train and convert need it

    features = keras.Input((len(inputs.features),), name=INPUT)
    x = keras.layers.Normalization(mean=inputs.mean, variance=inputs.variance, name="normalise")(features)
    for number, units in enumerate(options.hidden_layers):
        x = keras.layers.Dense(units, activation="relu", name=f"hidden_{number}")(x)
        if options.dropout:
            x = keras.layers.Dropout(options.dropout, name=f"dropout_{number}")(x)
    x = keras.layers.Dense(len(inputs.labels), activation=inputs.activation, name=inputs.output)(x)
    return keras.Model(features, x)
