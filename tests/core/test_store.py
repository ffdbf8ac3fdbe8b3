import errno
import functools
import itertools
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core import store as store_module
from pipeline.core.errors import GateRefused, SettingsInvalid, StoreBroken, VersionBroken
from pipeline.core.s3 import s3_client
from pipeline.core.store import Failed, ModelStore, open_store
from tests.s3_server import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NAMES = ("labels.json", "lineage.json", "model.onnx")


def files(text: str) -> dict[str, bytes]:
    """A version each of whose files tells, by its content, who has made it."""
    return {name: f"{name} of {text}\n".encode() * 1000 for name in NAMES}


def building(text: str) -> Callable[[int], Mapping[str, bytes]]:
    return lambda number: files(f"{text} as {number}")


def judging(root: str, text: str) -> Callable[[int], Mapping[str, bytes]]:
    """Build as one that looks at all versions before."""

    def build(number: int) -> Mapping[str, bytes]:
        assert set(range(1, number)) <= set(open_store(root, "jukebox").versions()), "judged beside one that it missed"
        return building(text)(number)

    return build


def whole(store: ModelStore, number: int, texts: list[str]) -> bool:
    """Whether a version holds all files of one of these makers, and of no other."""
    found = {name: store.read(number, name) for name in NAMES}
    return found in [files(f"{text} as {number}") for text in texts]


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> str:
    return s3.bucket()


@functools.cache
def shared_client() -> "S3Client":
    """The client of all these tests, since it takes a third of a second to make one."""
    return s3_client()


@pytest.fixture
def on_s3(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "s3_client", shared_client)


@pytest.fixture
def s3_root(bucket: str, on_s3: None) -> str:
    """Where nothing is yet, in the bucket that these tests share: the server has room for few."""
    return fresh(bucket)


def fresh(bucket: str) -> str:
    return f"s3://{bucket}/{uuid4()}"


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store may be, on either backend; nothing is there yet."""
    return str(tmp_path / "models") if request.param == "folder" else request.getfixturevalue("s3_root")


@pytest.fixture
def store(root: str) -> ModelStore:
    return open_store(root, "jukebox")


def names(root: str) -> list[str]:
    """Every file or object of the store, by its path below the model's folder."""
    if root.startswith("s3://"):
        bucket, prefix = root.removeprefix("s3://").split("/", 1)
        entries = shared_client().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/jukebox/").get("Contents", [])
        return [entry["Key"].removeprefix(f"{prefix}/jukebox/") for entry in entries]
    folder = Path(root, "jukebox")
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def by_hand(root: str, *, put: str = "", text: str = "", delete: str = "") -> None:
    """Put a file into the store, or delete all below a folder of it, without asking it."""
    if root.startswith("s3://"):
        bucket, prefix = root.removeprefix("s3://").split("/", 1)
        if put:
            shared_client().put_object(Bucket=bucket, Key=f"{prefix}/jukebox/{put}", Body=text.encode())
        for name in names(root) if delete else []:
            if name.startswith(f"{delete}/"):
                shared_client().delete_object(Bucket=bucket, Key=f"{prefix}/jukebox/{name}")
        return
    if put:
        path = Path(root, "jukebox", put)
        if put.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if delete:
        folder = Path(root, "jukebox", delete)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def visible(root: str) -> set[str]:
    """What the model server sees in the folder."""
    return {name.split("/")[0] for name in names(root) if not name.startswith(".")}


def leftovers(root: str) -> list[str]:
    return [name for name in names(root) if name.startswith((".staging", ".deleted"))]


def test_a_store_that_nobody_has_written_to_is_empty(store: ModelStore) -> None:
    assert store.versions() == []
    assert store.newest() is None
    assert store.failed() == []
    assert store.pinned() == set()


def test_a_published_version_can_be_read_where_its_uri_says(store: ModelStore, root: str) -> None:
    number = store.publish("run", building("a"))

    assert number == 1
    assert store.versions() == [1]
    assert store.newest() == 1
    assert whole(store, 1, ["a"])
    assert store.uri(1) == f"{root}/jukebox/1"
    assert visible(root) == {"1"}
    assert leftovers(root) == []


def test_two_runs_with_the_same_content_get_two_numbers(store: ModelStore) -> None:
    assert [store.publish(run, lambda number: files("same")) for run in ("a", "b")] == [1, 2]
    assert store.read(1, "model.onnx") == store.read(2, "model.onnx")


def test_versions_are_in_the_order_of_their_numbers(store: ModelStore, root: str) -> None:
    for number in range(1, 12):
        by_hand(root, put=f"{number}/model.onnx")

    assert store.versions() == list(range(1, 12))
    assert store.newest() == 11


