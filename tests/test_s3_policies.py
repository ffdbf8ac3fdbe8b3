"""The three S3 identities with the policies that docs/s3-policies gives them, as AWS enforces these."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.core import store as store_module
from pipeline.core.champion import find_champion, read_version
from pipeline.core.errors import StoreBroken
from pipeline.core.s3 import s3_client
from pipeline.core.store import open_store
from pipeline.models.jukebox import MODEL
from pipeline.models.jukebox.sample import generate
from pipeline.steps.fetch_data import fetch_data, resolve_data_version
from tests.active_model import TABLES
from tests.core.test_store import (
    PUBLISHERS,
    killed_at_each_write,
    publish_another,
    publish_first,
    publish_many,
    shared_client,
    unique_dense_and_whole,
)
from tests.s3_policies import IDENTITIES, POLICIES, identities
from tests.s3_server import S3Server
from tests.versions import publish_version

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

STORE = "models/jukebox"
FILES = ("model.onnx", "labels.json", "golden.json", "lineage.json", "model-card.html")


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    return s3.bucket()


@pytest.fixture(scope="module")
def known(s3: S3Server, bucket: str) -> Iterator[dict[str, dict[str, str]]]:
    with identities(s3, bucket) as found:
        yield found


Become = Callable[[str], "S3Client"]


@pytest.fixture
def become(known: dict[str, dict[str, str]], s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> Become:
    """Have the environment be that of a step with the Secret of this identity; return such a client."""
    shared_client()  # the administrator's, by which other tests' functions look at a bucket

    def become(identity: str) -> "S3Client":
        for name, value in known[identity].items():
            monkeypatch.setenv(name, value)
        client = s3_client()
        # It takes a third of a second to make one.
        monkeypatch.setattr(store_module, "s3_client", lambda: client)
        return client

    return become


@pytest.fixture
def empty(s3: S3Server, bucket: str, become: Become) -> Callable[[], str]:
    """Empty the bucket, and return the root of a store in it; the environment is that of who publishes."""
    become("store")

    def empty() -> str:
        for key in all_of(s3, bucket):
            s3.client.delete_object(Bucket=bucket, Key=key)
        return f"s3://{bucket}/models"

    return empty


@pytest.fixture
def root(empty: Callable[[], str]) -> str:
    """A store with a champion, version 1, and with one that failed, 2."""
    root = empty()
    publish_version(root, "a")
    publish_version(root, "failed", passed=False, apart=True)
    return root


def all_of(s3: S3Server, bucket: str) -> dict[str, bytes]:
    entries = s3.client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {each["Key"]: s3.client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read() for each in entries}


def test_who_may_only_add_publishes_finds_the_champion_and_reads_any_version(root: str) -> None:
    assert publish_version(root, "b", worse_by=-0.1, than=1) == 3
    assert publish_version(root, "a") == 1, "a run that is tried again"
    assert find_champion(root, "jukebox").version == 3  # type: ignore[union-attr]
    assert read_version(root, "jukebox", 2)
    store = open_store(root, "jukebox")
    assert (store.versions(), store.failed(), store.pinned()) == ([1, 3], [2], set())


def test_many_who_may_only_add_publish_at_once(empty: Callable[[], str]) -> None:
    root, barrier = empty(), threading.Barrier(PUBLISHERS)
    with ThreadPoolExecutor(PUBLISHERS) as pool:
        results = list(pool.map(lambda each: publish_many(root, str(each), barrier.wait), range(PUBLISHERS)))
    unique_dense_and_whole(root, results)


def test_who_may_only_add_finishes_for_one_that_was_killed_at_any_write(
    empty: Callable[[], str], become: Become, monkeypatch: pytest.MonkeyPatch
) -> None:
    for root in killed_at_each_write(monkeypatch, empty, publish_first, become("store")):
        publish_another(root)


def refused(request: Callable[..., Any], **arguments: Any) -> None:
    from botocore.exceptions import ClientError

    with pytest.raises(ClientError) as raised:
        request(**arguments)
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 412), raised.value


def test_who_publishes_can_neither_change_nor_delete_a_version_nor_add_to_it(
    s3: S3Server, bucket: str, root: str, become: Become
) -> None:
    client, before = become("store"), all_of(s3, bucket)
    for place in ("1", ".failed/2"):
        for name in FILES:
            key: Any = {"Bucket": bucket, "Key": f"{STORE}/{place}/{name}"}
            refused(client.put_object, **key, Body=b"mine")
            refused(client.put_object, **key, Body=b"mine", IfNoneMatch="*")
            refused(client.put_object, **key, Body=b"mine", IfMatch=client.head_object(**key)["ETag"])
            refused(client.copy_object, **key, CopySource=f"{bucket}/{STORE}/1/labels.json")
            refused(client.create_multipart_upload, **key)
            refused(client.delete_object, **key)
            refused(client.delete_objects, Bucket=bucket, Delete={"Objects": [{"Key": key["Key"]}]})
            refused(client.put_object_tagging, **key, Tagging={"TagSet": []})
    # A model server takes an OpenVINO model that lies beside the ONNX file.
    for name in ("1/model.xml", "1/model.bin", "1.pinned", "config.json", "1/saved_model.pb"):
        refused(client.put_object, Bucket=bucket, Key=f"{STORE}/{name}", Body=b"mine", IfNoneMatch="*")
    for name in (".claims/1", ".runs/0"):
        refused(client.delete_object, Bucket=bucket, Key=f"{STORE}/{name}")
    refused(client.put_object, Bucket=bucket, Key=f"{STORE}/.claims/1", Body=b"mine", IfNoneMatch="*")
    refused(client.put_object, Bucket=bucket, Key="models/other/1/model.onnx", Body=b"mine", IfNoneMatch="*")
    refused(client.put_bucket_policy, Bucket=bucket, Policy="{}")
    refused(client.delete_bucket, Bucket=bucket)
    assert all_of(s3, bucket) == before
    with pytest.raises(StoreBroken, match=r"AccessDenied: the keys are valid but not allowed to do this"):
        open_store(root, "jukebox").delete(1)


def test_what_somebody_puts_in_the_place_of_a_version_is_not_taken_for_it(
    s3: S3Server, bucket: str, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put there between the claim of the number and the first file."""
    move = store_module._S3Store._move

    def overtaken(self: Any, staged: str, place: str) -> None:
        s3.client.put_object(Bucket=bucket, Key=f"{STORE}/{place}/labels.json", Body=b"theirs")
        move(self, staged, place)

    with monkeypatch.context() as patch:
        patch.setattr(store_module._S3Store, "_move", overtaken)
        with pytest.raises(StoreBroken, match=r"jukebox/3/labels\.json exists, and differs from what .*delete-version"):
            publish_version(root, "b")
    assert open_store(root, "jukebox").versions() == [1]
    s3.client.delete_object(Bucket=bucket, Key=f"{STORE}/3/labels.json")
    assert publish_version(root, "b") == 3
    assert read_version(root, "jukebox", 3)


