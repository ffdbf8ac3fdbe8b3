"""The steps as Kubeflow components: thin shells that hand artifacts to the plain functions in ``pipeline/steps``.

A component's source travels in the compiled pipeline and runs in the training image, which holds this package. So
every import is inside, and each shell imports only its own step: TensorFlow takes three seconds, and only two steps
need it. ``model`` names the model's folder; it is set when the pipeline is compiled.
"""

from kfp import dsl
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Input, Markdown, Metrics, Model, Output

# Replaced for every task by the pipeline: the image is a setting, its digest is known when it is built.
_component = dsl.component(base_image="jukebox-training", install_kfp_package=False)


@_component
def fetch_data(
    model: str,
    data: dict,
    data_version: str,
    sha256: dict,
    cache: str,  # noqa: ARG001 part of what the server's cache knows the step by
    tables: Output[Dataset],
    report: Output[Artifact],
) -> None:
    """Fetch the tables, checked against the version of the data that the run was started for."""
    from pathlib import Path

    from pipeline.core.log import step

    with step("fetch-data"):
        from pipeline.core.contract import load
        from pipeline.core.documents import write_json
        from pipeline.steps.fetch_data import fetch_data as run

        fetched = run(load(model), data, Path(tables.path), data_version=data_version, sha256=sha256)
        found = {name: table.as_metadata() for name, table in fetched.items()}
        tables.metadata["data_version"] = data_version
        for name, facts in found.items():
            tables.metadata.update({f"{name} {key}": value for key, value in facts.items()})
        write_json(Path(report.path), found)


@_component
def validate_data(
    model: str,
    tables: Input[Dataset],
    data_version: str,
    model_store: str,
    model_name: str,
    champion_version: str,
    served_version: str,
    report: Output[Artifact],
    summary: Output[Markdown],
    metrics: Output[Metrics],
) -> None:
    """Check the data against its contract; any error stops the pipeline, with all errors named at once."""
    from pathlib import Path

    from pipeline.core.log import step

    with step("validate-data", tables):
        from datetime import UTC, datetime

        from pipeline.core.champion import find_champion, find_served
        from pipeline.core.contract import load
        from pipeline.core.documents import log_metrics
        from pipeline.steps.validate_data import markdown
        from pipeline.steps.validate_data import validate_data as run

        loaded = load(model)
        champion = find_champion(model_store, model_name, champion_version)
        served = find_served(model_store, model_name, served_version)
        result = run(
            loaded,
            {table.name: Path(tables.path) / table.name for table in loaded.tables},
            Path(report.path),
            data_version=data_version,
            today=datetime.now(UTC).date(),
            reference=champion.lineage["data"]["profile"] if champion else None,
            served=served.found.lineage["data"]["profile"] if served and served.found else None,
        )
        Path(summary.path).write_text(markdown(result))
        log_metrics(metrics, {f"{name} rows": rows for name, rows in result["profile"]["rows"].items()})
        log_metrics(metrics, {"warnings": sum(not check["passed"] for check in result["checks"])})


@_component
def preprocess_data(model: str, tables: Input[Dataset], examples: Output[Dataset]) -> None:
    """Make training examples, all numeric, in splits that do not leak; learn the normalisation constants."""
    from pathlib import Path

    from pipeline.core.log import step

    with step("preprocess-data", tables):
        from pipeline.core.contract import load
        from pipeline.steps.preprocess_data import preprocess_data as run

        loaded = load(model)
        folders = {table.name: Path(tables.path) / table.name for table in loaded.tables}
        description = run(loaded, folders, Path(examples.path))
        examples.metadata["labels"] = len(description["labels"])
        for split, size in description["splits"].items():
            examples.metadata[f"{split} examples"] = size["examples"]
            examples.metadata[f"{split} rows"] = size["rows"]