def test_a_run_that_publishes_again_gets_its_number_and_changes_nothing(store: ModelStore) -> None:
    store.publish("ä/1", building("first"))
    store.publish("other", building("other"))

    def refuse(number: int) -> Mapping[str, bytes]:
        raise AssertionError("built again")

    assert store.publish("ä/1", refuse) == 1
    assert whole(store, 1, ["first"])
    assert store.versions() == [1, 2]


def test_numbers_grow_after_the_newest_version_was_deleted_by_hand(store: ModelStore, root: str) -> None:
    for run in "abc":
        store.publish(run, building(run))
    by_hand(root, delete="3")
    by_hand(root, delete="2")

    assert store.newest() == 1
    assert store.publish("d", building("d")) == 4


def test_a_run_whose_version_was_deleted_publishes_another(store: ModelStore, root: str) -> None:
    for run in "ab":
        store.publish(run, building(run))
    by_hand(root, delete="1")

    # What it is judged against was published after the number 1 was given.
    assert store.publish("a", building("again")) == 3
    assert whole(store, 3, ["again"])
    assert store.publish("a", building("once more")) == 3
    assert store.versions() == [2, 3]


def failing(text: str) -> Callable[[int], Mapping[str, bytes]]:
    return lambda number: Failed(files(f"{text} as {number}"))


def test_a_version_that_failed_has_a_number_and_is_where_no_server_looks(store: ModelStore, root: str) -> None:
    assert store.publish("good", building("good")) == 1
    assert store.publish("bad", failing("bad")) == 2
    assert store.publish("bad", failing("again")) == 2
    assert store.publish("next", building("next")) == 3

    assert (store.versions(), store.failed(), store.newest()) == ([1, 3], [2], 3)
    assert visible(root) == {"1", "3"}
    assert whole(store, 2, ["bad"])
    assert store.uri(2) == f"{root}/jukebox/.failed/2"
    assert leftovers(root) == []


def test_what_building_raises_ends_it_and_costs_no_number(store: ModelStore, root: str) -> None:
    def refuse(number: int) -> Mapping[str, bytes]:
        raise GateRefused("worse")

    with pytest.raises(GateRefused, match="worse"):
        store.publish("a", refuse)
    assert leftovers(root) == []
    assert store.publish("b", building("b")) == 1
    assert store.publish("a", building("a")) == 2


def test_a_store_that_was_written_by_an_older_release_goes_on(store: ModelStore, root: str) -> None:
    """Its claims hold nothing but the run, it was killed amid a version, and another run had claimed before that."""
    by_hand(root, put="1/model.onnx")
    for number, run in enumerate(("first", "killed"), 1):
        by_hand(root, put=f".claims/{number}" if root.startswith("s3") else f".claims/{number}/run", text=run)
    by_hand(root, put=".staging/2" if root.startswith("s3") else ".staging/2-0123/model.onnx")
    by_hand(root, put=f".runs/{sha256(b'first').hexdigest()}" + ("" if root.startswith("s3") else "/"))
    by_hand(root, put=f".runs/{sha256(b'killed').hexdigest()}" + ("" if root.startswith("s3") else "/"))

    assert store.publish("first", building("first")) == 1
    assert store.publish("killed", building("killed")) == 3
    assert store.versions() == [1, 3]
    assert leftovers(root) == []


def test_numbers_grow_past_versions_that_were_copied_into_the_store(store: ModelStore, root: str) -> None:
    by_hand(root, put="7/model.onnx")

    assert store.publish("a", building("a")) == 8


def test_what_is_no_number_is_no_version(store: ModelStore, root: str) -> None:
    for name in ("01", "0", "-1", "+2", "1.0", "٣", "latest", ".5", "2/deeper"):
        by_hand(root, put=f"{name}/model.onnx")

    assert store.versions() == []
    assert store.publish("a", building("a")) == 3, "the folder 2 is there, though no version"


def test_a_version_without_a_model_is_incomplete(store: ModelStore, root: str) -> None:
    by_hand(root, put="3/labels.json")

    assert store.versions() == []
    assert store.publish("a", building("a")) == 4


def test_a_version_that_is_not_there_is_said_so(store: ModelStore) -> None:
    store.publish("a", building("a"))

    with pytest.raises(StoreBroken, match=r"jukebox/2/model\.onnx.*does not exist.* was deleted"):
        store.read(2, "model.onnx")
    with pytest.raises(StoreBroken, match=r"jukebox/1/weights"):
        store.read(1, "weights")


