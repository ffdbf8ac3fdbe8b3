"""Train model: a Keras network on the examples, seeded, with early stopping."""

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.core.documents import write_json
from pipeline.core.errors import NotFinite
from pipeline.core.examples import TEST_SPLITS, Examples, read_description, read_split, write_predictions
from pipeline.core.log import log
from pipeline.core.options import Hyperparameters, parse
from pipeline.models.jukebox.network import build_network

# Up to so many visits an epoch, every chart row is a visit of its own; beyond, rows of a song share one. More visits
# cost time in proportion and no longer lower the test loss (`make bench` shows both beside row-by-row training).
VISITS = 150_000
# Beyond, a batch of ``batch_size`` rows holds ever fewer visits, 15 at 10 million rows, and each batch costs the same.
# With 60 the test loss is the same within what the seed does, in a fraction of the time (docs/runs.md).
SMALLEST_BATCH = 60
KERAS_FILE = "model.keras"
BATCH = 8192  # of predictions, where the size changes nothing but memory


def train_model(
    examples: Path,
    model: Path,
    predictions: Path,
    report: Path,
    *,
    hyperparameters: Mapping[str, Any],
    data_version: str,
) -> dict[str, Any]:
    """Train, and write ``model``/model.keras, the predictions on the test splits and training.json at ``report``.

    ``examples`` is the folder that preprocess_data wrote. The predictions (float32[examples, labels] a split) are
    what evaluation and verification compare with, so that neither has to load TensorFlow; ``weights_sha256`` in the
    report says of which weights they are.

    Same examples, same hyperparameters and same machine give the same weights.

    Raises HyperparametersInvalid for an unknown hyperparameter or a value out of range, NotFinite, and nothing is
    written, at the first loss, metric, weight or prediction that is NaN or infinite.
    """
    options = parse(Hyperparameters, hyperparameters)
    begin = time.perf_counter()
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(options.seed)
    description = read_description(examples)
    train, validation = read_split(examples, "train"), read_split(examples, "validation")
    visits = Visits(train, options.batch_size)
    network = build_network(
        description["mean"],
        description["variance"],
        len(description["labels"]),
        options.hidden_layers,
        options.dropout,
    )
    rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, visits.steps * options.epochs)
    network.compile(keras.optimizers.Adam(rate))
    progress = _Progress()
    train_epoch = epoch_of(network, visits)
    while progress.epoch < options.epochs and not progress.stopped(options.patience):
        began = time.perf_counter()
        when = f"in epoch {progress.epoch + 1} of {options.epochs}"
        total, steps = train_epoch(*visits.of_epoch(np.random.default_rng((options.seed, progress.epoch))))
        loss = float(total) / len(visits.example)
        _require_finite(loss, f"the loss {when}, at batch {int(steps)} of {visits.steps},", options)
        for weights in network.get_weights():
            _require_finite(weights, f"a weight {when}", options)
        validation_loss, top1 = scores(predict(network, validation), validation)
        _require_finite(validation_loss, f"the validation loss {when}", options)
        progress.add(network, loss, validation_loss, top1, time.perf_counter() - began)
        log.info("epoch %d of %d: %s", progress.epoch, options.epochs, progress.line())
    network.set_weights(progress.best_weights)
    answers = {split: predict(network, read_split(examples, split)) for split in TEST_SPLITS.values()}
    for split, probabilities in answers.items():
        _require_finite(probabilities, f"a prediction of the best epoch, {progress.best_epoch}, on {split}", options)

    model.mkdir(parents=True, exist_ok=True)
    network.save(model / KERAS_FILE)
    for split, probabilities in answers.items():
        write_predictions(predictions, split, probabilities)
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
            f"{what} is {bad.flat[0]}, expected was a finite number: the training has diverged. Start a run with a "
            f"lower learning_rate (it was {options.learning_rate:g}; try {options.learning_rate / 10:g}), with fewer "
            f"hidden_layers ({len(options.hidden_layers)}) or with a larger batch_size ({options.batch_size})"
        )


