"""The training pipeline: its graph, its parameters, and how a run of it is submitted by hand.

    fetch-data ─┬─ validate-data ───┬─ train-model ─┬─ evaluate-model ─┬─ verify-model ── publish-model
                └─ preprocess-data ─┘               └─ convert-model ──┘

On a cluster each step costs two pods, so there are few steps: evaluate-model judges the model, and the gate is the
first part of verify-model. ``python pipeline/prod_train_save_pipeline.py`` submits a run with the defaults.
"""

import sys
from datetime import UTC, datetime

from google.protobuf import json_format  # type: ignore[import-untyped]
from kfp import dsl, kubernetes
from kfp.dsl import PipelineTask
from kfp.dsl.base_component import BaseComponent

from pipeline import components
from pipeline.checkout import head
from pipeline.core.contract import load
from pipeline.core.errors import JukeboxError, RequestRefused, ServerAway, ServerUnavailable, SettingsInvalid
from pipeline.core.trusted_ca import CONFIG_MAP, FILE
from pipeline.settings import Settings, read_settings
from pipeline.steps.fetch_data import resolve_data_version
from scripts.clients.kfp_server import Json, Kfp, spec_alone
from scripts.clients.pipeline_server import find_server

VERSION = "0.0.2"

# The keys of an S3 data connection; pipeline/core/s3.py reads the variables of the same names.
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_S3_ENDPOINT", "AWS_DEFAULT_REGION")

MINUTE = 60
STEP_TIMEOUT = 30 * MINUTE
TRAIN_TIMEOUT = 6 * 60 * MINUTE


DESCRIPTION = """Train and save the model {name}.

Args:
    data_version: Digest that names the data; `jukebox data-version` prints it.
    data: Where the tables ({tables}) are: https://, s3://, file:// or a path; one file, a folder or a glob.
    sha256: Digest that a table must have, by the table's name; missing or empty: not checked.
    hyperparameters: {hyperparameters}.
    model_name: Name of the model in the store and on the model server.
    version: Semantic version of the model's definition.
    cluster_domain: Domain of the cluster's routes, for the address on the model card.
    model_storage_pvc: Claim that holds the model store.
    model_store: Root of the model store: a path on the claim, or s3://bucket/prefix as in the settings.
    champion_version: Number of the version to compare with, or none; empty: the champion.
    served_version: Number of the version that production serves, which is compared with, too; empty: none.
    gate_mode: enforce, warn or off; a model that did not pass is never served, and kept only with warn or off.
    thresholds: {checks}.
    prod_flag: Whether the version may be proposed for production.
    commit: Git commit of the pipeline's source.
    cache: Runs with the same text share cached steps; a new text runs all steps.
    commit_time: Time of the commit, ISO 8601; an older commit is not published after a newer one. Empty: not checked.
"""