def test_a_version_is_deleted_and_its_number_is_never_given_again(store: ModelStore, root: str) -> None:
    for run in "abc":
        store.publish(run, building(run))
    store.publish("bad", failing("bad"))

    store.delete(3)
    store.delete(4)

    assert (store.versions(), store.failed()) == ([1, 2], [])
    assert visible(root) == {"1", "2"}
    assert leftovers(root) == []
    assert store.publish("d", building("d")) == 5


def test_deleting_what_is_not_there_is_said_so(store: ModelStore) -> None:
    store.publish("a", building("a"))

    with pytest.raises(StoreBroken, match=r"/jukebox/7 does not exist"):
        store.delete(7)
    assert store.versions() == [1]


def test_a_version_is_withdrawn_once_with_its_reason(store: ModelStore) -> None:
    number = store.publish("run-1", building("a"))
    assert store.withdrawn(number) is None
    assert store.withdraw(number, "its labels\n are wrong")
    assert store.withdrawn(number) == "its labels are wrong"
    assert not store.withdraw(number, "for another reason")
    assert store.withdrawn(number) == "its labels are wrong"
    assert store.versions() == [number]
    with pytest.raises(VersionBroken, match="7 does not exist"):
        store.withdraw(7, "it was never there")


RECORD = {"version": 1, "commit": "c" * 40, "served_since": "2026-11-27T10:05:00Z", "why": "ünïcode"}
LATER = {"version": 1, "commit": "d" * 40, "served_since": "2026-11-28T10:05:00Z", "why": "again"}


def test_records_of_promotions_are_added_and_never_changed(store: ModelStore, root: str) -> None:
    number = store.publish("run-1", building("a"))
    assert store.promotions(number) == []
    assert store.add_promotions(number, [RECORD]) == 1
    assert store.add_promotions(number, [RECORD | {"why": "something else"}, LATER]) == 1
    assert store.promotions(number) == [LATER, RECORD]
    by_hand(root, put="1.promotions.json", text=json.dumps([RECORD, LATER]))
    assert store.add_promotions(number, [LATER, RECORD]) == 0
    assert store.promotions(number) == [RECORD, LATER], "nothing is written if nothing is new"
    assert store.versions() == [number]
    assert "1.promotions.json" in store.files()
    with pytest.raises(VersionBroken, match="7 does not exist"):
        store.add_promotions(7, [RECORD])
    store.delete(number)
    assert store.promotions(number) == []
    assert "1.promotions.json" not in names(root)


@pytest.mark.parametrize("text", ["", "{}", "[[]]", "[{}]", "[" * 100_000])
def test_damaged_records_of_promotions_are_named_and_stay(store: ModelStore, root: str, text: str) -> None:
    number = store.publish("run-1", building("a"))
    by_hand(root, put="1.promotions.json", text=text)
    for use in (lambda: store.promotions(number), lambda: store.add_promotions(number, [RECORD])):
        with pytest.raises(VersionBroken, match=r"/1\.promotions\.json is damaged, expected a list .*: delete it"):
            use()
    assert store._get("1.promotions.json") == text.encode()


def test_pins_are_files_beside_the_versions(store: ModelStore, root: str) -> None:
    by_hand(root, put="2.pinned")
    by_hand(root, put="99.pinned")

    assert store.pinned() == {2, 99}


RUNS = st.integers(0, 6).map(lambda number: f"run-{number}")
NUMBERS = st.integers(1, 9)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), RUNS),
        st.tuples(st.just("pin"), NUMBERS),
        st.tuples(st.just("delete by hand"), NUMBERS),
        st.tuples(st.just("fail"), RUNS),
        st.tuples(st.just("delete"), NUMBERS),
    ),
    max_size=14,
)


def obeys_the_contract(root: str, operations: list[tuple[Any, ...]]) -> None:
    """Compare the store with the simplest thing that does the same: a dict and a counter."""
    store = open_store(root, "jukebox")
    numbers: dict[str, int] = {}
    passed: dict[int, bool] = {}  # of the versions that stand
    given, pins = 0, set[int]()
    for operation, *arguments in operations:
        if operation in ("publish", "fail"):
            (run,) = arguments
            if numbers.get(run) not in passed:
                given += 1
                numbers[run] = given
                passed[given] = operation == "publish"
            assert store.publish(run, (building if operation == "publish" else failing)(run)) == numbers[run]
        elif operation == "pin":
            pins.add(arguments[0])
            by_hand(root, put=f"{arguments[0]}.pinned")
        elif operation == "delete by hand" and arguments[0] in passed:
            by_hand(root, delete=str(arguments[0]) if passed.pop(arguments[0]) else f".failed/{arguments[0]}")
        elif operation == "delete" and arguments[0] in passed:
            del passed[arguments[0]]
            store.delete(arguments[0])
        assert store.versions() == sorted(number for number in passed if passed[number])
        assert store.failed() == sorted(number for number in passed if not passed[number])
        assert store.pinned() == pins
    assert all(whole(store, number, list(numbers)) for number in passed)
    assert leftovers(root) == []


