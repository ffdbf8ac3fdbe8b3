"""Train a Keras network on the examples, with a seed and early stopping."""

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.core.contract import TRAIN, VALIDATION, Hyperparameters, Inputs, Model
from pipeline.core.documents import write_json
from pipeline.core.errors import NotFinite
from pipeline.core.examples import Examples, Reader, write_predictions
from pipeline.core.kinds import Kind, Scored
from pipeline.core.log import log
from pipeline.core.options import parse

# Up to this many rows, each row is one visit per epoch; beyond, rows of an example share a visit. More visits cost time
# in proportion and do not lower the test loss (`make bench` shows both beside row-by-row training).
VISITS = 150_000
# Beyond, a batch of ``batch_size`` rows has fewer and fewer visits, 15 at 10 million rows, and each batch costs the
# same. With 60, the test loss is the same within the seed's variation, in a fraction of the time (docs/runs.md).
SMALLEST_BATCH = 60
KERAS_FILE = "model.keras"
BATCH = 8192  # of predictions; its size affects only memory


def train_model(
    model: Model,
    examples: Path,
    keras_model: Path,
    predictions: Path,
    report: Path,
    *,
    hyperparameters: Mapping[str, Any],
    data_version: str,
) -> dict[str, Any]:
    """Train, and write ``keras_model``/model.keras, the predictions on the test splits and training.json at ``report``.

    ``examples`` is the folder that preprocess_data wrote. Evaluation and verification use the
    predictions (float32[examples, labels] per split), so that neither has to load TensorFlow; ``weights_sha256`` in the
    report identifies their weights.

    Same examples, same hyperparameters and same machine give the same weights.

    Raises HyperparametersInvalid for an unknown hyperparameter or a value out of range; NotFinite, before anything is
    written, at the first loss, metric, weight or prediction that is NaN or infinite.
    """
    options = parse(model.hyperparameters, hyperparameters)
    begin = time.perf_counter()
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(options.seed)
    reader = Reader(examples, model)
    train, validation = reader.read(TRAIN), reader.read(VALIDATION)
    visits = Visits(train, options.batch_size)
    inputs = inputs_of(model, reader.description)
    network = model.network(inputs, options)
    rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, visits.steps * options.epochs)
    network.compile(keras.optimizers.Adam(rate))
    progress = _Progress(model.kind)
    train_epoch = epoch_of(network, visits, model.kind, inputs)
    while progress.epoch < options.epochs and not progress.stopped(options.patience):
        began = time.perf_counter()
        when = f"in epoch {progress.epoch + 1} of {options.epochs}"
        total, steps = train_epoch(*visits.of_epoch(np.random.default_rng((options.seed, progress.epoch))))
        loss = float(total) / len(visits.example)
        _require_finite(loss, f"the loss {when}, at batch {int(steps)} of {visits.steps},", options)
        for weights in network.get_weights():
            _require_finite(weights, f"a weight {when}", options)
        found = scores(model.kind, predict(network, validation), validation)
        _require_finite(found[model.kind.primary], f"the validation loss {when}", options)
        progress.add(network, model.kind.in_unit(loss, inputs.factor), found, time.perf_counter() - began)
        log.info("epoch %d of %d: %s", progress.epoch, options.epochs, progress.line())
    network.set_weights(progress.best_weights)
    answers = {split: predict(network, reader.read(split)) for split in reader.tests}
    for split, answer in answers.items():
        _require_finite(answer, f"a prediction of the best epoch, {progress.best_epoch}, on {split}", options)

    keras_model.mkdir(parents=True, exist_ok=True)
    network.save(keras_model / KERAS_FILE)
    for split, answer in answers.items():
        write_predictions(predictions, split, answer)
    result = {
        "data_version": data_version,
        "hyperparameters": options.model_dump(),
        "history": progress.history,
        "best_epoch": progress.best_epoch,
        "stopped_early": progress.epoch < options.epochs,
        "parameters": network.count_params(),
        "rows": visits.rows,
        "visits": len(visits.example),
        "weights_sha256": weights_sha256(network),
        "seconds": round(time.perf_counter() - begin, 3),
    }
    write_json(report, result)
    return result


def _require_finite(found: Any, what: str, options: Hyperparameters) -> None:
    """Raise NotFinite if ``found``, a number or an array, holds NaN or infinity."""
    bad = np.asarray(found)[~np.isfinite(found)]
    if bad.size:
        raise NotFinite(
            f"{what} is {bad.flat[0]}, expected a finite number: the training has diverged. Start a run with a "
            f"lower learning_rate (it was {options.learning_rate:g}; try {options.learning_rate / 10:g}) or with a "
            f"larger batch_size ({options.batch_size})"
        )


