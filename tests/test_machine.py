"""CPU counting: affinity and both generations of cgroup limits."""

from __future__ import annotations

import os

import pytest

from wm_engine import machine


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return tmp_path


def test_affinity_is_the_limit_where_there_is_no_cgroup(cgroups):
    assert machine.available_cpus() == 8


@pytest.mark.parametrize(
    ("text", "cpus"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)]
)
def test_cgroup_v2(cgroups, text, cpus):
    (cgroups / "cpu.max").write_text(text + "\n")
    assert machine.available_cpus() == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("300000", 3)])
def test_cgroup_v1(cgroups, quota, cpus):
    (cgroups / "cpu").mkdir()
    (cgroups / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (cgroups / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert machine.available_cpus() == cpus


def test_a_damaged_limit_is_no_limit(cgroups):
    (cgroups / "cpu.max").write_text("many of them")
    assert machine.available_cpus() == 8