@given(OPERATIONS)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_any_sequence_of_operations_obeys_the_contract_in_a_folder(operations: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        obeys_the_contract(folder, operations)


@given(operations=OPERATIONS)
@settings(
    deadline=None,
    derandomize=True,
    max_examples=6,
    # The environment is the same for every example, and each takes a place of its own.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_sequence_of_operations_obeys_the_contract_in_a_bucket(
    on_s3: None, bucket: str, operations: list[tuple[Any, ...]]
) -> None:
    obeys_the_contract(fresh(bucket), operations)


# Killed at each write. For a folder, a process ends itself right before its k-th change to the file system,
# for every k. Another process forks it, since this one has threads.

REPOSITORY = Path(__file__).parents[2]
CHANGES = {"os.mkdir", "os.rename", "os.rmdir", "os.remove", "fsync"}


def in_a_process(function: str, *arguments: str) -> None:
    """Run a function of this file with these arguments in a process of its own."""
    code = f"import sys; from tests.core.test_store import {function}; {function}(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=REPOSITORY, check=True)


def publish_killed(base: str) -> None:
    _killed_at_each_change(Path(base), lambda root: None, publish_first)


def delete_killed(base: str) -> None:
    _killed_at_each_change(Path(base), _publish_two, _delete)


def publish_first(root: str) -> None:
    open_store(root, "jukebox").publish("run", building("first"))


def _publish_two(root: str) -> None:
    for run in "ab":
        open_store(root, "jukebox").publish(run, building(run))


def _delete(root: str) -> None:
    open_store(root, "jukebox").delete(1)


def _killed_at_each_change(base: Path, prepare: Callable[[str], None], work: Callable[[str], None]) -> None:
    """Leave in ``base`` a store for each change at which ``work`` was killed, and one where it ended."""
    done = False
    while not done:
        change = len(list(base.iterdir()))
        root = base / str(change)
        root.mkdir()
        prepare(str(root))
        child = os.fork()
        if child == 0:
            _die_before(change)
            work(str(root))
            os._exit(0)
        done = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _die_before(change: int) -> None:
    left = change

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in CHANGES or (event == "open" and "jukebox" in str(arguments[0]) and arguments[2] & os.O_CREAT):
            if not left:
                os._exit(9)
            left -= 1

    sync = os.fsync

    def watched_sync(fd: Any) -> None:
        watch("fsync", ())
        sync(fd)

    os.fsync = watched_sync
    sys.addaudithook(watch)


def test_publish_killed_at_each_change_of_a_folder_and_run_again(tmp_path: Path) -> None:
    in_a_process("publish_killed", str(tmp_path))

    roots = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    assert len(roots) > 15
    for root in roots:
        store = open_store(str(root), "jukebox")
        assert store.versions() in ([], [1])
        assert all(whole(store, number, ["first"]) for number in store.versions())
        stood = store.versions()

        assert store.publish("run", building("second")) == 1
        # Once it is claimed it is the first attempt's, also where that was killed before it had moved it to its place.
        assert whole(store, 1, ["first"] if stood else ["first", "second"])
        assert leftovers(str(root)) == []
        assert list((root / "jukebox" / ".staging").iterdir()) == []
        assert store.publish("next", building("next")) == 2
    # It was killed before the version stood, and after.
    assert {whole(open_store(str(root), "jukebox"), 1, ["first"]) for root in roots} == {True, False}


def test_who_publishes_after_one_that_was_killed_sees_what_that_had_claimed(tmp_path: Path) -> None:
    in_a_process("publish_killed", str(tmp_path))

    assert {publish_another(root) for root in map(str, tmp_path.iterdir())} == {1, 2}


def publish_another(root: str) -> int:
    """Publish as another run does after one that was killed, then as that one does when it is tried again.

    Returns the other's number; each has its own version, and nothing else is left.
    """
    store = open_store(root, "jukebox")
    number = store.publish("other", judging(root, "other"))
    assert store.publish("run", judging(root, "second")) == 3 - number
    assert whole(store, number, ["other"])
    assert whole(store, 3 - number, ["first", "second"])
    assert leftovers(root) == []
    return number


def test_delete_killed_at_each_change_of_a_folder_and_run_again(tmp_path: Path) -> None:
    in_a_process("delete_killed", str(tmp_path))

    roots = list(tmp_path.iterdir())
    assert len(roots) > 5
    for root in roots:
        store = open_store(str(root), "jukebox")
        assert store.versions() in ([1, 2], [2])
        assert all(whole(store, number, ["a", "b"]) for number in store.versions())

        store.delete(2)
        if 1 in store.versions():
            store.delete(1)
        assert visible(str(root)) == set()
        assert list((root / "jukebox" / ".deleted").iterdir()) == []


class Killed(BaseException):
    pass


class Watched:
    """The S3 client, which calls ``before`` right before each of its writes."""

    def __init__(self, before: Callable[[], None], client: "S3Client | None" = None) -> None:
        self._before = before
        self._client = client or shared_client()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return preceded(self._before, found) if name in ("put_object", "delete_object") else found


def preceded(before: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any, **named: Any) -> Any:
        before()
        return function(*arguments, **named)

    return both


def death(write: int) -> Callable[[], None]:
    """Return what kills its caller at a write, counted from 0."""
    writes = itertools.count()

    def before() -> None:
        if next(writes) == write:
            raise Killed

    return before


def killed_at_each_write(
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[], str],
    work: Callable[[str], None],
    client: "S3Client | None" = None,
) -> Iterator[str]:
    """Yield a store for each write to S3 at which ``work`` was killed, and one where it ended."""
    for write in range(1000):
        root = prepare()
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "s3_client", functools.partial(Watched, death(write), client))
            try:
                work(root)
            except Killed:
                done = False
            else:
                done = True
        yield root
        if done:
            return


