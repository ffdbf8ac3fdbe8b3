import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.contract import load
from pipeline.core.errors import SettingsInvalid
from pipeline.settings import SETTINGS_FILE as OWN
from pipeline.settings import read_settings
from scripts.compile_pipeline import pipeline_resources
from tests.settings_file import SETTINGS_FILE

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the project's settings with some of their values changed; None takes a key out."""

    def write(**changes: Any) -> Path:
        document = yaml.safe_load(SETTINGS_FILE.read_text())
        data = document["data"] | {name.replace("_", "-"): value for name, value in changes.items()}
        document["data"] = {key: value for key, value in data.items() if value is not None}
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


def test_the_settings_of_this_repository_are_in_order() -> None:
    """A fork has put its own values there, which no test but this reads."""
    load(read_settings(OWN).model_name).require_tables(read_settings(OWN).data, "data in the settings")
    own, ours = (yaml.safe_load(file.read_text())["data"] for file in (OWN, SETTINGS_FILE))
    assert list(own) == list(ours), f"a setting is in one of {OWN} and {SETTINGS_FILE} alone"


def test_the_settings_that_the_product_comes_with_are_in_order() -> None:
    settings = read_settings()
    assert settings.model_name == "jukebox"
    assert settings.model_storage_pvc == "jukebox-model-pvc"
    assert settings.namespace.endswith("-jukebox")
    assert settings.on_claim


def test_every_value_comes_from_the_file(write: Write) -> None:
    changed = read_settings(write(namespace="ada-jukebox", train_memory="64Gi", model_store="s3://bucket/models"))
    assert changed == replace(
        read_settings(), namespace="ada-jukebox", train_memory="64Gi", model_store="s3://bucket/models"
    )
    assert not changed.on_claim


def test_names_follow_from_the_models(write: Write) -> None:
    settings = read_settings(write(model_name="cars"))
    assert (settings.pipeline, settings.model_storage_pvc) == ("cars-prod-train-save", "cars-model-pvc")
    assert read_settings(write(model_name="cars", model_storage_pvc="models")).model_storage_pvc == "models"
    # That of installations there are, from before there could be another model.
    assert read_settings().pipeline == "prod-train-save"


def test_another_file_is_named_by_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUKEBOX_SETTINGS", str(write(namespace="ada-jukebox")))
    assert read_settings().namespace == "ada-jukebox"
    assert read_settings(SETTINGS_FILE).namespace != "ada-jukebox"
    monkeypatch.setenv("JUKEBOX_SETTINGS", "nowhere.yaml")
    with pytest.raises(SettingsInvalid, match=r"nowhere\.yaml"):
        read_settings()


