"""The alerts, judged by the real promtool on series that an incident would leave."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.manifests.building import of_kind
from tests.tekton.manifests import Resource

CASES = [Path(__file__).parent / name for name in ("alerts.yaml", "alerts-of-weeks.yaml")]


@pytest.fixture
def promtool() -> str:
    program = shutil.which("promtool")
    if not program:
        pytest.skip("promtool is not installed: nothing evaluates the alerts; on Debian: apt install prometheus")
    return program


@pytest.fixture
def rules(laden: dict[str, list[Resource]], tmp_path: Path) -> Path:
    """The rules of an overlay with all components, as Prometheus reads them, beside the cases."""
    found = of_kind(laden["openshift-ai/prod"], "PrometheusRule")
    groups = [group for rule in found for group in rule["spec"]["groups"]]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": groups}))
    for cases in CASES:
        shutil.copy(cases, tmp_path)
    return path


def run(program: str, *arguments: str | Path) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_rules_are_well_formed(promtool: str, rules: Path) -> None:
    assert run(promtool, "check", "rules", "--lint=all", "--lint-fatal", rules) == ""


def test_each_alert_fires_when_it_should_and_only_then(promtool: str, rules: Path) -> None:
    assert run(promtool, "test", "rules", *(rules.parent / cases.name for cases in CASES)) == ""


def test_each_alert_has_a_case_of_firing_and_one_of_silence(rules: Path) -> None:
    groups = yaml.safe_load(rules.read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    incidents = [incident for cases in CASES for incident in yaml.safe_load(cases.read_text())["tests"]]
    tests = [one for incident in incidents for one in incident["alert_rule_test"]]
    assert {one["alertname"] for one in tests if one["exp_alerts"]} == alerts
    assert {one["alertname"] for one in tests if not one["exp_alerts"]} == alerts


def test_the_alerts_that_start_a_training_are_these(rules: Path) -> None:
    groups = yaml.safe_load(rules.read_text())["groups"]
    found = {rule["alert"] for group in groups for rule in group["rules"] if "retrain" in rule.get("labels", {})}
    assert found == {"JukeboxStale", "JukeboxDrift"}


def test_a_broken_rule_is_seen(promtool: str, rules: Path) -> None:
    rules.write_text(rules.read_text().replace("> 0.05", "> 5"))
    assert "JukeboxErrors" in run(promtool, "test", "rules", rules.parent / CASES[0].name)