def test_publish_killed_at_each_write_to_s3_and_run_again(
    on_s3: None, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = []
    for root in killed_at_each_write(monkeypatch, lambda: fresh(bucket), publish_first):
        store = open_store(root, "jukebox")
        assert store.versions() in ([], [1])
        assert all(whole(store, number, ["first"]) for number in store.versions())

        assert store.publish("run", building("second")) == 1
        makers += [maker for maker in ("first", "second") if whole(store, 1, [maker])]
        assert leftovers(root) == []
        assert store.publish("next", building("next")) == 2
    # The run registered twice, the staged object, the claim: once that is there, the files are the first attempt's.
    # Then the three files, and the staged object's deletion.
    assert makers == 4 * ["second"] + 5 * ["first"]


def test_who_publishes_after_one_that_was_killed_sees_what_that_had_claimed_in_s3(
    on_s3: None, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = killed_at_each_write(monkeypatch, lambda: fresh(bucket), publish_first)
    numbers = [publish_another(root) for root in killed]
    # The run registered twice, the staged object, the claim.
    assert numbers == 4 * [1] + 5 * [2]


def test_delete_killed_at_each_write_to_s3_and_run_again(
    on_s3: None, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish_two() -> str:
        root = fresh(bucket)
        _publish_two(root)
        return root

    roots = 0
    for root in killed_at_each_write(monkeypatch, publish_two, _delete):
        roots += 1
        store = open_store(root, "jukebox")
        assert store.versions() in ([1, 2], [2])
        assert all(whole(store, number, ["a", "b"]) for number in store.versions())

        if "1" in visible(root):  # what is left of it, too
            store.delete(1)
        assert store.versions() == [2]
        assert visible(root) == {"2"}
    assert roots == 4  # the model, what is left, and none


# Another run, and another attempt of the same run, publish from begin to end right before the k-th write, for every k.


class Interruption:
    """Do ``action`` when ``before`` is called for the ``call``-th time, counted from 0."""

    def __init__(self, call: int, action: Callable[[], None]) -> None:
        self.done = False
        self._left = call
        self._action = action

    def before(self) -> None:
        self._left -= 1
        if self._left == -1:
            self._action()
            self.done = True


Interrupting = Callable[[Interruption], AbstractContextManager[None]]


def overtaken(root: str, call: int, interrupting: Interrupting) -> bool:
    """Publish, and be overtaken before a call; return whether there was such a call."""
    numbers: list[int] = []
    seen: list[bytes] = []

    def overtake() -> None:
        store = open_store(root, "jukebox")
        numbers.append(store.publish("other", judging(root, "other")))
        numbers.append(store.publish("run", judging(root, "first")))
        seen.extend(store.read(numbers[1], name) for name in NAMES)

    interruption = Interruption(call, overtake)
    with interrupting(interruption):
        number = open_store(root, "jukebox").publish("run", judging(root, "second"))
    if not interruption.done:
        return False
    store = open_store(root, "jukebox")
    assert numbers in ([1, 2], [2, 1])
    assert number == numbers[1]
    assert store.versions() == [1, 2]
    assert whole(store, numbers[0], ["other"])
    # Whichever attempt was the first: what stood when the other one ended is left alone.
    assert whole(store, number, ["first", "second"])
    assert [store.read(number, name) for name in NAMES] == seen
    assert leftovers(root) == []
    return True


def calls(root: str, interrupting: Interrupting) -> int:
    return next(call for call in itertools.count() if not overtaken(f"{root}/{call}", call, interrupting))


def test_publishers_that_overtake_at_any_call_agree_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupting(interruption: Interruption) -> Iterator[None]:
        with monkeypatch.context() as patch:
            for owner, name in ((Path, "mkdir"), (Path, "rename"), (Path, "iterdir"), (os, "fsync")):
                patch.setattr(owner, name, preceded(interruption.before, getattr(owner, name)))
            yield

    assert calls(str(tmp_path), interrupting) > 15


def test_publishers_that_overtake_at_any_call_agree_in_a_bucket(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def interrupting(interruption: Interruption) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "s3_client", lambda: Watched(interruption.before))
            yield

    assert calls(s3_root, interrupting) > 7


# Many at once.

PUBLISHERS = 6
RUNS_EACH = 2


def publish_many(root: str, publisher: str, wait: Callable[[], object]) -> dict[str, int]:
    """Publish runs of one's own, and one that all publish with files of their own; return the numbers."""
    store = open_store(root, "jukebox")
    wait()
    numbers = {}
    for each in range(RUNS_EACH):
        run = f"{publisher}-{each}"
        numbers[run] = store.publish(run, building(run))
        numbers[f"shared-{each}"] = store.publish(f"shared-{each}", building(f"shared {publisher}"))
    return numbers


def publish_in_processes(root: str, results: str) -> None:
    go, signal = os.pipe()
    children = []
    for publisher in range(PUBLISHERS):
        child = os.fork()
        if child == 0:
            os.close(signal)
            numbers = publish_many(root, str(publisher), lambda: os.read(go, 1))
            Path(results, f"{publisher}.json").write_text(json.dumps(numbers))
            os._exit(0)
        children.append(child)
    os.close(signal)  # all are let go at once
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)


def unique_dense_and_whole(root: str, results: list[dict[str, int]]) -> None:
    numbers: dict[str, int] = {}
    for result in results:
        for run, number in result.items():
            assert numbers.setdefault(run, number) == number
    assert len(numbers) == (PUBLISHERS + 1) * RUNS_EACH
    assert sorted(numbers.values()) == list(range(1, len(numbers) + 1))
    store = open_store(root, "jukebox")
    assert store.versions() == sorted(numbers.values())
    for run, number in numbers.items():
        makers = [f"shared {each}" for each in range(PUBLISHERS)] if run.startswith("shared") else [run]
        assert whole(store, number, makers)
    assert leftovers(root) == []


def test_many_processes_publish_into_a_folder_at_once(tmp_path: Path) -> None:
    root, results = tmp_path / "models", tmp_path / "results"
    results.mkdir()

    in_a_process("publish_in_processes", str(root), str(results))

    unique_dense_and_whole(str(root), [json.loads(path.read_text()) for path in results.iterdir()])


def test_many_threads_publish_into_a_bucket_at_once(s3_root: str) -> None:
    barrier = threading.Barrier(PUBLISHERS)

    with ThreadPoolExecutor(PUBLISHERS) as pool:
        results = list(pool.map(lambda each: publish_many(s3_root, str(each), barrier.wait), range(PUBLISHERS)))

    unique_dense_and_whole(s3_root, results)


def test_delete_beside_delete_leaves_nothing(root: str) -> None:
    store = open_store(root, "jukebox")
    for number in range(1, 8):
        store.publish(f"run {number}", lambda number: {"model.onnx": b"m", "labels.json": b"l"})
    barrier = threading.Barrier(3)

    def delete(_: int) -> None:
        mine = open_store(root, "jukebox")
        barrier.wait()
        for number in range(1, 6):
            with suppress(StoreBroken):  # another was faster
                mine.delete(number)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(delete, range(3)))

    assert store.versions() == [6, 7]
    assert visible(root) == {"6", "7"}


def test_a_reader_never_sees_half_a_version(root: str) -> None:
    versions = 6
    finished = threading.Event()

    def write() -> None:
        store = open_store(root, "jukebox")
        try:
            for each in range(versions):
                number = store.publish(f"run {each}", building("w"))
                if number > 1:
                    store.delete(number - 1)
        finally:
            finished.set()

    def look() -> int:
        """Look as the model server does, and count the whole versions seen."""
        store = open_store(root, "jukebox")
        folder = Path(root, "jukebox")
        seen = 0
        while not finished.is_set():
            listed = store.versions()
            if root.startswith("/") and folder.exists():
                listed = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
            for number in listed:
                try:
                    assert whole(store, number, ["w"])
                    seen += 1
                except StoreBroken:
                    # Between our looking and our reading it was deleted, and then it is not half there.
                    assert number not in store.versions()
                    assert root.startswith("s3") or not (folder / str(number)).exists()
        return seen

    with ThreadPoolExecutor(2) as pool:
        reader, writer = pool.submit(look), pool.submit(write)
        writer.result()
        assert reader.result() > 0
    assert open_store(root, "jukebox").versions() == [versions]


# What may be wrong with the place.


@pytest.mark.parametrize(
    "root",
    [
        "",
        "s3://",
        "s3:///models",
        "gs://bucket/models",
        "https://user:hunter2@host/models",
        "s3://key:hunter2@b/m",
    ],
)
def test_a_root_that_is_no_place_for_a_store_is_refused(root: str) -> None:
    with pytest.raises(SettingsInvalid, match="expected a folder's path or s3://bucket/prefix") as caught:
        open_store(root, "jukebox")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "Jukebox", "juke_box", "-jukebox", "jukebox-", "../jukebox", "a" * 64, "a.b", "a\n"]
)
def test_a_name_that_is_no_dns_label_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsInvalid, match="expected a DNS label"):
        open_store(str(tmp_path), name)


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder in which this process may not write, also where it runs as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def test_a_read_only_folder_is_said_to_be_one(read_only_folder: Path) -> None:
    store = open_store(str(read_only_folder), "jukebox")

    assert store.versions() == []
    with pytest.raises(StoreBroken, match=r"cannot write to the model store: .*mount it writable"):
        store.publish("run", building("a"))