def test_keys_of_others_are_welcome(write: Write) -> None:
    assert read_settings(write(alert_receiver="somebody")) == read_settings()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"namespace": None}, "namespace is missing"),
        ({"step_cpu": 1}, "step-cpu is 1, expected text: put it in quotes"),
        ({"train_gpus": False}, "train-gpus is False, expected text"),
        ({"image": ["a"]}, "image is ['a'], expected text"),
        ({"model_name": "../a"}, "model-name is '../a', expected lower case letters, digits and dashes"),
        ({"model_name": "a" * 41}, "expected lower case letters, digits and dashes, at most 40"),
        ({"model_storage_pvc": "a b"}, "model-storage-pvc is 'a b', expected the name of a claim, or nothing"),
        *(
            ({"data": text}, "data is not a line for each table, as `table: s3://bucket/table/*.parquet`")
            for text in ("", "s3://bucket", "a:", "- a", "a: 1", "a: it's", "A: a", "{", "a: {b: c}")
        ),
        ({"step_cpu": "two"}, "step-cpu is 'two', expected cores as 2, 0.5 or 500m"),
        ({"train_cpu": "2Gi"}, "train-cpu is '2Gi', expected cores"),
        ({"step_memory": "2 GB"}, "step-memory is '2 GB', expected bytes as 512Mi or 2Gi"),
        ({"step_memory": "500m"}, "step-memory is '500m', expected bytes"),
        ({"train_memory": "1.5Gi"}, "train-memory is '1.5Gi', expected bytes"),
        ({"train_memory": "-1Gi"}, "train-memory is '-1Gi', expected bytes"),
        ({"event_max_size": "0"}, "event-max-size is '0', expected bytes as 512k or 5m"),
        ({"event_rate": "20"}, "event-rate is '20', expected events a second or minute as 20r/s or 600r/m"),
        ({"event_burst": "10000"}, "event-burst is '10000', expected a whole number from 1 to 9999"),
        ({"train_gpus": "0.5"}, "train-gpus is '0.5', expected a whole number"),
        ({"platform": "openshift"}, "platform is 'openshift', expected kubeflow or openshift-ai"),
        (
            {"kfp_endpoint": "ml-pipeline:8888"},
            "kfp-endpoint is 'ml-pipeline:8888', expected an address as http://host",
        ),
        ({"model_store": "models"}, "model-store is 'models', expected a path on the claim as /models"),
        ({"model_store": "gs://bucket"}, "model-store is 'gs://bucket', expected a path"),
        ({"pull_secret": "jukebox-registry"}, "expected the name of a Secret, or nothing; not jukebox-registry"),
        ({"pull_secret": "Of Ada"}, "pull-secret is 'Of Ada', expected the name of a Secret, or nothing"),
        ({"https_proxy": "proxy:3128"}, "https-proxy is 'proxy:3128', expected an address as http://proxy.example.com"),
        ({"http_proxy": "http://proxy:3128/?a"}, "http-proxy is 'http://proxy:3128/?a', expected an address"),
        ({"http_proxy": "http://proxy:3128"}, "https-proxy is empty and http-proxy is not: set the proxy here as well"),
        ({"no_proxy": ".svc, .cluster.local"}, "no-proxy is '.svc, .cluster.local', expected hosts with commas"),
        (
            {"https_proxy": "http://proxy:3128", "no_proxy": "$(KUBERNETES_SERVICE_HOST),not.svc"},
            "no-proxy lacks .svc and .cluster.local, which are in the cluster, where no proxy reaches them: add them",
        ),
        ({"nodes": "ml"}, "nodes is 'ml', expected a label as label=value, or nothing"),
        ({"train_nodes": "a=b=c"}, "train-nodes is 'a=b=c', expected a label"),
        ({"store_nodes": "=value"}, "store-nodes is '=value', expected a label"),
        ({"taint": "a=b"}, "taint is 'a=b', expected the key of a taint, or nothing"),
        ({"train_taint": "a b"}, "train-taint is 'a b', expected the key of a taint"),
        ({"store_taint": "example.com/"}, "store-taint is 'example.com/', expected the key of a taint"),
        ({"git_api": "git.example.com/api"}, "git-api is 'git.example.com/api', expected an address"),
        ({"prod_branch": "-f"}, "prod-branch is '-f', expected the name of a branch"),
        ({"prod_branch": "main"}, "prod-branch is 'main', the branch to train from: name another"),
        ({"merge_promotions": "always"}, "merge-promotions is 'always', expected never or after-checks"),
        ({"rollback_on_failure": True}, "rollback-on-failure is True, expected text: put it in quotes"),
        ({"rollback_on_failure": "true"}, "rollback-on-failure is 'true', expected no or yes"),
        ({"keep_versions": "0"}, "keep-versions is '0', expected a whole number from 1"),
        ({"keep_pinned": "few"}, "keep-pinned is 'few', expected a whole number from 1"),
        ({"prod_cluster": "here"}, "prod-cluster is 'here', expected the address of a cluster's API"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_value_is_named_with_what_it_should_be(write: Write, changes: dict[str, Any], message: str) -> None:
    path = write(**changes)
    with pytest.raises(SettingsInvalid, match=re.escape(message)) as raised:
        read_settings(path)
    assert str(path) in str(raised.value)


def test_all_wrong_values_are_named_at_once(write: Write) -> None:
    with pytest.raises(SettingsInvalid) as raised:
        read_settings(write(namespace=None, step_cpu="two", model_name=5))
    for key in ("namespace", "step-cpu", "model-name"):
        assert key in str(raised.value)


@pytest.mark.parametrize("key", ["s3_secret", "store_secret"])
def test_an_identity_of_s3_is_not_two(write: Write, key: str) -> None:
    with pytest.raises(SettingsInvalid, match="s3-secret, data-secret, store-secret name the same Secret twice"):
        read_settings(write(**{key: read_settings().data_secret}))


@pytest.mark.parametrize("key", ["repository", "run_page", "model_store"])
def test_credentials_do_not_belong_here_and_are_not_shown(write: Write, key: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"{key.replace('_', '-')} holds credentials") as raised:
        read_settings(write(**{key: "https://ada:hidden@git.example.com/jukebox"}))
    assert "hidden" not in str(raised.value)


SECRETS = [
    ("https://b.s3.amazonaws.com/s.csv?X-Amz-Algorithm=A&X-Amz-Signature=hidden", "is a signed URL"),
    ("https://b.s3.amazonaws.com/s.csv?x-amz-signature=hidden", "is a signed URL"),
    ("https://b.s3.amazonaws.com/s.csv?X-Amz%2DSignature=hidden", "is a signed URL"),
    ("https://b.s3.amazonaws.com/s.csv?AWSAccessKeyId=A&Signature=hidden&Expires=1", "is a signed URL"),
    ("https://storage.googleapis.com/b/s.csv?X-Goog-Signature=hidden", "is a signed URL"),
    ("https://a.blob.core.windows.net/c/s.csv?sv=2024&sig=hidden", "is a signed URL"),
    ("s3://bucket/s.csv?X-Amz-Security-Token=hidden", "holds credentials"),
    ("https://git.example.com/raw/s.csv?private_token=hidden", "holds credentials"),
    ("https://host/s.csv?a=1&api_key=hidden", "holds credentials"),
    ("https://ada:hidden@host/s.csv", "holds credentials"),
    ("https://hidden@host/s.csv", "holds credentials"),
    ("s3://KEY:hid/hidden@bucket/s.csv", "holds credentials"),
    ("https://ada:#hidden@host/s.csv", "holds credentials"),
]


@pytest.mark.parametrize(("value", "what"), SECRETS)
@pytest.mark.parametrize("key", ["repository", "data", "model_store", "kfp_endpoint", "package_index", "vault_server"])
def test_no_setting_may_hold_what_lets_its_reader_in_and_none_is_shown(
    write: Write, key: str, value: str, what: str
) -> None:
    with pytest.raises(
        SettingsInvalid, match=f"{key.replace('_', '-')} {what}, .* put the credentials into a"
    ) as raised:
        read_settings(write(**{key: yaml.safe_dump({"a": "s3://b", "c": value}) if key == "data" else value}))
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "value",
    [
        "https://host:8443/a@b/s.csv",
        "https://host:8443?at=a@b",
        "s3://bucket/ada@example.com/*.parquet",
        "https://host/s.csv?signatures=1&design=2&tokens=3&page_token=4",
        "/data/signature=1/s.csv",
        "file:///data/s?.csv",
    ],
)
def test_what_only_looks_like_a_secret_is_taken(write: Write, value: str) -> None:
    tables = {"cars": "https://host:8443/a", "bikes": value}
    assert read_settings(write(data=yaml.safe_dump(tables))).data == tables