class Visits:
    """The training rows, grouped into visits: an example with a share of its rows, and its target per row.

    In an epoch, the weights of an example's visits add up to its rows: one pass over all rows, in ``steps`` batches of
    ``batch_size`` rows each, or of ``SMALLEST_BATCH`` visits if these are more rows. A visit is one row if there are up
    to ``VISITS`` rows, else as few rows as keep the number of visits near it.
    """

    def __init__(self, train: Examples, batch_size: int) -> None:
        known = train.rows > 0  # the target is not among the outputs
        rows = train.rows[known]
        self.rows = int(rows.sum())
        self.vectors = train.vectors[known]
        self.target = (train.target[known] / rows[:, None]).astype(np.float32)
        times = np.ceil(rows / max(1.0, self.rows / VISITS)).astype(np.int64)
        self.example = np.repeat(np.arange(len(rows), dtype=np.int32), times)
        weight = np.repeat(rows / times, times)
        # Mean 1, so that the learning rate does not depend on the rows per visit.
        self.weight = (weight / weight.mean()).astype(np.float32)
        self.batch = max(min(SMALLEST_BATCH, batch_size), round(len(self.example) * batch_size / self.rows))
        self.steps = -(-len(self.example) // self.batch)

    def of_epoch(self, rng: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The visits in random order: examples, int32, and weights, float32, both [steps, batch]; the last weigh 0."""
        order = rng.permutation(len(self.example))
        missing = (0, self.steps * self.batch - len(order))
        shape = (self.steps, self.batch)
        return np.pad(self.example[order], missing).reshape(shape), np.pad(self.weight[order], missing).reshape(shape)


def epoch_of(
    network: keras.Model, visits: Visits, kind: Kind, inputs: Inputs
) -> Callable[[Any, Any], tuple[tf.Tensor, tf.Tensor]]:
    """Return a function that trains ``network`` with the batches that ``of_epoch`` returns.

    It returns the sum of the visits' losses, in the kind's unit, float32, and the number of batches, int32: fewer than
    there are if the loss of the last of them was not finite.

    The epoch is one TensorFlow graph that gathers its batches from the examples: Keras' own ``fit`` takes twice the
    time, because its steps wait for their data.
    """
    vectors, target = tf.constant(visits.vectors), tf.constant(visits.target)
    factor = tf.constant(inputs.factor, tf.float32)
    weights = network.trainable_variables
    network.optimizer.build(weights)

    def one_step(step: Any, total: Any, example: Any, weight: Any) -> tuple[Any, ...]:
        with tf.GradientTape() as tape:
            answers = network(tf.gather(vectors, example[step]), training=True)
            asked = tf.gather(target, example[step])
            loss = tf.reduce_mean(weight[step] * kind.loss(asked, answers, factor))
        network.optimizer.apply(tape.gradient(loss, weights), weights)
        return step + 1, total + loss * visits.batch, example, weight

    # Without autograph, because its conversion of Keras' code takes as long as an epoch.
    @tf.function(autograph=False)
    def train_epoch(example: Any, weight: Any) -> tuple[tf.Tensor, tf.Tensor]:
        def goes_on(step: Any, total: Any, *_: Any) -> Any:
            return (step < visits.steps) & tf.math.is_finite(total)

        begin = (tf.constant(0), tf.constant(0.0), example, weight)
        step, total, *_ = tf.while_loop(goes_on, one_step, begin, parallel_iterations=1)
        return total, step

    function: Callable[[Any, Any], tuple[tf.Tensor, tf.Tensor]] = train_epoch
    return function


class _Progress:
    """The history so far, and the best weights."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self.history: list[dict[str, float]] = []
        self.best_weights: list[NDArray[np.float32]] = []

    @property
    def epoch(self) -> int:
        return len(self.history)

    @property
    def best_epoch(self) -> int:
        losses = [entry["validation_loss"] for entry in self.history]
        return 1 + losses.index(min(losses))

    def stopped(self, patience: int) -> bool:
        return bool(self.history) and self.epoch - self.best_epoch >= patience

    def line(self) -> str:
        last = self.history[-1]
        headline = self._kind.headline
        return (
            f"loss {last['loss']:.4f}, validation loss {last['validation_loss']:.4f}, "
            f"validation {headline.title} {last[f'validation_{headline.name}']:.3f}, {last['seconds']:.1f} s"
        )

    def add(self, network: keras.Model, loss: float, scores: Mapping[str, float], seconds: float) -> None:
        headline = self._kind.headline.name
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "loss": round(float(loss), 6),
                "validation_loss": round(scores[self._kind.primary], 6),
                f"validation_{headline}": round(scores[headline], 6),
                "seconds": round(seconds, 3),
            }
        )
        if self.best_epoch == self.epoch:
            self.best_weights = network.get_weights()


def inputs_of(model: Model, description: Mapping[str, Any]) -> Inputs:
    """The inputs of the network; ``description`` is that of preprocess_data."""
    learnt = {key: description[key] for key in ("features", "mean", "variance", "labels", "offset", "factor")}
    return Inputs(**learnt, output=model.kind.output, activation=model.kind.activation)


def predict(network: keras.Model, examples: Examples) -> NDArray[np.float32]:
    """Predictions, float32[examples, labels]; a direct call, since Keras' ``predict`` compiles again for each size."""
    starts = range(0, max(1, len(examples.vectors)), BATCH)
    answers = [network(examples.vectors[start : start + BATCH], training=False) for start in starts]
    predictions: NDArray[np.float32] = tf.concat(answers, axis=0).numpy()
    return predictions


def scores(kind: Kind, predictions: NDArray[np.float32], examples: Examples) -> dict[str, float]:
    """The kind's primary metric and its headline, by their names, over the rows behind ``examples``."""
    scored = Scored(predictions, examples.target, examples.rows)
    wanted = (metric for metric in kind.metrics if metric.name in (kind.primary, kind.headline.name))
    found = {metric.name: metric.combine(metric.parts(scored), scored.rows) for metric in wanted}
    return {name: float("nan") if value is None else value for name, value in found.items()}


def weights_sha256(network: keras.Model) -> str:
    """The digest of all weights: the identity of a model; its .keras file has none, because it contains the date."""
    digest = hashlib.sha256()
    for weight in network.get_weights():
        digest.update(np.asarray(weight).tobytes())
    return digest.hexdigest()
