"""CPU counting: affinity and both generations of cgroup limits; and the libraries' threads."""

from __future__ import annotations

import os

import pytest
import torch

from wm_engine import machine


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


def join(cgroups, *lines):
    """This process is in these cgroups, in the words of /proc/self/cgroup."""
    (cgroups.parent / "membership").write_bytes("".join(f"{line}\n" for line in lines).encode())


def limit_v2(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(f"{text}\n")


def limit_v1(folder, quota, period="100000"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


def test_affinity_is_the_limit_where_there_is_no_cgroup(cgroups):
    assert machine.available_cpus() == 8


@pytest.mark.parametrize(
    ("text", "cpus"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)]
)
def test_cgroup_v2(cgroups, text, cpus):
    limit_v2(cgroups, text)
    assert machine.available_cpus() == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("300000", 3)])
def test_cgroup_v1(cgroups, quota, cpus):
    limit_v1(cgroups / "cpu", quota)
    assert machine.available_cpus() == cpus


@pytest.mark.parametrize(
    ("own", "slice_", "root", "cpus"),
    [("300000", "max", None, 3), ("max", "300000", None, 3), ("500000", "200000", None, 2), ("max", "400000", "1", 1)],
)
def test_the_least_quota_over_a_nested_cgroup_of_v2_and_its_ancestors(cgroups, own, slice_, root, cpus):
    join(cgroups, "0::/jobs.slice/job 7: mine.scope")  # a path may hold spaces and colons
    limit_v2(cgroups / "jobs.slice" / "job 7: mine.scope", f"{own} 100000")
    limit_v2(cgroups / "jobs.slice", f"{slice_} 100000")
    limit_v2(cgroups / "jobs.slice" / "another.scope", "100000 100000")  # somebody else's
    if root:
        limit_v2(cgroups, f"{root}00000 100000")
    assert machine.available_cpus() == cpus


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("own", "parent", "cpus"), [("300000", "-1", 3), ("-1", "200000", 2), ("-1", "-1", 8)])
def test_the_least_quota_over_a_nested_cgroup_of_v1_and_its_ancestors(cgroups, mount, own, parent, cpus):
    join(cgroups, "5:memory:/elsewhere", "4:cpu,cpuacct:/batch/job7", "3:cpuset:/set", "1:name=systemd:/user")
    limit_v1(cgroups / mount / "batch" / "job7", own)
    limit_v1(cgroups / mount / "batch", parent)
    for other in ("elsewhere", "set", "user"):  # the paths of other hierarchies
        limit_v1(cgroups / mount / other, "100000")
    assert machine.available_cpus() == cpus


@pytest.mark.parametrize(("v1", "v2", "cpus"), [("300000", "500000", 3), ("500000", "300000", 3), ("-1", "max", 8)])
def test_both_generations_at_once(cgroups, v1, v2, cpus):
    join(cgroups, "2:cpu:/old", "0::/new")
    limit_v1(cgroups / "cpu" / "old", v1)
    limit_v2(cgroups / "new", f"{v2} 100000")
    assert machine.available_cpus() == cpus


def test_a_containers_mount_that_begins_at_its_own_cgroup(cgroups):
    join(cgroups, "4:cpu:/docker/0123", "0::/docker/0123")
    limit_v1(cgroups / "cpu", "300000")
    limit_v2(cgroups, "200000 100000")
    assert machine.available_cpus() == 2


@pytest.mark.parametrize(
    "text", ["many of them", "lots 100000", "200000", "200000 0", "-5 100000", "", "9" * 400 + " 1"]
)
def test_a_damaged_limit_is_no_limit(cgroups, text):
    join(cgroups, "0::/nested")
    limit_v2(cgroups, text)
    limit_v2(cgroups / "nested", text)
    assert machine.available_cpus() == 8


@pytest.mark.parametrize(
    "line", ["0::/../outside", "0::", "0::outside", "cpu", "", "4:cpu:", "4:cpu", "::/", "0::/no/such", "0::/\0"]
)
def test_an_odd_membership_leaves_the_roots_limit(cgroups, line):
    join(cgroups, line, "0::/fine")
    limit_v2(cgroups.parent / "outside", "100000 100000")
    limit_v2(cgroups / "outside", "100000 100000")
    limit_v2(cgroups / "fine", "600000 100000")
    limit_v2(cgroups, "700000 100000")
    assert machine.available_cpus() == 6


def test_a_limit_or_a_membership_that_cannot_be_read_is_none(cgroups):
    (cgroups.parent / "membership").mkdir()
    (cgroups / "cpu.max").mkdir()
    assert machine.available_cpus() == 8


def test_a_cgroup_named_in_other_bytes_than_utf_8(cgroups):
    (cgroups.parent / "membership").write_bytes(b"0::/caf\xe9\n")
    limit_v2(cgroups / os.fsdecode(b"caf\xe9"), "300000 100000")
    assert machine.available_cpus() == 3


knows_its_blas = pytest.mark.skipif(machine.describe_blas()[1] == 0, reason="NumPy's BLAS cannot be asked")


@knows_its_blas
@pytest.mark.usefixtures("threads_kept")
def test_threads_are_torchs_and_those_of_numpys_blas(cgroups):
    for count, threads in ((2, 2), (1, 1), (0, 8), (3, 3)):
        machine.use_threads(count)
        assert torch.get_num_threads() == threads
        assert machine.describe_blas()[1] == threads


@knows_its_blas
def test_a_blas_is_named_or_unknown(monkeypatch):
    name, threads = machine.describe_blas()
    assert name.split()[0] in ("openblas", "mkl", "blis", "flexiblas")
    assert threads >= 1
    monkeypatch.setattr(machine, "threadpool_info", lambda: [{"user_api": "openmp", "num_threads": 4}])
    assert machine.describe_blas() == ("unknown", 0)


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """A function that makes the kernel list a processor's features in the given line."""

    def lists(line: str) -> None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
        monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
        machine._cpu_flags.cache_clear()
        machine.choose_precision.cache_clear()

    yield lists
    machine._cpu_flags.cache_clear()
    machine.choose_precision.cache_clear()


@pytest.mark.parametrize(
    ("line", "precision"),
    [
        ("flags\t\t: fpu avx2 avx512f", "fp32"),
        ("flags\t\t: fpu avx512f avx512_bf16", "bf16"),
        ("flags\t\t: fpu amx_bf16 amx_tile", "bf16"),
        ("Features\t: fp asimd bf16", "bf16"),
        ("Features\t: fp asimd", "fp32"),
        ("model name\t: avx512_bf16", "fp32"),
    ],
)
def test_auto_takes_bf16_where_the_processor_has_instructions_for_it_and_says_so_once(
    processor, caplog, line, precision
):
    processor(line)
    with caplog.at_level("INFO", logger="wm_engine"):
        chosen = [machine.choose_precision("vision.precision", "auto", torch.device("cpu")) for _ in range(3)]
    assert chosen == [precision] * 3
    assert caplog.text.count(f"vision.precision: {precision} on cpu") == 1


def test_a_precision_that_was_asked_for_is_taken_whatever_the_processor_has(processor):
    processor("flags\t\t: fpu")
    assert machine.choose_precision("vision.precision", "bf16", torch.device("cpu")) == "bf16"