@pytest.mark.parametrize("text", ["data:\n  data: https://ada:hidden@host\n bad", "data: https://ada:hidden@host"])
def test_a_file_that_cannot_be_read_is_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(SettingsInvalid, match="is not a ConfigMap with data") as raised:
        read_settings(path)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("key", ["http_proxy", "https_proxy"])
@pytest.mark.parametrize("value", ["ada:hidden@proxy:3128", "http://ada:hidden/1@proxy:3128", "http://hidden@proxy"])
def test_the_password_of_a_proxy_does_not_belong_here_and_is_not_shown(write: Write, key: str, value: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"{key.replace('_', '-')} holds .*: use a proxy") as raised:
        read_settings(write(**{key: value}))
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("label", ["kubernetes.io/os=linux", "node-role.kubernetes.io/infra=", "pool=ML_1.2-x"])
def test_a_label_of_nodes_is_taken(write: Write, label: str) -> None:
    assert read_settings(write(nodes=label)).nodes == label


def test_without_a_proxy_there_are_no_variables_and_else_all_in_both_spellings(write: Write) -> None:
    assert read_settings().proxies == {}
    found = read_settings(write(https_proxy="http://one:1", http_proxy="http://two:2/")).proxies
    names = {name: found[name.lower()] for name in found if name.isupper()}
    assert names == {"HTTPS_PROXY": "http://one:1", "HTTP_PROXY": "http://two:2/", "NO_PROXY": read_settings().no_proxy}
    assert len(found) == 6
    for entry in ("$(KUBERNETES_SERVICE_HOST)", ".svc", ".cluster.local", "localhost"):
        assert entry in found["no_proxy"].split(",")


@pytest.mark.parametrize("text", ["", "data:", "data: [1]", "data: text", "- 1", "data: {", "\0", "kind: ConfigMap"])
def test_a_file_that_is_no_config_map_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(SettingsInvalid, match=re.escape(f"{path} is not a ConfigMap with data")):
        read_settings(path)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes("data: {namespace: müller}".encode("latin-1"))
    with pytest.raises(SettingsInvalid, match=re.escape(str(path))):
        read_settings(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"nowhere\.yaml is not a ConfigMap with data: .*No such file"):
        read_settings(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("cpu", "memory"), [("1", "2Gi"), ("0.5", "512Mi"), (".5", "1000000000"), ("1500m", "2G"), ("16", "1Ti")]
)
def test_what_the_settings_take_kubeflow_takes_too(write: Write, cpu: str, memory: str) -> None:
    pytest.importorskip("pipeline.models.jukebox")
    settings = read_settings(write(step_cpu=cpu, step_memory=memory))
    _, version = pipeline_resources(settings)
    resources = version["spec"]["pipelineSpec"]["deploymentSpec"]["executors"]["exec-verify-model"]["container"][
        "resources"
    ]
    assert (resources["resourceCpuLimit"], resources["resourceMemoryLimit"]) == (cpu, memory)
