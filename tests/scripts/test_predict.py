import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from kubernetes.config import kube_config

from pipeline.core.contract import Column, Table
from pipeline.core.encoders import Number, OneHot
from pipeline.core.errors import DataInvalid, DataUnavailable, ModelServerRefuses, SettingsInvalid, StoreBroken
from pipeline.core.kinds import Regression
from pipeline.models.jukebox import MODEL
from pipeline.models.jukebox.tables import FEATURE_NAMES, FEATURES, ID
from scripts.clients import pipeline_server as server
from scripts.predict import command
from tests.active_model import TABLES
from tests.http_server import Answer, HttpServer, serve_http
from tests.kfp.cluster import Cluster
from tests.kfp.world import NAMESPACE, TOKEN
from tests.serving import OUTPUT, Served, model, number_of, serving
from tests.versions import publish_version

pytest_plugins = ("tests.kfp.fixtures",)

TEXTS = [column.name for column in MODEL.tables[0].columns if column.dtype is pl.String]
LABELS = ["BR", "IS", "JP", "KR"]
WEIGHTS = [0.1, 0.2, 3.0, 1.0]  # what an energy of 1 adds to a label's score


def publish(root: Path, run: str, weights: list[float], **changed: Any) -> int:
    return publish_version(
        str(root), run, **{"onnx": model(weights), "labels": tuple(LABELS[: len(weights)]), **changed}
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two versions: the first sees JP, the second BR."""
    publish(tmp_path / "models", "first", WEIGHTS)
    publish(tmp_path / "models", "second", WEIGHTS[::-1])
    return tmp_path / "models"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows that differ in their names and in their energy, as two parts of a fetched folder."""
    folder = tmp_path / TABLES[0]
    folder.mkdir()
    found = [
        ("id-quiet", "Quiet Moon", "Ada", 0.0),
        ("id-nameless", None, None, 1.0),
        ("id-river", "Golden River", "Bo & Caro", 1.0),
        ("id-rivers", "Golden Rivers [Live] [/b]", "Dima", 0.5),
        ("Golden", "Silver", "Edda", 1.0),
    ]
    columns = {feature.name: pl.lit(0).cast(feature.dtype) for feature in FEATURES}
    table = pl.DataFrame(found, [*TEXTS, "energy"], orient="row").with_columns(
        **{name: value for name, value in columns.items() if name != "energy"}
    )
    table[:2].write_parquet(folder / "part-00000.parquet")
    table[2:].write_parquet(folder / "part-00001.parquet")
    return folder


Predict = Callable[..., list[str]]


@pytest.fixture
def predict(store: Path, rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Predict:
    """Return the lines that the command prints."""
    monkeypatch.setenv("COLUMNS", "120")

    def predict(row: str, **options: object) -> list[str]:
        chosen = {"table": rows, "model_store": str(store), "version": 0, "top": 5} | options
        command(row, **chosen)  # type: ignore[arg-type]
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return predict


def shown(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines if line.strip()[:2] in LABELS]


def test_the_likeliest_label_stands_first(predict: Predict) -> None:
    lines = predict("Golden River", version=1)
    assert lines[0] == "Golden River, Bo & Caro, id-river: jukebox version 1"
    assert shown(lines) == ["JP", "KR", "IS", "BR"]


def test_the_probabilities_are_the_models_and_the_longest_bar_is_the_first(predict: Predict) -> None:
    lines = predict("Golden River", version=1)
    rows = [line.split() for line in lines if line.strip()[:2] in LABELS]
    expected = np.sort(np.exp(WEIGHTS) / np.exp(WEIGHTS).sum())[::-1]
    assert [float(share.rstrip("%")) for _, share, _ in rows] == pytest.approx(expected * 100, abs=0.06)
    lengths = [len(bar) for _, _, bar in rows]
    assert lengths[0] == 30
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] >= 1


def test_the_newest_version_answers_unless_another_is_named(predict: Predict) -> None:
    assert shown(predict("Golden River"))[0] == "IS"
    assert predict("Golden River")[0].endswith("jukebox version 2")


def test_as_many_labels_are_shown_as_asked_for(predict: Predict) -> None:
    assert shown(predict("Golden River", version=1, top=2)) == ["JP", "KR"]


def test_the_features_of_the_row_decide(predict: Predict) -> None:
    lines = predict("id-quiet", version=1)
    assert lines[0].startswith("Quiet Moon, Ada")
    assert sum("25.0%" in line for line in lines) == 4


def test_a_part_of_the_name_in_any_case_will_do(predict: Predict) -> None:
    assert predict("quiet mo")[0].startswith("Quiet Moon, Ada, id-quiet: ")


def test_that_others_have_such_a_name_is_said(predict: Predict) -> None:
    lines = predict("golden river")
    assert lines[0].startswith("Golden River, Bo & Caro")
    assert lines[-1] == "1 more row matches; give a unique value to choose one"


def test_an_id_comes_before_names(predict: Predict) -> None:
    lines = predict("Golden")
    assert lines[0].startswith("Silver, Edda, Golden: ")
    assert "more with" not in lines[-1]


def test_brackets_in_a_name_are_shown_as_they_are(predict: Predict) -> None:
    assert predict("id-rivers")[0].startswith("Golden Rivers [Live] [/b], Dima")


def test_a_row_without_a_name_is_found_by_its_id(predict: Predict) -> None:
    assert predict("id-nameless")[0] == "id-nameless: jukebox version 2"


def test_a_row_that_nobody_knows_is_told_with_some_that_are_known(predict: Predict) -> None:
    with pytest.raises(DataUnavailable, match=rf"no row of {TABLES[0]} has 'Purple Rain' in {ID}, .*\"Quiet Moon\""):
        predict("Purple Rain")


def test_a_row_that_lacks_a_feature_is_told_with_the_feature(predict: Predict, rows: Path) -> None:
    part = rows / "part-00001.parquet"
    pl.read_parquet(part).with_columns(pl.lit(None, pl.Float64).alias(FEATURE_NAMES[-1])).write_parquet(part)
    with pytest.raises(DataInvalid, match=f"{FEATURE_NAMES[-1]}: a value is missing"):
        predict("id-river")


def test_the_rows_may_lie_at_any_path(predict: Predict, rows: Path) -> None:
    folder = rows.rename(rows.with_name("Ada's [rows] *?#"))
    printed = predict("Golden River", table=folder)
    [_, part] = sorted(folder.iterdir())
    odd = part.rename(part.with_name("a[1]*?.parquet"))
    assert predict("id-river", table=odd)[0] == printed[0]


def test_rows_that_are_not_there_are_told(predict: Predict, tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"nowhere does not exist.*jukebox run.*--table"):
        predict("Golden River", table=tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["text", "other columns", "nothing"])
def test_what_holds_no_rows_is_told(predict: Predict, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    if content == "text":
        (folder / "part.parquet").write_text("id,name\n")
    elif content == "other columns":
        pl.DataFrame({"name": ["Golden River"]}).write_parquet(folder / "part.parquet")
    with pytest.raises(DataUnavailable, match=rf"other is not a Parquet table {TABLES[0]}: .*; set --table"):
        predict("Golden River", table=folder)


def test_a_store_without_a_model_says_how_to_get_one(predict: Predict, tmp_path: Path) -> None:
    with pytest.raises(StoreBroken, match="nothing-here has no version of jukebox yet; publish one with `jukebox run`"):
        predict("Golden River", model_store=str(tmp_path / "nothing-here"))


def test_a_version_that_does_not_exist_is_told(predict: Predict, store: Path) -> None:
    with pytest.raises(StoreBroken, match=f"{store}/jukebox/7/lineage.json.*does not exist.* was deleted"):
        predict("Golden River", version=7)


def test_a_version_that_failed_is_tried_if_it_is_named(predict: Predict, store: Path) -> None:
    publish(store, "failed", WEIGHTS, passed=False, apart=True)
    assert predict("Golden River")[0].endswith("jukebox version 2")
    assert shown(predict("Golden River", version=3))[0] == "JP"


def test_the_model_gets_the_features_in_its_own_order(predict: Predict, store: Path) -> None:
    publish(store, "other order", WEIGHTS, onnx=model(WEIGHTS, FEATURE_NAMES[::-1]))
    assert predict("Golden River", version=3)[1:] == predict("Golden River", version=1)[1:]


def test_a_model_that_takes_what_rows_have_not_is_told(predict: Predict, store: Path) -> None:
    publish(store, "more", WEIGHTS, onnx=model(WEIGHTS, [*FEATURE_NAMES, "timbre"]))
    with pytest.raises(DataInvalid, match="missing columns: timbre"):
        predict("Golden River")


def test_a_version_whose_files_are_not_those_that_were_published_is_told(predict: Predict, store: Path) -> None:
    (store / "jukebox" / "2" / "model.onnx").write_bytes(model(WEIGHTS))
    with pytest.raises(StoreBroken, match=r"Version 2 .*is damaged: the sha256 of its model\.onnx.*delete-version 2"):
        predict("Golden River")
    assert shown(predict("Golden River", version=1))[0] == "JP"


# A model server

SERVED = "/v2/models/jukebox"
INFER = f"{SERVED}/versions/1/infer"
BOTH = '--model_version_policy={"all": {}}'
SHARES = (np.exp(WEIGHTS) / np.exp(WEIGHTS).sum()).tolist()  # of version 1, of what has an energy of 1
ANSWER = {"name": OUTPUT, "shape": [1, 4], "datatype": "FP32", "data": SHARES}


@pytest.fixture(autouse=True)
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a kubeconfig would be read on this laptop, which is no pod."""
    monkeypatch.setattr(server, "POD", tmp_path / "no-pod")
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    return tmp_path / "kubeconfig"


@pytest.fixture
def served(store: Path) -> Iterator[Served]:
    """A model server on both versions of the store."""
    with serving(store / "jukebox", BOTH) as running:
        yield running


@pytest.fixture
def http() -> Iterator[HttpServer]:
    """A server that tells of one version, and answers as a test has it."""
    with serve_http() as running:
        tell(running)
        yield running


def tell(server: HttpServer) -> None:
    server.serve(SERVED, Answer(b'{"versions": ["1"]}', headers={"Content-Type": "application/json"}))


def prediction(version: object = "1", **output: object) -> Answer:
    """What a model server answers, but for ``output``."""
    body = {"model_name": "jukebox", "model_version": version, "outputs": [ANSWER | output]}
    return Answer(json.dumps(body).encode(), headers={"Content-Type": "application/json"})


def test_a_model_server_answers_as_the_store_does(predict: Predict, served: Served) -> None:
    assert predict("Golden River", endpoint=served.url) == predict("Golden River")
    assert predict("Golden River", endpoint=f"{served.url}/", version=1) == predict("Golden River", version=1)


def test_no_model_server_serves_a_version_that_failed(predict: Predict, store: Path) -> None:
    publish(store, "failed", WEIGHTS, passed=False, apart=True)
    publish(store, "next", WEIGHTS)
    with serving(store / "jukebox", BOTH) as served:
        served.reaches(4)
        assert served.get("/v2/models/jukebox").json()["versions"] == ["1", "2", "4"]
        with pytest.raises(ModelServerRefuses, match="serves version 1, version 2, version 4, expected version 3"):
            predict("Golden River", endpoint=served.url, version=3)


def test_a_model_server_gets_the_features_in_the_order_of_its_model(
    predict: Predict, store: Path, served: Served
) -> None:
    publish(store, "other order", WEIGHTS, onnx=model(WEIGHTS, FEATURE_NAMES[::-1]))
    served.reaches(3)
    assert predict("Golden River", endpoint=served.url, version=3) == predict("Golden River", version=3)


def test_the_version_that_is_served_is_shown_also_where_the_store_has_a_newer(predict: Predict, store: Path) -> None:
    with serving(store / "jukebox", '--model_version_policy={"specific": {"versions": [1]}}') as pinned:
        lines = predict("Golden River", endpoint=pinned.url)
    assert lines[0].endswith("jukebox version 1")
    assert shown(lines)[0] == "JP"


@pytest.mark.parametrize("other", [[1.0, 0.3, 2.0, 3.0], [1.0, 2.0]], ids=["of another training", "of two labels"])
def test_a_version_of_the_same_number_in_another_store_does_not_name_the_labels(
    predict: Predict, served: Served, tmp_path: Path, other: list[float]
) -> None:
    store = tmp_path / "other"
    publish(store, "first", other)
    with pytest.raises(
        StoreBroken, match=rf"version 1 gives other predictions than the one in {store}.*\n.*--model-store served"
    ) as told:
        predict("Golden River", endpoint=served.url, version=1, model_store=str(store))
    assert "deployment/jukebox-predictor -- cat /mnt/models/1/$file > served/jukebox/1/$file" in str(told.value)


def test_without_the_store_a_copy_of_the_served_version_will_do(
    predict: Predict, served: Served, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    with pytest.raises(StoreBroken, match=r"must hold the served version 2, .*does not exist") as told:
        predict("Golden River", endpoint=served.url, model_store=str(away))
    files = re.search(r"for file in (.*?); do", str(told.value))
    assert files
    copy = away / "jukebox" / "2"
    copy.mkdir(parents=True)
    for file in files[1].split():
        (copy / file).write_bytes((served.folder / "2" / file).read_bytes())
    assert predict("Golden River", endpoint=served.url, model_store=str(away)) == predict("Golden River")


def test_a_version_that_is_not_served_is_told(predict: Predict, served: Served) -> None:
    with pytest.raises(ModelServerRefuses, match=f"{SERVED} serves version 1, version 2, expected version 7"):
        predict("Golden River", endpoint=served.url, version=7)


@pytest.mark.parametrize("answer", [b"[]", b"{}", b'{"versions": ["a"]}', b"<html>"])
def test_what_is_no_list_of_versions_is_told(predict: Predict, http: HttpServer, answer: bytes) -> None:
    http.serve(SERVED, Answer(answer))
    with pytest.raises(ModelServerRefuses, match="not answer with a valid list of versions"):
        predict("Golden River", endpoint=http.url)


def test_a_server_that_has_no_model_yet_is_told(predict: Predict, tmp_path: Path) -> None:
    with serving(tmp_path / "empty") as empty, pytest.raises(ModelServerRefuses, match=r"answers 404: .*not found"):
        predict("Golden River", endpoint=empty.url)


def test_a_server_that_is_not_there_is_told(predict: Predict) -> None:
    with serve_http() as gone:
        pass
    with pytest.raises(ModelServerRefuses, match=f"{gone.url} does not answer: .*refused.*\n.*kubectl get infer"):
        predict("Golden River", endpoint=gone.url)


def test_a_server_that_falls_silent_is_not_waited_for(
    predict: Predict, http: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.clients.model_server.TIMEOUT", (5, 0.1))
    http.serve(INFER, Answer(b"{}", stalls_after=0))
    with pytest.raises(ModelServerRefuses, match=r"does not answer: .*timed out"):
        predict("Golden River", endpoint=http.url)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(b"Forbidden", 403), r"infer answers 403\.\nLog in \(oc login\)"),
        (Answer(b"Unauthorized", 401), r"infer answers 401\.\nLog in"),
        (
            Answer(status=302, headers={"Location": "https://login.example.com/?state=hidden"}),
            r"answers 302 and redirects to https://login\.example\.com\.\n.*[Ll]og in",
        ),
        (Answer(b"<html>Application is not available", 503), r"answers 503\.\n.*kubectl get inferenceservice"),
        (Answer(b'{"error": "Invalid shape"}', 400), r"answers 400: Invalid shape\.\n.*of this project"),
        (
            Answer(b"<html>Log in", headers={"Content-Type": "text/html"}),
            r"a valid prediction .*text/html.*\n.*login page",
        ),
        (Answer(b"[]"), "not answer with a valid prediction"),
        (prediction(name="other"), "not answer with a valid prediction"),
        (prediction(data=[0.5, 0.5]), "not answer with a valid prediction .*reshape"),
        (prediction(data=["a", "b", "c", "d"]), "not answer with a valid prediction"),
        (prediction(shape=[4, 1]), r"shape \[4, 1\], expected \[1, labels\]"),
        (prediction(shape=[4]), r"shape \[4\], expected \[1, labels\]"),
        (prediction(data=[1, 2, 3, 4]), "not valid probabilities"),
        (prediction(data=[-1, 1, 0, 1]), "not valid probabilities"),
        (prediction(data=[float("nan")] * 4), "not valid probabilities"),
        (prediction(shape=[1, 0], data=[]), r"shape \[1, 0\], expected \[1, labels\]"),
    ],
)
def test_what_is_no_prediction_is_told(predict: Predict, http: HttpServer, answer: Answer, message: str) -> None:
    http.serve(INFER, answer)
    with pytest.raises(ModelServerRefuses, match=message) as told:
        predict("Golden River", endpoint=http.url)
    assert "hidden" not in str(told.value)


def test_an_endpoint_that_is_no_address_is_told_without_showing_it(predict: Predict) -> None:
    with pytest.raises(SettingsInvalid, match="the endpoint is not a valid address: expected https://host") as told:
        predict("Golden River", endpoint="https://ada:hidden@host")
    assert "hidden" not in str(told.value)


def test_a_certificate_that_nobody_here_trusts_is_told(predict: Predict, certificate: Path) -> None:
    with serve_http(certificate) as safe, pytest.raises(ModelServerRefuses) as told:
        predict("Golden River", endpoint=safe.url)
    assert f"The certificate of {safe.url} is not trusted: self-signed certificate.\nTrusted: the public" in str(
        told.value
    )


def test_the_kubeconfigs_ca_is_trusted_and_its_token_let_in(
    predict: Predict, served: Served, certificate: Path, kubeconfig: Path
) -> None:
    Cluster(NAMESPACE, url="https://api").kubeconfig(kubeconfig, TOKEN, certificate)
    with serve_http(certificate) as safe:
        tell(safe)
        safe.serve(INFER, prediction())
        assert predict("Golden River", endpoint=safe.url) == predict("Golden River", version=1)
        sent = [headers for _, headers in safe.requests]
    assert [headers["Authorization"] for headers in sent] == [f"Bearer {TOKEN}"] * 2


def test_the_token_does_not_travel_unencrypted(
    predict: Predict, http: HttpServer, store: Path, certificate: Path, kubeconfig: Path
) -> None:
    Cluster(NAMESPACE, url="https://api").kubeconfig(kubeconfig, TOKEN, certificate)
    http.serve(INFER, prediction())
    predict("Golden River", endpoint=http.url)
    assert len(http.requests) == 2
    assert not [headers for _, headers in http.requests if "Authorization" in headers]


# Another model

CARS = replace(
    MODEL,
    name="cars",
    kind=Regression("mpg"),
    tables=[
        Table(
            "cars",
            (
                Column("number", pl.Int64, unique=True),
                Column("maker", pl.String, OneHot()),
                Column("weight", pl.Float64, Number(missing=2.0), unit="t"),
                Column("mpg", pl.Float64, unit="miles per gallon"),
            ),
        )
    ],
    metrics=(),
    checks=(),
)
ENCODING = [
    {"derived": "", "unit": "", "column": "maker", "encoder": "OneHot", "parameters": {"values": ["Saab"]}},
    {"derived": "", "unit": "", "column": "weight", "encoder": "Number", "parameters": {"missing": 2.0}},
]
FEATURES_OF = [["maker: Saab"], ["weight", "weight: missing"]]


@pytest.mark.parametrize(("row", "shown"), [("7", "Saab, 7.0: jukebox version 1"), ("volv", "Volvo, 8.0: jukebox ")])
def test_a_number_is_shown_with_its_unit_of_what_the_versions_own_encoding_makes_of_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, row: str, shown: str
) -> None:
    monkeypatch.setattr("scripts.predict.load", lambda _: CARS)
    table = pl.DataFrame({"number": [7, 8], "maker": ["Saab", "Volvo"], "weight": [1.5, None], "mpg": [0.0, 0.0]})
    table.write_parquet(tmp_path / "cars.parquet")
    names = [name for features in FEATURES_OF for name in features]
    onnx = number_of([30.0, -4.0, 1.0], names)
    encoding = [{**entry, "features": features} for entry, features in zip(ENCODING, FEATURES_OF, strict=True)]
    publish_version(str(tmp_path), "one", onnx=onnx, labels=("mpg",), encoding=encoding)
    command(row, tmp_path / "cars.parquet", str(tmp_path), 0, "", 5)
    title, _, answer = capsys.readouterr().out.splitlines()
    assert title.startswith(shown)
    assert answer.split() == ["mpg", {"7": "24", "volv": "-7"}[row], "miles", "per", "gallon"]