def test_a_full_disk_leaves_nothing_behind_and_the_run_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path), "jukebox")
    store.publish("before", building("before"))

    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size == len(files("run as 2")["model.onnx"]):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreBroken, match=r"No space left on device; make the claim larger"):
            store.publish("run", building("run"))

    assert list((tmp_path / "jukebox" / ".staging").iterdir()) == []
    assert store.versions() == [1]
    assert store.publish("run", building("run")) == 2


@pytest.fixture(params=["size=256k", "size=256k,nr_inodes=24"], ids=["bytes", "names"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that has room for a few versions, or for the names of a few."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system of one's own needs root and the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_can_be_freed(small_disk: Path) -> None:
    store = open_store(str(small_disk), "jukebox")
    full_disk = pytest.raises(StoreBroken, match=r"No space left on device; .*`jukebox delete-version NUMBER`")
    with full_disk:
        deque(store.publish(f"run {number}", building("a")) for number in itertools.count())
    full = store.versions()
    assert full
    assert all(whole(store, number, ["a"]) for number in full)
    with suppress(OSError):  # not a name, and not a byte more
        for number in itertools.count():
            (small_disk / str(number)).write_bytes(b"1" * 4096)

    store.delete(1)

    assert store.versions() == full[1:]
    assert visible(str(small_disk)) == {str(number) for number in full[1:]}
    for path in small_disk.glob("[0-9]*"):
        path.unlink()
    assert store.publish("next", building("next")) > max(full)


def test_a_file_is_on_the_disk_before_its_version_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: dict[int, int] = {}
    sync = os.fsync

    def watched_sync(descriptor: int) -> None:
        sync(descriptor)
        found = os.fstat(descriptor)
        synced[found.st_ino] = found.st_size

    monkeypatch.setattr(os, "fsync", watched_sync)
    open_store(str(tmp_path), "jukebox").publish("run", lambda number: {"model.onnx": b"m"})

    version = tmp_path / "jukebox" / "1"
    assert synced[(version / "model.onnx").stat().st_ino] == 1
    assert {version.stat().st_ino, version.parent.stat().st_ino} <= set(synced)


def test_the_model_server_may_read_what_was_published(tmp_path: Path) -> None:
    """It runs as another user: only the umask may narrow what it sees."""
    umask = os.umask(0o022)
    try:
        open_store(str(tmp_path), "jukebox").publish("run", building("a"))
    finally:
        os.umask(umask)

    version = tmp_path / "jukebox" / "1"
    assert stat.S_IMODE(version.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in version.iterdir()} == {0o644}


def test_a_folder_in_the_way_is_named_and_kept(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), "jukebox")
    by_hand(str(tmp_path), put="1/notes.txt")

    def meanwhile(number: int) -> Mapping[str, bytes]:
        by_hand(str(tmp_path), put=f"{number}/notes.txt")
        return files("a as 2")

    with pytest.raises(StoreBroken, match=r"jukebox/2 holds files but no model\.onnx.*delete or move"):
        store.publish("run", meanwhile)
    for number in (1, 2):
        assert [path.name for path in (tmp_path / "jukebox" / str(number)).iterdir()] == ["notes.txt"]
    by_hand(str(tmp_path), delete="2")
    assert store.publish("run", building("again")) == 2
    assert whole(store, 2, ["a"])


def test_a_file_in_the_place_of_the_folder_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "jukebox").touch()

    with pytest.raises(StoreBroken, match="a file exists at the path of a folder"):
        open_store(str(tmp_path), "jukebox").versions()


