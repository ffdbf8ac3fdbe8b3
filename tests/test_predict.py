import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import DataInvalid, DataUnavailable, StoreBroken
from pipeline.schema import FEATURE_NAMES, FEATURES, ID, INPUT, OUTPUT
from pipeline.store import open_store
from scripts.predict import command

LABELS = ["BR", "IS", "JP", "KR"]
WEIGHTS = [0.1, 0.2, 3.0, 1.0]  # what an energy of 1 adds to a country's score


def model(weights: list[float]) -> bytes:
    """An ONNX model that sees a song's energy alone."""
    matrix = np.zeros((len(FEATURE_NAMES), len(weights)), dtype=np.float32)
    matrix[FEATURE_NAMES.index("energy")] = weights
    graph = helper.make_graph(
        [helper.make_node("MatMul", [INPUT, "weights"], ["scores"]), helper.make_node("Softmax", ["scores"], [OUTPUT])],
        "energy",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", len(FEATURE_NAMES)])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(weights)])],
        [numpy_helper.from_array(matrix, "weights")],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(built)
    content: bytes = built.SerializeToString()
    return content


def publish(root: Path, run: str, weights: list[float]) -> int:
    files = {
        "model.onnx": model(weights),
        "labels.json": json.dumps(LABELS).encode(),
        "lineage.json": b"{}",
        "model-card.html": b"",
    }
    return open_store(str(root), "jukebox").publish(run, lambda number: files)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two versions: the first sees Japan, the second Brazil."""
    publish(tmp_path / "models", "first", WEIGHTS)
    publish(tmp_path / "models", "second", WEIGHTS[::-1])
    return tmp_path / "models"


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Songs that differ in their names and in their energy, as two parts of a fetched folder."""
    folder = tmp_path / "songs"
    folder.mkdir()
    rows = [
        ("id-quiet", "Quiet Moon", "Ada", 0.0),
        ("id-nameless", None, None, 1.0),
        ("id-river", "Golden River", "Bo & Caro", 1.0),
        ("id-rivers", "Golden Rivers [Live] [/b]", "Dima", 0.5),
        ("Golden", "Silver", "Edda", 1.0),
    ]
    columns = {feature.name: pl.lit(0).cast(feature.dtype) for feature in FEATURES}
    table = pl.DataFrame(rows, [ID, "name", "artists", "energy"], orient="row").with_columns(
        **{name: value for name, value in columns.items() if name != "energy"}
    )
    table[:2].write_parquet(folder / "part-00000.parquet")
    table[2:].write_parquet(folder / "part-00001.parquet")
    return folder


Predict = Callable[..., list[str]]


@pytest.fixture
def predict(store: Path, songs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Predict:
    """Return the lines that the command prints."""
    monkeypatch.setenv("COLUMNS", "120")

    def predict(song: str, **options: object) -> list[str]:
        chosen = {"songs": songs, "model_store": str(store), "version": 0, "top": 5} | options
        command(song, **chosen)  # type: ignore[arg-type]
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return predict


def countries(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines if line.strip()[:2] in LABELS]


def test_the_country_where_the_song_charts_stands_first(predict: Predict) -> None:
    lines = predict("Golden River", version=1)
    assert lines[0] == "Golden River by Bo & Caro (id-river), jukebox version 1"
    assert countries(lines) == ["JP", "KR", "IS", "BR"]


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
    assert countries(predict("Golden River"))[0] == "IS"
    assert predict("Golden River")[0].endswith("jukebox version 2")


def test_as_many_countries_are_shown_as_asked_for(predict: Predict) -> None:
    assert countries(predict("Golden River", version=1, top=2)) == ["JP", "KR"]


def test_the_features_of_the_song_decide(predict: Predict) -> None:
    lines = predict("id-quiet", version=1)
    assert lines[0].startswith("Quiet Moon by Ada")
    assert sum("25.0%" in line for line in lines) == 4


def test_a_part_of_the_name_in_any_case_will_do(predict: Predict) -> None:
    assert predict("quiet mo")[0].startswith("Quiet Moon by Ada (id-quiet)")


def test_that_others_have_such_a_name_is_said(predict: Predict) -> None:
    lines = predict("golden river")
    assert lines[0].startswith("Golden River by Bo & Caro")
    assert lines[-1] == "1 more with such a name; give an id to choose"


def test_an_id_comes_before_names(predict: Predict) -> None:
    lines = predict("Golden")
    assert lines[0].startswith("Silver by Edda (Golden)")
    assert "more with" not in lines[-1]


def test_brackets_in_a_name_are_shown_as_they_are(predict: Predict) -> None:
    assert predict("id-rivers")[0].startswith("Golden Rivers [Live] [/b] by Dima")


def test_a_song_without_a_name_is_found_by_its_id(predict: Predict) -> None:
    assert "(id-nameless)" in predict("id-nameless")[0]


def test_a_song_that_nobody_knows_is_told_with_some_that_are_known(predict: Predict) -> None:
    with pytest.raises(DataUnavailable, match=r"id or the name 'Purple Rain'.*for instance.*\"Quiet Moon\""):
        predict("Purple Rain")


def test_a_song_that_lacks_a_feature_is_told_with_the_feature(predict: Predict, songs: Path) -> None:
    part = songs / "part-00001.parquet"
    pl.read_parquet(part).with_columns(pl.lit(None, pl.Float64).alias("tempo")).write_parquet(part)
    with pytest.raises(DataInvalid, match="id-river has no tempo"):
        predict("id-river")


def test_songs_that_are_not_there_are_told(predict: Predict, tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"nowhere does not exist.*jukebox run.*--songs"):
        predict("Golden River", songs=tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["text", "other columns", "nothing"])
def test_what_holds_no_songs_is_told(predict: Predict, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    if content == "text":
        (folder / "part.parquet").write_text("id,name\n")
    elif content == "other columns":
        pl.DataFrame({"name": ["Golden River"]}).write_parquet(folder / "part.parquet")
    with pytest.raises(DataUnavailable, match=r"other holds no songs as Parquet: .*; name others"):
        predict("Golden River", songs=folder)


def test_a_store_without_a_model_says_how_to_get_one(predict: Predict, tmp_path: Path) -> None:
    with pytest.raises(StoreBroken, match="nothing-here holds no version of jukebox yet; `jukebox run` publishes one"):
        predict("Golden River", model_store=str(tmp_path / "nothing-here"))


def test_a_version_that_does_not_exist_is_told(predict: Predict, store: Path) -> None:
    with pytest.raises(StoreBroken, match=f"{store}/jukebox/7/model.onnx.*does not exist or was pruned"):
        predict("Golden River", version=7)