def test_who_reads_data_fetches_it_and_can_do_nothing_else(
    s3: S3Server, bucket: str, root: str, become: Become, tmp_path: Path
) -> None:
    made = generate(tmp_path, rows=300, last_day=date(2026, 5, 31))
    for name, file in made.items():
        s3.client.upload_file(str(file), bucket, f"{name}/a.parquet")
    client, before = become("data"), all_of(s3, bucket)
    forms = [
        {name: f"s3://{bucket}/{name}/*.parquet" for name in TABLES},
        {name: f"s3://{bucket}/{name}{part}" for name, part in zip(TABLES, ("", "/a.parquet"), strict=True)},
    ]
    for uris in forms:
        found = fetch_data(MODEL, uris, tmp_path / "tables", data_version=resolve_data_version(uris))
        assert all(table.rows > 0 for table in found.values())
    for key in (f"{TABLES[0]}/a.parquet", f"{TABLES[0]}/new.parquet", f"{STORE}/1/model.onnx", f"{STORE}/9/model.onnx"):
        refused(client.put_object, Bucket=bucket, Key=key, Body=b"mine", IfNoneMatch="*")
        refused(client.delete_object, Bucket=bucket, Key=key)
    refused(client.get_object, Bucket=bucket, Key=f"{STORE}/1/model.onnx")
    refused(client.list_objects_v2, Bucket=bucket)
    refused(client.list_objects_v2, Bucket=bucket, Prefix="models/")
    assert all_of(s3, bucket) == before
    with pytest.raises(StoreBroken, match="AccessDenied"):
        publish_version(root, "b")


def test_who_publishes_reads_no_data_and_nothing_of_another_model(bucket: str, root: str, become: Become) -> None:
    client = become("store")
    for key in (f"{TABLES[0]}/a.parquet", "models/other/1/model.onnx"):
        refused(client.get_object, Bucket=bucket, Key=key)
    for prefix in ("", f"{TABLES[0]}/", "models/", "models/other/"):
        refused(client.list_objects_v2, Bucket=bucket, Prefix=prefix)


def test_the_artifacts_identity_has_its_own_bucket_alone(s3: S3Server, bucket: str, become: Become) -> None:
    client, other = become("artifacts"), s3.bucket()
    client.put_object(Bucket=bucket, Key="prod-train-save/run/metrics", Body=b"1")
    assert client.get_object(Bucket=bucket, Key="prod-train-save/run/metrics")["Body"].read() == b"1"
    client.list_objects_v2(Bucket=bucket)
    for request in (client.put_object, client.get_object, client.delete_object):
        refused(request, Bucket=other, Key="models/jukebox/1/model.onnx")
    refused(client.list_objects_v2, Bucket=other)


def test_no_policy_gives_all_actions_or_more_than_its_own_bucket() -> None:
    for identity in IDENTITIES:
        document = json.loads((POLICIES / f"{identity}.json").read_text())
        for statement in document["Statement"]:
            assert "*" not in json.dumps(statement["Action"])
            assert statement["Effect"] == "Allow"
            named = statement["Resource"]
            for resource in [named] if isinstance(named, str) else named:
                assert resource.startswith(f"arn:aws:s3:::{identity.upper()}_BUCKET")
