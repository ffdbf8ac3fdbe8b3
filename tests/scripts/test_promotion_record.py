"""The record of what production was pinned to, from the Git host to the cluster and back."""

from pathlib import Path
from typing import cast

import pytest

from scripts import promotion_record
from scripts.clients.git_hosts import GitHost
from scripts.clients.kubernetes_api import Cluster
from scripts.promote import promote
from scripts.proposals import Kind
from scripts.rollback import roll_back
from tests.kfp.world import NAMESPACE
from tests.kfp.world import World as Servers
from tests.scripts.proposing import World, candidate, pin

pytest_plugins = ("tests.kfp.fixtures",)


@pytest.fixture
def proposing(tmp_path: Path) -> World:
    """A repository whose main pins version 3."""
    made = World(tmp_path / "proposing")
    made.repository.pin(3)
    return made


def merge(proposing: World, kind: Kind) -> str:
    """Merge the open proposal; return the commit of main."""
    pull = proposing.host.pulls[-1]
    proposing.host.merge(pull.number, proposing.repository.tip(proposing.branch(kind)), pull.title)
    return proposing.repository.tip("main")


def test_a_promotion_is_recorded_with_who_approved_and_merged_it(proposing: World, world: Servers) -> None:
    promote(proposing.proposals(), candidate(7))
    commit = merge(proposing, Kind.PROMOTION)
    record = promotion_record.build(cast(GitHost, proposing.host), proposing.settings, commit, pin(3), pin(7))
    world.cluster.add("configmaps", {"metadata": {"name": "jukebox-promotions"}})
    promotion_record.write(Cluster(NAMESPACE), record, "2026-11-28T10:05:00Z")
    [found] = promotion_record.read(Cluster(NAMESPACE))
    assert promotion_record.in_words(found) == (
        "promotion from 3 to 7, merged by ada, approved by bob, on 2026-11-28T10:00:00Z, served since "
        "2026-11-28T10:05:00Z: Promote jukebox 7 to production"
    )
    assert promotion_record.passed([found]) == {pin(7)}


def test_a_rollback_is_recorded_with_its_reason_beside_the_record_of_the_same_version(
    proposing: World, world: Servers
) -> None:
    host, cluster = cast(GitHost, proposing.host), Cluster(NAMESPACE)
    world.cluster.add("configmaps", {"metadata": {"name": "jukebox-promotions"}})
    first = promotion_record.build(host, proposing.settings, proposing.repository.tip("main"), None, pin(3))
    promotion_record.write(cluster, first, "2026-11-27T10:05:00Z")
    proposing.repository.pin(7)
    roll_back(proposing.proposals(), pin(3), "wrong answers")
    commit = merge(proposing, Kind.ROLLBACK)
    now = proposing.repository.read_pin()
    promotion_record.write(
        cluster, promotion_record.build(host, proposing.settings, commit, pin(7), now), "2026-11-28T10:05:00Z"
    )
    last, before = promotion_record.read(cluster)
    assert promotion_record.in_words(last).startswith("rollback from 7 to 3, merged by ada")
    assert last["why"] == now.hold
    assert promotion_record.in_words(before) == "by hand from nothing to 3, served since 2026-11-27T10:05:00Z"


def test_what_is_not_a_record_is_left_out(world: Servers) -> None:
    data = {"1": "{", "2": "[]", "3": '{"version": "3"}', "4": '{"version": 4}'}
    world.cluster.add("configmaps", {"metadata": {"name": "jukebox-promotions"}, "data": data})
    records = promotion_record.read(Cluster(NAMESPACE))
    assert [record["version"] for record in records] == [4]
    assert promotion_record.passed(records) == set()
    words = promotion_record.in_words({"version": 4, "why": "\x1b[2J\n"})
    assert words == "change from nothing to 4, served since an unknown time: [2J"