class Visits:
    """The training rows, gathered into visits: an example with a share of its rows, and its countries as frequencies.

    An epoch visits every example so often, and with such weights, that the weights of its visits add up to its rows:
    one pass over the rows' mass, in ``steps`` batches with ``batch_size`` rows behind each, or with as many as
    ``SMALLEST_BATCH`` visits stand for if that is more. A visit stands for one row where there are up to ``VISITS``
    rows, else for as few as keep their number near it.
    """

    def __init__(self, train: Examples, batch_size: int) -> None:
        rows = train.rows
        self.rows = int(rows.sum())
        self.vectors = train.vectors
        self.frequencies = (train.counts / rows[:, None]).astype(np.float32)
        times = np.ceil(rows / max(1.0, self.rows / VISITS)).astype(np.int64)
        self.example = np.repeat(np.arange(len(rows), dtype=np.int32), times)
        weight = np.repeat(rows / times, times)
        # Mean 1, so that the learning rate means the same whatever a visit stands for.
        self.weight = (weight / weight.mean()).astype(np.float32)
        self.batch = max(min(SMALLEST_BATCH, batch_size), round(len(self.example) * batch_size / self.rows))
        self.steps = -(-len(self.example) // self.batch)

    def of_epoch(self, rng: np.random.Generator) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The visits in random order: examples, int32, and weights, float32, both [steps, batch]; the last weigh 0."""
        order = rng.permutation(len(self.example))
        missing = (0, self.steps * self.batch - len(order))
        shape = (self.steps, self.batch)
        return np.pad(self.example[order], missing).reshape(shape), np.pad(self.weight[order], missing).reshape(shape)


def epoch_of(network: keras.Model, visits: Visits) -> Callable[[Any, Any], tuple[tf.Tensor, tf.Tensor]]:
    """A function that trains ``network`` for what ``of_epoch`` returns.

    It returns the sum of the visits' losses in nats, float32, and the number of batches, int32: fewer than there are
    if the loss of the last of them was not finite.

    The epoch is one TensorFlow graph that gathers its batches from the examples: Keras' own ``fit`` spends twice the
    time, because its steps wait for their data.
    """
    vectors, frequencies = tf.constant(visits.vectors), tf.constant(visits.frequencies)
    weights = network.trainable_variables
    network.optimizer.build(weights)

    def one_step(step: Any, total: Any, example: Any, weight: Any) -> tuple[Any, ...]:
        with tf.GradientTape() as tape:
            answers = network(tf.gather(vectors, example[step]), training=True)
            asked = tf.gather(frequencies, example[step])
            loss = tf.reduce_mean(weight[step] * keras.losses.categorical_crossentropy(asked, answers))
        network.optimizer.apply(tape.gradient(loss, weights), weights)
        return step + 1, total + loss * visits.batch, example, weight

    # Without autograph, which takes as long to rewrite Keras' code as an epoch takes.
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
    """What happened so far, and the best weights."""

    def __init__(self) -> None:
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
        return (
            f"loss {last['loss']:.4f}, validation loss {last['validation_loss']:.4f}, "
            f"validation top-1 {last['validation_top1']:.3f}, {last['seconds']:.1f} s"
        )

    def add(self, network: keras.Model, loss: float, validation_loss: float, top1: float, seconds: float) -> None:
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "loss": round(float(loss), 6),
                "validation_loss": round(validation_loss, 6),
                "validation_top1": round(top1, 6),
                "seconds": round(seconds, 3),
            }
        )
        if self.best_epoch == self.epoch:
            self.best_weights = network.get_weights()


def predict(network: keras.Model, examples: Examples) -> NDArray[np.float32]:
    """Probabilities, float32[examples, labels]; a direct call, since Keras' ``predict`` compiles for each size anew."""
    starts = range(0, max(1, len(examples.vectors)), BATCH)
    answers = [network(examples.vectors[start : start + BATCH], training=False) for start in starts]
    probabilities: NDArray[np.float32] = tf.concat(answers, axis=0).numpy()
    return probabilities


def scores(probabilities: NDArray[np.float32], examples: Examples) -> tuple[float, float]:
    """Cross entropy (nats) and top-1 accuracy over the rows behind ``examples``."""
    rows = examples.counts.sum()
    likelihood = np.log(np.clip(probabilities, 1e-7, 1)) * examples.counts
    hits = examples.counts[np.arange(len(probabilities)), probabilities.argmax(axis=1)].sum()
    return float(-likelihood.sum() / rows), float(hits / rows)


def weights_sha256(network: keras.Model) -> str:
    """The digest of all weights: the identity of a model, which its .keras file is not (it holds the date)."""
    digest = hashlib.sha256()
    for weight in network.get_weights():
        digest.update(np.asarray(weight).tobytes())
    return digest.hexdigest()