def build_pipeline(settings: Settings, *, image: str = "") -> BaseComponent:
    """Return the pipeline with the sizes and defaults of ``settings``; ``image`` replaces theirs if it is given.

    Raises SettingsInvalid if the settings' model does not exist, or if its tables are not those of the data.
    """
    image = image or settings.image
    loaded = load(settings.model_name)
    loaded.require_tables(settings.data, "data in the settings")
    model = settings.model_name

    def prod_train_save(
        data_version: str,
        data: dict = dict(settings.data),  # noqa: B006
        sha256: dict = {},  # noqa: B006
        hyperparameters: dict = {"epochs": loaded.hyperparameters.epochs},  # noqa: B006
        model_name: str = settings.model_name,
        version: str = VERSION,
        cluster_domain: str = settings.cluster_domain,
        model_storage_pvc: str = settings.model_storage_pvc,
        model_store: str = settings.model_store,
        champion_version: str = "",
        served_version: str = "",
        gate_mode: str = "enforce",
        thresholds: dict = {check.name: check.threshold for check in loaded.all_checks},  # noqa: B006
        prod_flag: bool = False,
        commit: str = "",
        cache: str = "",
        commit_time: str = "",
    ) -> None:
        run = {"run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER, "run_name": dsl.PIPELINE_JOB_NAME_PLACEHOLDER}
        store = {"model_store": model_store, "model_name": model_name}
        beside = {"champion_version": champion_version, "served_version": served_version}

        fetched = components.fetch_data(
            model=model,
            data=data,
            data_version=data_version,
            sha256=sha256,
            # The server's cache identifies the inputs of a step by their artifacts' ids. If this step runs again, they
            # are new, so all later steps run again as well.
            cache=cache,
        )
        tables = fetched.outputs["tables"]
        validated = components.validate_data(model=model, tables=tables, **store, **beside, data_version=data_version)
        preprocessed = components.preprocess_data(model=model, tables=tables)
        examples = preprocessed.outputs["examples"]
        trained = components.train_model(
            model=model, examples=examples, hyperparameters=hyperparameters, data_version=data_version
        ).after(validated)
        predictions, training = trained.outputs["predictions"], trained.outputs["report"]
        evaluated = components.evaluate_model(
            model=model,
            examples=examples,
            predictions=predictions,
            **store,
            **beside,
            gate_mode=gate_mode,
            thresholds=thresholds,
        )
        converted = components.convert_model(
            keras_model=trained.outputs["keras_model"],
            examples=examples,
            training=training,
            model_name=model_name,
            version=version,
            data_version=data_version,
        )
        verified = components.verify_model(
            model=model,
            verdict=evaluated.outputs["verdict"],
            onnx_model=converted.outputs["onnx_model"],
            examples=examples,
            predictions=predictions,
            training=training,
            model_name=model_name,
        )
        published = components.publish_model(
            model=model,
            fetched=fetched.outputs["report"],
            **store,
            **run,
            onnx_model=converted.outputs["onnx_model"],
            examples=examples,
            predictions=predictions,
            training=training,
            validation=validated.outputs["report"],
            evaluation=evaluated.outputs["evaluation"],
            verdict=evaluated.outputs["verdict"],
            parity=verified.outputs["parity"],
            version=version,
            data_version=data_version,
            commit=commit,
            commit_time=commit_time,
            image=image,
            prod_flag=prod_flag,
            cluster_domain=cluster_domain,
            namespace=settings.namespace,
        )

        steps = (
            fetched,
            validated,
            preprocessed,
            trained,
            evaluated,
            converted,
            verified,
            published,
        )
        stores = (validated, evaluated, published)
        mounting = stores if settings.on_claim else ()
        # Each step has only the Secret that it needs: a step that reads the data cannot write to the model store.
        secrets = {fetched.name: settings.data_secret}
        if not settings.on_claim:
            secrets |= {task.name: settings.store_secret for task in stores}
        places = {
            trained.name: (settings.train_nodes, settings.train_taint),
            **{task.name: (settings.store_nodes, settings.store_taint) for task in mounting},
        }
        for task in steps:
            _size(task, settings, image)
            _place(task, *places.get(task.name, (settings.nodes, settings.taint)))
            if settings.pull_secret:
                kubernetes.set_image_pull_secrets(task, [settings.pull_secret])
        # For a lost node or a server that restarts; other failures recur, and training is long.
        for task, times, timeout in (
            (fetched, 2, STEP_TIMEOUT),
            (trained, 1, TRAIN_TIMEOUT),
            (published, 2, STEP_TIMEOUT),
        ):
            # Argo counts backoff_max_duration from the start of the first try, and stops the try that runs at its end.
            task.set_retry(times, backoff_duration="15s", backoff_max_duration=f"{(times + 2) * timeout}s")
        # The store changes between runs with the same arguments, and a cached gate checks nothing.
        for task in (validated, evaluated, verified, published):
            task.set_caching_options(enable_caching=False)
        for task in mounting:
            kubernetes.mount_pvc(task, model_storage_pvc, settings.model_store)
        for task in steps:
            if task.name not in secrets:
                continue
            kubernetes.use_secret_as_env(task, secrets[task.name], {key: key for key in S3_KEYS}, optional=True)
            kubernetes.use_config_map_as_volume(task, CONFIG_MAP, str(FILE.parent), optional=True)
            for name, value in settings.proxies.items():
                task.set_env_variable(name, value)

    # Kubeflow reads the parameters' descriptions here.
    prod_train_save.__doc__ = DESCRIPTION.format(
        name=loaded.name,
        tables=", ".join(settings.data),
        hyperparameters=", ".join(type(loaded.hyperparameters).model_fields),
        checks=", ".join(check.name for check in loaded.all_checks),
    )
    pipeline: BaseComponent = dsl.pipeline(
        name=settings.pipeline,
        display_name=f"Train and save the model {loaded.name}",
        description=f"{loaded.title}: fetched, validated, trained, judged, converted to ONNX, verified and saved where "
        "the model server reaches it.",
    )(prod_train_save)
    return pipeline


def _size(task: PipelineTask, settings: Settings, image: str) -> None:
    """Set what every task has: its image, its name in the dashboard, its resources and its timeout."""
    training = task.name == "train-model"
    cpu, memory = (settings.train_cpu, settings.train_memory) if training else (settings.step_cpu, settings.step_memory)
    task.set_container_image(image).set_display_name(task.name.replace("-", " ").capitalize())
    if "@sha256:" in image:
        # A digest has one content for ever, whatever tag stands before it: what the node has is right.
        kubernetes.set_image_pull_policy(task, "IfNotPresent")
    if settings.platform == "kubeflow":
        # All that Pod Security's level restricted misses of a step. OpenShift sees to it itself.
        kubernetes.set_security_context(task, run_as_non_root=True)
    # Requests equal limits: the pod is Guaranteed, and no step is evicted for another's memory.
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    if training and int(settings.train_gpus):
        task.set_accelerator_type(settings.gpu_resource).set_accelerator_limit(settings.train_gpus)
    kubernetes.set_timeout(task, TRAIN_TIMEOUT if training else STEP_TIMEOUT)


def _place(task: PipelineTask, nodes: str, taint: str) -> None:
    """Choose the nodes of a task by a label, ``label=value``, and let it run where there is a taint of that key."""
    if nodes:
        label, _, value = nodes.partition("=")
        kubernetes.add_node_selector(task, label, value)
    if taint:
        kubernetes.add_toleration(task, key=taint, operator="Exists")


def this_week() -> str:
    """Return the week (ISO 8601, UTC), as ``2026-W48``: the parameter ``cache`` of the runs that are started in it.

    The server never looks if what it has cached is still in its bucket, which may delete it after some days. So a run
    takes nothing from the cache that is older than a week.
    """
    return f"{datetime.now(UTC):%G-W%V}"


def spec_of(pipeline: BaseComponent) -> Json:
    """Return what the pipeline is compiled to, as the pipeline server takes it."""
    return {
        "pipeline_spec": json_format.MessageToDict(pipeline.pipeline_spec),
        "platform_spec": json_format.MessageToDict(pipeline.platform_spec),
    }


def start_run(kfp: Kfp, spec: Json, parameters: Json, *, name: str, experiment: str) -> str:
    """Start a run of a compiled pipeline that has no version on the server; return the run's id.

    ``experiment`` is created if it does not exist. Raises ServerUnavailable, in two lines, if the server refuses the
    run.
    """
    try:
        body = {
            "display_name": name,
            "experiment_id": kfp.create_experiment(experiment),
            "pipeline_spec": spec,
            "runtime_config": {"parameters": parameters},
        }
        return str(kfp.create_run(body)["run_id"])
    except (RequestRefused, ServerAway) as error:
        raise ServerUnavailable(
            f"The run cannot be started. {error}\n"
            "Before you try again, check in the dashboard whether it was started nevertheless."
        ) from None


def newest_image(kfp: Kfp, pipeline: str) -> str:
    """Return the training image, by digest, of the newest version on the server: the CI has built and pushed it.

    Raises SettingsInvalid if no version names its image by digest, and the errors of the server's client.
    """
    found = kfp.pipeline(pipeline)
    for version in kfp.versions(found["pipeline_id"]) if found else ():
        spec = spec_alone(version.get("pipeline_spec", {}))
        executors = spec.get("deploymentSpec", {}).get("executors", {}).values()
        images = {str(executor.get("container", {}).get("image", "")) for executor in executors}
        if len(images) == 1 and "@sha256:" in (image := images.pop()):
            return image
    raise SettingsInvalid(
        f"no version of {pipeline} on the server names an image by digest, but a run needs an image that can be "
        "pulled: push a commit, so that the CI builds one; or, by hand, `jukebox compile --image IMAGE@sha256:DIGEST`, "
        "then `jukebox apply`"
    )


def submit() -> None:
    """Submit a run with the default parameters to the project's pipeline server, and print its address.

    It runs this checkout's pipeline in the image of the newest version there, unless the settings name one by digest.
    Raises ServerUnavailable if no server answers, and the errors of reading the settings and the data.
    """
    settings = read_settings()
    server = find_server(settings)
    print(f"Connecting to Data Science Pipelines: {server.host}", flush=True)
    server.probe()
    kfp = Kfp(lambda: server)
    image = settings.image if "@sha256:" in settings.image else newest_image(kfp, settings.pipeline)
    print(f"Image: {image}", flush=True)
    data_version = resolve_data_version(settings.data)
    run = start_run(
        kfp,
        spec_of(build_pipeline(settings, image=image)),
        {"data_version": data_version, "commit": head(), "cache": this_week()},
        name=f"{settings.pipeline}-by-hand-{data_version[:12]}",
        experiment=settings.model_name,
    )
    print(f"Run {run} started: {server.host}/#/runs/details/{run}")


if __name__ == "__main__":
    try:
        submit()
    except JukeboxError as error:
        sys.exit(str(error))
