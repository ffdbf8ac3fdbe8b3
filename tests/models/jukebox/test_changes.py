"""The changes that docs/your-own-model.md lists take the files that it names, and no others.

They are made on a copy of the checkout, one after the other, and the copy runs. Here, because three of them are edits
of the jukebox's folder.
"""

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "your-own-model.md"
LEFT_OUT = (".git", ".venv", ".tools", "build", "__pycache__", ".*_cache", ".hypothesis")
NAMES = {"<name>": "jukebox", "<step>": "compare_slices"}


def insert(file: Path, before: str, text: str) -> None:
    """Insert a text before another, which the file has once."""
    old = file.read_text()
    assert old.count(before) == 1, f"{file} has {before!r} {old.count(before)} times"
    file.write_text(old.replace(before, text + before))


def replace(file: Path, old: str, new: str) -> None:
    insert(file, old, new)
    file.write_text(file.read_text().replace(new + old, new))


def add_a_rule(copy: Path) -> None:
    insert(
        copy / "pipeline/models/jukebox/rules.py",
        "    # A softmax over one label decides nothing.\n",
        '    at_least("several-songs", "songs", "COUNT(*)", 10, "Give more songs."),\n',
    )


def add_a_hyperparameter(copy: Path) -> None:
    file = copy / "pipeline/models/jukebox/network.py"
    insert(file, "    dropout: float", '    activation: str = Field("relu", pattern="relu|elu")\n')
    replace(file, 'activation="relu"', "activation=options.activation")


def add_a_metric(copy: Path) -> None:
    replace(copy / "pipeline/models/jukebox/__init__.py", "metrics=[top(5)]", "metrics=[top(5), top(10)]")


def add_a_step(copy: Path) -> None:
    (copy / "pipeline/steps/compare_slices.py").write_text('''"""Compare slices: how far apart the slices are."""

import json
from pathlib import Path

from pipeline.core.contract import Model
from pipeline.core.documents import write_json
from pipeline.core.log import log


def compare_slices(model: Model, evaluation: Path, comparison: Path) -> None:
    """Write the range of the model's primary metric over each slice."""
    metric = model.kind.primary
    ranges = {}
    for name, entries in json.loads(evaluation.read_text())["slices"].items():
        values = [entry[metric] for entry in entries if entry[metric] is not None]
        ranges[name] = [min(values), max(values)]
        log.info("%s by %s: %.3f to %.3f", metric, name, *ranges[name])
    write_json(comparison, ranges)
''')
    insert(
        copy / "pipeline/components.py",
        "@_component\ndef convert_model(",
        '''@_component
def compare_slices(model: str, evaluation: Input[Artifact], comparison: Output[Artifact]) -> None:
    """Compare the slices of the evaluation."""
    from pathlib import Path

    from pipeline.core.log import step

    with step("compare-slices", evaluation):
        from pipeline.core.contract import load
        from pipeline.steps.compare_slices import compare_slices as run

        run(load(model), Path(evaluation.path), Path(comparison.path))


''',
    )
    graph = copy / "pipeline/prod_train_save_pipeline.py"
    insert(
        graph,
        "        verified = components.verify_model(\n",
        "        compared = components.compare_slices(model=model, evaluation=evaluated.outputs['evaluation'])\n",
    )
    insert(graph, "        published = components.publish_model(\n", "        verified.after(compared)\n")
    insert(graph, "            converted,\n", "            compared,\n")
    replace(
        graph, "(validated, evaluated, verified, published):", "(validated, evaluated, compared, verified, published):"
    )
    tests = copy / "tests/test_pipeline.py"
    insert(tests, '    "convert-model",\n', '    "compare-slices",\n')
    insert(
        tests,
        '        ("convert-model", "onnx_model", "Model"),\n',
        '        ("compare-slices", "comparison", "Artifact"),\n',
    )
    replace(tests, 'READ_THE_STORE - {"verify-model"}', 'READ_THE_STORE - {"compare-slices", "verify-model"}')
    replace(
        tests,
        '        "verify-model": {"evaluate-model", "convert-model"},\n',
        '        "compare-slices": {"evaluate-model"},\n        "verify-model": {"compare-slices", "convert-model"},\n',
    )


