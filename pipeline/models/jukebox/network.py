"""The jukebox network, the only place that says what it looks like."""

from collections.abc import Sequence

import keras

from pipeline.models.jukebox.schema import INPUT, OUTPUT


def build_network(
    mean: Sequence[float],
    variance: Sequence[float],
    labels: int,
    hidden_layers: Sequence[int],
    dropout: float,
) -> keras.Model:
    """A multilayer perceptron from raw features, float32[batch, 13], to a softmax, float32[batch, labels].

    Normalisation is its first layer, so that who calls the model never needs the constants.
    """
    features = keras.Input((len(mean),), name=INPUT)
    x = keras.layers.Normalization(mean=mean, variance=variance, name="normalise")(features)
    for number, units in enumerate(hidden_layers):
        x = keras.layers.Dense(units, activation="relu", name=f"hidden_{number}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"dropout_{number}")(x)
    return keras.Model(features, keras.layers.Dense(labels, activation="softmax", name=OUTPUT)(x))