def test_a_version_needs_a_model(store: ModelStore) -> None:
    with pytest.raises(ValueError, match=r"needs a model\.onnx, found \['labels\.json'\]"):
        store.publish("run", lambda number: {"labels.json": b"[]"})
    assert store.versions() == []


def test_a_bucket_that_does_not_exist_is_said_so(on_s3: None) -> None:
    store = open_store("s3://nowhere/models", "jukebox")

    for use in (store.versions, store.pinned, lambda: store.publish("run", building("a"))):
        with pytest.raises(StoreBroken, match=r"s3://nowhere/models/jukebox.*NoSuchBucket.*create it"):
            use()


def test_wrong_keys_are_named_but_not_told(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setattr(store_module, "s3_client", s3_client)

    with pytest.raises(StoreBroken, match="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as caught:
        open_store(s3_root, "jukebox").publish("run", building("a"))
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def client(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> "S3Client":
    """The client that stores get, for tests to put themselves between it and the server."""
    client = s3_client()
    monkeypatch.setattr(store_module, "s3_client", lambda: client)
    return client


class _Body(BytesIO):
    def stream(self, **_: object) -> Iterator[bytes]:
        yield self.getvalue()


def answer(status: int, code: str) -> AWSResponse:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return AWSResponse("", status, HTTPHeaders(), _Body(body))


def test_a_server_that_refuses_exclusive_writes_gets_no_version(s3_root: str, client: "S3Client") -> None:
    def refuse(request: Any, **_: object) -> Any:
        return answer(501, "NotImplemented") if "If-None-Match" in request.headers else None

    client.meta.events.register("before-send.s3.PutObject", refuse)

    with pytest.raises(StoreBroken, match=r"does not support If-None-Match.*two runs could publish the same version"):
        open_store(s3_root, "jukebox").publish("run", building("a"))
    assert names(s3_root) == []


def test_a_server_that_ignores_exclusive_writes_gets_no_version(s3_root: str, client: "S3Client") -> None:
    def ignore(params: dict[str, Any], **_: object) -> None:
        params["headers"].pop("If-None-Match", None)

    client.meta.events.register("before-call.s3.PutObject", ignore)

    with pytest.raises(StoreBroken, match=r"ignores If-None-Match.*two runs could publish the same version"):
        open_store(s3_root, "jukebox").publish("run", building("a"))
    assert visible(s3_root) == set()


def test_a_conflict_of_writes_is_tried_again(s3_root: str, client: "S3Client") -> None:
    conflicts = [answer(409, "ConditionalRequestConflict") for _ in range(3)]

    def conflict(request: Any, **_: object) -> Any:
        return conflicts.pop() if conflicts and "If-None-Match" in request.headers else None

    client.meta.events.register("before-send.s3.PutObject", conflict)

    assert open_store(s3_root, "jukebox").publish("run", building("a")) == 1
    assert conflicts == []


def test_a_claim_whose_answer_was_lost_is_still_the_runs(s3_root: str, client: "S3Client") -> None:
    """The server has stored it and broken off; the client asks again and hears that it exists."""
    lost: list[object] = []

    def lose(request: Any, **_: object) -> Any:
        url = urlsplit(request.url)
        if url.path.endswith("/.claims/1") and not lost:
            lost.append(url)
            _, bucket, key = url.path.split("/", 2)
            shared_client().put_object(Bucket=bucket, Key=key, Body=request.body.read())
            request.body.seek(0)
            return answer(503, "SlowDown")
        return None

    client.meta.events.register("before-send.s3.PutObject", lose)

    assert open_store(s3_root, "jukebox").publish("run", building("a")) == 1
    assert lost


def test_a_listing_of_many_pages_is_read_to_its_end(s3_root: str, client: "S3Client") -> None:
    def two_a_page(params: dict[str, Any], **_: object) -> Any:
        return {**params, "MaxKeys": 2}

    client.meta.events.register("provide-client-params.s3.ListObjectsV2", two_a_page)
    store = open_store(s3_root, "jukebox")

    assert [store.publish(f"run {each}", building("a")) for each in range(4)] == [1, 2, 3, 4]
    assert store.versions() == [1, 2, 3, 4]
    assert store.publish("run 1", building("b")) == 2