@_component
def train_model(
    model: str,
    examples: Input[Dataset],
    hyperparameters: dict,
    data_version: str,
    keras_model: Output[Model],
    predictions: Output[Dataset],
    report: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Train the Keras network, and keep its predictions on the test data."""
    from pathlib import Path

    from pipeline.core.log import step

    with step("train-model", examples, draws=False):
        from pipeline.core.contract import load
        from pipeline.core.documents import log_metrics
        from pipeline.steps.train_model import train_model as run

        result = run(
            load(model),
            Path(examples.path),
            Path(keras_model.path),
            Path(predictions.path),
            Path(report.path),
            hyperparameters=hyperparameters,
            data_version=data_version,
        )
        best = result["history"][result["best_epoch"] - 1]
        keras_model.metadata.update(
            framework="keras", weights_sha256=result["weights_sha256"], **result["hyperparameters"]
        )
        log_metrics(metrics, {name: value for name, value in best.items() if name != "seconds" and value is not None})


@_component
def evaluate_model(
    model: str,
    examples: Input[Dataset],
    predictions: Input[Dataset],
    model_store: str,
    model_name: str,
    champion_version: str,
    served_version: str,
    gate_mode: str,
    thresholds: dict,
    evaluation: Output[Artifact],
    verdict: Output[Artifact],
    metrics: Output[Metrics],
    confusion: Output[ClassificationMetrics],
    page: Output[HTML],
) -> None:
    """Judge the model on each test split, beside the baseline, the champion and the version that is served."""
    from pathlib import Path

    from pipeline.core.log import step

    with step("evaluate-model", examples, predictions):
        from pipeline.core.champion import find_served, search
        from pipeline.core.contract import load
        from pipeline.core.documents import log_metrics
        from pipeline.core.report import evaluation_html
        from pipeline.steps.evaluate_model import evaluate_model as run

        loaded = load(model)
        found = search(model_store, model_name, champion_version)
        result, decision = run(
            loaded,
            Path(examples.path),
            Path(predictions.path),
            Path(evaluation.path),
            Path(verdict.path),
            champion=found.champion,
            champion_version=champion_version,
            served=find_served(model_store, model_name, served_version),
            damaged=found.damaged,
            mode=gate_mode,
            thresholds=thresholds,
        )
        Path(page.path).write_text(evaluation_html(loaded, result, decision))
        if matrix := result["figures"].get("confusion"):
            confusion.log_confusion_matrix(result["labels"], matrix)
        for who in ("model", "baseline", "champion", "served"):
            for split in result["model"]:
                scores = (result[who] or {}).get(split) or {}
                for metric in loaded.all_metrics:
                    if scores.get(metric.name) is not None:
                        log_metrics(metrics, {f"{who} {split} {metric.name}": scores[metric.name]})
        verdict.metadata.update(passed=decision["passed"], mode=decision["mode"], summary=decision["summary"])


@_component
def convert_model(
    keras_model: Input[Model],
    examples: Input[Dataset],
    training: Input[Artifact],
    model_name: str,
    version: str,
    data_version: str,
    onnx_model: Output[Model],
) -> None:
    """Convert the Keras model to ONNX, the format that is served."""
    from pathlib import Path

    from pipeline.core.log import step

    with step("convert-model", keras_model, examples, training, draws=False):
        from pipeline.steps.convert_model import convert_model as run

        properties = run(
            Path(keras_model.path),
            Path(examples.path),
            Path(training.path),
            Path(onnx_model.path),
            model_name=model_name,
            version=version,
            data_version=data_version,
        )
        onnx_model.metadata.update(framework="onnx", **properties)


@_component
def verify_model(
    model: str,
    verdict: Input[Artifact],
    onnx_model: Input[Model],
    examples: Input[Dataset],
    predictions: Input[Dataset],
    training: Input[Artifact],
    model_name: str,
    parity: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Stop the run if the model is not good enough; verify on the test data that ONNX does what Keras does."""
    from pathlib import Path

    from pipeline.core.log import require, step

    with step("verify-model", verdict):
        from pipeline.core.documents import log_metrics
        from pipeline.steps.gate import gate

        # Before anything is loaded. Not in evaluate-model: Kubeflow loses the outputs of a step that fails.
        gate(Path(verdict.path))
        require(onnx_model, examples, predictions, training)
        from pipeline.core.contract import load
        from pipeline.steps.verify_model import verify_model as run

        result = run(
            load(model),
            Path(onnx_model.path),
            Path(examples.path),
            Path(predictions.path),
            Path(training.path),
            Path(parity.path),
            model_name=model_name,
        )
        for entry in result["runtimes"]:
            for name in ("max_absolute", "max_relative", "decisions_changed"):
                log_metrics(metrics, {f"{entry['runtime']} {name}": entry[name]})


@_component
def publish_model(
    model: str,
    fetched: Input[Artifact],
    onnx_model: Input[Model],
    examples: Input[Dataset],
    predictions: Input[Dataset],
    training: Input[Artifact],
    validation: Input[Artifact],
    evaluation: Input[Artifact],
    verdict: Input[Artifact],
    parity: Input[Artifact],
    model_store: str,
    model_name: str,
    version: str,
    data_version: str,
    run_id: str,
    run_name: str,
    commit: str,
    commit_time: str,
    image: str,
    prod_flag: bool,
    cluster_domain: str,
    namespace: str,
    published: Output[Model],
    card: Output[HTML],
    summary: Output[Markdown],
) -> None:
    """Save the model where the model server reaches it, with its card and its lineage."""
    import json
    from pathlib import Path

    from pipeline.core.log import require, step

    with step("publish-model", fetched, onnx_model, examples, predictions, training):
        require(validation, evaluation, verdict, parity)
        from pipeline.core.candidate import line
        from pipeline.core.contract import load
        from pipeline.core.documents import write_json
        from pipeline.core.report import summary_markdown
        from pipeline.steps.publish_model import publish_model as run

        result = run(
            model=load(model),
            store=model_store,
            onnx_file=Path(onnx_model.path),
            preprocessing=Path(examples.path),
            predictions=Path(predictions.path),
            training=Path(training.path),
            validation=Path(validation.path),
            evaluation=Path(evaluation.path),
            verdict=Path(verdict.path),
            parity=Path(parity.path),
            model_name=model_name,
            version=version,
            data_version=data_version,
            data=json.loads(Path(fetched.path).read_text()),
            run_id=run_id,
            run_name=run_name,
            commit=commit,
            commit_time=commit_time,
            image=image,
            prod_flag=prod_flag,
            cluster_domain=cluster_domain,
            namespace=namespace,
        )
        published.metadata.update(
            uri=result.uri, number=result.number, version=version, framework="onnx", passed=result.passed
        )
        write_json(Path(published.path), result.lineage)
        Path(card.path).write_bytes(result.card)
        Path(summary.path).write_text(summary_markdown(result.lineage, result.uri))
        # Not a message for people: it has no time and no level.
        print(line(result.lineage), flush=True)