CHANGES: dict[str, Callable[[Path], None]] = {
    "a rule": add_a_rule,
    "a hyperparameter of the network": add_a_hyperparameter,
    "a metric": add_a_metric,
    "a step between evaluate and gate": add_a_step,
}


def promised(change: str) -> set[str]:
    """The files that the page names for a change."""
    [row] = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {change} |")]
    files = row.split("|")[2]
    for name, known in NAMES.items():
        files = files.replace(name, known)
    return set(re.findall(r"`([^`]+)`", files))


def changed(one: Path, other: Path) -> set[str]:
    """The files that two checkouts do not have in common."""
    names = {
        str(file.relative_to(folder))
        for folder in (one, other)
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    _, differ, missing = filecmp.cmpfiles(one, other, names, shallow=False)
    return {*differ, *missing}


@dataclass(frozen=True)
class Changed:
    """The copy with all changes, the files that each took, and what its run left."""

    copy: Path
    files: dict[str, set[str]]
    run: Path

    def document(self, path: str) -> Any:
        return json.loads((self.run / path).read_text())


def python(copy: Path, *arguments: str) -> str:
    """Run Python in the copy, with the copy's modules; return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def all_changed(tmp_path_factory: pytest.TempPathFactory) -> Changed:
    folder = tmp_path_factory.mktemp("changes")
    shutil.copytree(ROOT, folder / "before", ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    copy, files = folder / "before", {}
    for number, (change, make) in enumerate(CHANGES.items()):
        before, copy = copy, folder / str(number)
        shutil.copytree(before, copy, symlinks=True)
        make(copy)
        files[change] = changed(before, copy)
    jukebox = str(Path(sys.executable).with_name("jukebox"))
    python(copy, jukebox, "sample", str(folder / "sample"), "--rows", "20000")
    data = [f"--data={file.stem}={file}" for file in (folder / "sample").iterdir()]
    chosen = '--hyperparameters={"activation": "elu"}'
    python(copy, jukebox, "run", *data, chosen, "--gate-mode=warn", "--folder", str(folder / "build"))
    return Changed(copy, files, folder / "build" / "latest")


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_takes_the_files_that_the_page_names(all_changed: Changed, change: str) -> None:
    assert all_changed.files[change] == promised(change)


def test_the_data_is_checked_by_the_rule(all_changed: Changed) -> None:
    checks = {check["name"]: check for check in all_changed.document("validate-data/report")["checks"]}
    assert checks["several-songs"]["passed"]
    assert "several-songs" in (all_changed.run / "report.html").read_text()


def test_the_network_takes_the_hyperparameter(all_changed: Changed) -> None:
    assert all_changed.document("train-model/report")["hyperparameters"]["activation"] == "elu"
    model = onnx.load(str(all_changed.run / "convert-model" / "onnx_model"))
    assert "Elu" in {node.op_type for node in model.graph.node}


def test_evaluation_and_report_show_the_metric(all_changed: Changed) -> None:
    scores = all_changed.document("evaluate-model/evaluation")
    assert scores["model"]["all"]["top10"] > scores["model"]["all"]["top5"]
    assert "Top-10" in (all_changed.run / "report.html").read_text()


def test_the_run_has_the_step_before_the_gate(all_changed: Changed) -> None:
    [low, high] = all_changed.document("compare-slices/comparison")["label"]
    assert low < high
    ended = re.findall(r"step ([a-z-]+) succeeded", (all_changed.run / "run.log").read_text())
    assert ended.index("evaluate-model") < ended.index("compare-slices") < ended.index("verify-model")
    assert "compare-slices" in (all_changed.run / "report.html").read_text()


def test_the_cluster_takes_the_pipeline_with_the_step(all_changed: Changed) -> None:
    python(
        all_changed.copy,
        "-c",
        "from pipeline.settings import read_settings\n"
        "from scripts.compile_pipeline import pipeline_resources\n"
        "from scripts.spec_policy import judge\n"
        "settings = read_settings()\n"
        "resources = pipeline_resources(settings, image=settings.image + '@sha256:' + 64 * '0')\n"
        "assert 'compare-slices' in resources[1]['spec']['pipelineSpec']['root']['dag']['tasks']\n"
        "judge(*resources, settings)\n",
    )


def test_the_tests_of_the_graph_that_name_the_step_pass(all_changed: Changed) -> None:
    python(all_changed.copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_pipeline.py")
