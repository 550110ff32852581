"""The measuring itself: turns, ratios, checks that refuse wrong results, a guard that sees a slowed build."""

import json
import sys

import pytest
import torch
from click.testing import CliRunner

from wm_engine import DreamEngine
from wm_engine.bench import cpu, dreams, guard, history, plots, profile_cpu, rivals, roofs, tables
from wm_engine.bench import measure as measure_module
from wm_engine.bench.check import STEPS, WrongResultError, check, check_values, compare
from wm_engine.bench.commands import bench, profile
from wm_engine.bench.costs import phase_costs
from wm_engine.bench.measure import Timing, interleave, ratio
from wm_engine.bench.workload import Workload, prepare
from wm_engine.errors import MissingDependencyError
from wm_engine.ops.mdn import MIXTURES

SMALL = {"candidates": 3, "episodes": 4, "steps": 24, "latent": 6, "hidden": 16, "mixtures": 3}


def _engine(name="torch fp32"):
    return next(rival for rival in rivals.rivals("cpu")[0] if rival.name == name)


def _changed(rival, change):
    """A rival whose returns are changed before anyone sees them."""
    return rivals.Rival(
        "changed", rival.kind, rival.device, rival.precision, lambda setup: lambda: change(rival.build(setup)())
    )


def test_turns_go_to_everyone_in_every_round():
    calls = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=5)
    assert [len(timing.seconds) for timing in timings.values()] == [5, 5]
    assert sorted(calls[:2]) == ["a", "b"], "a warm-up each"
    assert all(sorted(calls[i : i + 2]) == ["a", "b"] for i in range(2, 12, 2))


def test_quantiles_and_spread():
    timing = Timing((1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    assert (timing.median, timing.p20, timing.p80) == (3.5, 2.0, 5.0)
    assert timing.spread == pytest.approx(3.0 / 3.5)


def test_a_ratio_is_taken_within_rounds():
    # In the second round the machine was five times slower, for both.
    assert ratio(Timing((1.0, 5.0, 1.0)), 4.0, Timing((2.0, 10.0, 2.0)), 1.0) == 8.0


@pytest.mark.parametrize("early_end", [0.0, 0.5])
def test_the_lived_steps_are_those_of_the_dream(early_end):
    setup = prepare(Workload(**SMALL, early_end=early_end))
    plan = setup.plan
    out = DreamEngine(setup.m, setup.spec, backend="torch").rollout(
        setup.params, setup.starts, plan.episodes, plan.max_steps, seed=plan.seed, done=plan.done
    )
    assert setup.lived_steps() == int(out.lengths.sum())
    assert (setup.lived_steps() == 3 * 4 * 24) == (early_end == 0.0)


@pytest.mark.parametrize("bad", [{"candidates": 0}, {"early_end": 1.0}, {"mixture": "other"}])
def test_an_impossible_workload_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Workload(**bad)


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("early_end", [0.0, 0.9])
def test_every_rival_here_dreams_the_workload(mixture, early_end):
    setup = prepare(Workload(**SMALL, mixture=mixture, early_end=early_end))
    for rival in rivals.rivals("cpu")[0]:
        if not rival.name.startswith("torch.compile"):  # a minute of compiling; `pytest bench` checks it
            check(rival, setup)


@pytest.mark.parametrize(
    "change",
    [
        lambda returns: returns + 1e-4,
        lambda returns: returns.flip(0),
        lambda returns: returns.flip(1),
        lambda returns: returns[:-1],
        lambda returns: returns * float("nan"),
        torch.zeros_like,
    ],
    ids=["shifted", "candidates swapped", "episodes swapped", "one short", "nan", "zeros"],
)
def test_a_wrong_result_is_refused(change):
    setup = prepare(Workload(**SMALL))
    check(_engine(), setup)
    with pytest.raises(WrongResultError):
        check(_changed(_engine(), change), setup)


def test_a_wrong_distribution_is_refused():
    setup = prepare(Workload(**SMALL))
    loop = next(rival for rival in rivals.rivals("cpu")[0] if rival.own_numbers)
    for change in (lambda returns: returns + 1.0, lambda returns: returns.mean() + 2 * (returns - returns.mean())):
        wrong = rivals.Rival("changed", "peer", "cpu", "fp32", lambda s, c=change: lambda: c(loop.build(s)()), 1, True)
        with pytest.raises(WrongResultError):
            check(wrong, setup)


def test_another_branch_at_a_component_s_edge_is_no_error():
    exact = torch.linspace(-1, 1, 100, dtype=torch.float64).view(10, 10)
    returns = exact.clone().float()
    returns[3, 3] += 0.5
    result = compare(returns, exact, exact.float())
    assert all(error <= limit for error, limit in zip(result.errors, result.allowed, strict=True))


def _measured(field, monkeypatch):
    monkeypatch.setattr(dreams, "_RUN_SECONDS", 0.02)
    return dreams.measure(Workload(**SMALL), field, rounds=3, say=lambda text: None)


def test_a_wrong_rival_gets_no_speed(monkeypatch):
    entries = _measured([_engine(), _changed(_engine(), torch.zeros_like)], monkeypatch)
    by_name = {entry.name: entry for entry in entries}
    assert by_name["torch fp32"].steps_per_second > 0
    assert by_name["changed"].steps_per_second is None
    table = tables.dream_table(entries)
    assert [line for line in table if "changed" in line] == [f"WRONG: {by_name['changed'].wrong}"]
    assert f"after {STEPS} steps" in by_name["changed"].wrong


class _Clock:
    """A clock that only the timed runs move."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    process_time = perf_counter

    def sleep(self, seconds):
        pass

    def charge(self, run, seconds):
        def charged():
            out = run()
            self.now += seconds
            return out

        return charged

    def rival(self, seconds_a_step):
        """The torch backend, taking so long a step."""
        real = _engine()

        def build(setup):
            return self.charge(real.build(setup), seconds_a_step * setup.workload.steps)

        return rivals.Rival(real.name, real.kind, real.device, real.precision, build)


def test_the_guard_catches_a_slowed_build(monkeypatch, tmp_path, capsys):
    clock = _Clock()
    monkeypatch.setattr(measure_module, "time", clock)
    monkeypatch.setattr(dreams, "time", clock)
    monkeypatch.setattr(dreams, "peak_steps", lambda *_: None)
    monkeypatch.setattr(guard, "time", clock)
    monkeypatch.setattr(dreams, "products", lambda setup, *_: clock.charge(lambda: None, 0.01 * setup.workload.steps))
    monkeypatch.setattr(guard, "_workload", lambda mixture: Workload(**SMALL, mixture=mixture))
    path = tmp_path / "baseline.json"
    arguments = ["--baseline", str(path), "--rounds", "3"]

    def status(seconds_a_step, *more):
        monkeypatch.setattr(guard, "_field", lambda device: [clock.rival(seconds_a_step)])
        return guard.main([*arguments, *more])

    assert status(0.02) == 2, "no baseline yet"
    assert status(0.02, "--update") == 0
    assert status(0.02) == 0
    assert status(0.022) == 0, "9 % slower is within the margin"
    assert status(0.025) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("SLOWER")]
    assert lines == [
        f"SLOWER: torch fp32 / ceiling fp32, {mixture}: was 0.500, is 0.400, 20 % less" for mixture in sorted(MIXTURES)
    ]


def test_the_guard_refuses_a_wrong_build(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(dreams, "_RUN_SECONDS", 0.02)
    monkeypatch.setattr(guard, "_workload", lambda mixture: Workload(**SMALL, mixture=mixture))
    monkeypatch.setattr(guard, "_field", lambda device: [_changed(_engine(), torch.zeros_like)])
    assert guard.main(["--baseline", str(tmp_path / "b.json"), "--rounds", "1", "--update"]) == 1
    assert "no speed is given" in capsys.readouterr().out
    assert not (tmp_path / "b.json").exists()


def test_regressions_name_what_fell():
    before = {"a": 1.0, "b": 2.0, "c": 1.0}
    assert guard.regressions(before, {"a": 0.9, "b": 2.5, "c": 1.0}, 0.15) == []
    lines = guard.regressions(before, {"a": 0.8, "b": 2.0}, 0.15)
    assert lines == ["a: was 1.000, is 0.800, 20 % less", "c: was 1.000, is not measured any more"]


def test_the_history_only_grows(tmp_path):
    path = tmp_path / "deep" / "history.jsonl"
    assert history.read(path) == []
    history.append(path, [{"a": 1}])
    history.append(path, [{"a": 2}, {"a": 3}])
    with open(path, "a") as file:
        file.write('{"a": 4, "cu')
    assert history.read(path) == [{"a": 1}, {"a": 2}, {"a": 3}]


def test_the_history_is_told_by_workload_machine_and_rival():
    def row(name, hour, rate, **changes):
        sizes = {"candidates": 64, "episodes": 16, "latent": 32, "hidden": 256, "mixtures": 5, "action": 3}
        work = {"op": "dream", "mixture": "shared", "early_end": 0.0, "steps": 200, "kind": "engine"}
        machine = {"device": "cpu", "cpu": "a CPU", "threads": 2, "wm_engine": "0.1.0", "commit": "0123456789ab+"}
        measured = {"name": name, "steps_per_second": rate, "date": f"2026-11-21T{hour:02}:30:59+00:00"}
        return sizes | work | machine | measured | changes

    rows = [row("slow", 9, 7e3), row("slow", 8, 5e3), row("fast", 8, 11e3), row("fast", 9, 12e6, steps=100)]
    rows += [row("slow", 8, 3.0, hidden=512), row("slow", 8, 2.0, threads=1), row("slow", 8, 1.0, early_end=0.5)]
    rows += [row("wrong", 9, None), row("fast", 9, 13e6)]
    found = history.dreams(sorted(rows, key=lambda row: row["date"]))
    work = "P=64 E=16 Z=32 H=256 K=5 A=3, shared; a CPU, 2 threads"
    assert list(found[work]) == ["fast", "slow"]
    assert found[work]["fast"].rates == {"2026-11-21 08:30 0123456": 11e3, "2026-11-21 09:30 0123456": 13e6}
    assert [found[other]["slow"].last for other in found if other != work] == [3.0, 2.0, 1.0]
    assert "P=64 E=16 Z=32 H=256 K=5 A=3, shared, 50 % end early; a CPU, 2 threads" in found
    assert tables.history_table(found[work]) == [
        "dream steps/s  2026-11-21 08:30 0123456  2026-11-21 09:30 0123456",
        "fast                               11 k                  13,000 k",
        "slow                              5.0 k                     7.0 k",
    ]
    panels = plots.history_plot(found).axes
    assert [panel.get_title(loc="left") for panel in panels] == list(found)
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["fast", "slow"]


def test_the_command_measures_plots_and_remembers(monkeypatch, tmp_path):
    monkeypatch.setattr(dreams, "_RUN_SECONDS", 0.02)
    history_file = tmp_path / "history.jsonl"
    sizes = ["-P2", "-P4", "-E3", "-T8", "-Z4", "-H8", "-K2", "--rounds=3"]
    sizes += ["--peers=none", "--backend=torch", "--precision=fp32"]
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png"), "--history-file", str(history_file)]
    result = CliRunner().invoke(bench, [*sizes, *files])
    assert result.exit_code == 0, result.output
    assert "P=2 E=3 T=8" in result.output
    assert "torch fp32 *" in result.output
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [(row["name"], row["candidates"]) for row in rows if row["kind"] == "engine"] == [
        ("torch fp32", 2),
        ("torch fp32", 4),
    ]
    kept = history.read(history_file)
    assert len(kept) == len(rows)
    assert {"date", "commit", "cpu", "threads", "isa", "device", "torch"} <= kept[0].keys()
    assert (tmp_path / "b.png").stat().st_size > 0
    shown = CliRunner().invoke(
        bench, ["--history", "--history-file", str(history_file), "--plot", str(tmp_path / "h.png")]
    )
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "h.png").stat().st_size > 0


def test_the_cpu_s_table_has_every_mixture_peer_and_thread_ratio(monkeypatch, tmp_path, capsys):
    if cpu.CppBackend.available()[0] is False:
        pytest.skip(cpu.CppBackend.available()[1])
    monkeypatch.setattr(dreams, "_RUN_SECONDS", 0.01)
    monkeypatch.setattr(cpu, "_PEERS", ("torch eager, batched fp32",))  # compiling takes a minute
    assert cpu.main(["--rounds", "1", "-P", "16", "-E", "4", "-T", "3", "-H", "64", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if "threads x 1" in line)
    rows = [line.split() for line in lines[at + 1 : at + 7]]
    assert [row[:2] for row in rows] == [[m, p] for m in MIXTURES for p in ("fp32", "bf16", "int8")]
    assert all(float(value) > 0.0 for row in rows for value in row[2:])
    assert {len(row) for row in rows} == {4}
    written = json.loads((tmp_path / "cpu.json").read_text())
    assert {row["kind"] for row in written["rows"]} == {"engine", "peer", "one thread", "ceiling"}
    assert written["peak_scaling"].keys() >= {"fp32"}
    assert all(value > 0.0 for value in written["peak_scaling"].values())


def test_the_cpu_s_table_needs_the_core(monkeypatch, capsys):
    monkeypatch.setattr(cpu.CppBackend, "available", staticmethod(lambda: (False, "not built, because")))
    assert cpu.main([]) == 2
    assert "not built, because" in capsys.readouterr().err


def test_nothing_to_time_is_an_error_of_use():
    result = CliRunner().invoke(bench, ["--backend", "abacus", "--peers", "none"])
    assert result.exit_code == 2
    assert "nothing to time" in result.output


def test_a_plot_leaves_out_what_was_wrong(tmp_path):
    entries = [dreams.Entry("a", "engine", "fp32", Workload(), wrong="no")]
    plots.write(plots.population_plot(entries), tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()


def test_the_costs_of_the_phases_are_those_of_the_matrices():
    for mixture in MIXTURES:
        work = Workload(mixture=mixture)
        flops = {name: cost.flops for name, cost in phase_costs(work, "fp32", 48).items()}
        dense = work.macs_per_step()
        assert flops["gates"] == 2 * dense["gates"]
        assert flops["controller"] == 2 * dense["controller"]
        head = flops["reward_and_end"] + flops["mixture"]
        logits = 5 if mixture == "shared" else 5 * 32
        assert head == 2 * 256 * (2 * 32 + logits + 2), "one component of five"


def test_bytes_fall_with_the_tile_and_with_the_precision():
    def gates(precision, rows):
        return phase_costs(Workload(), precision, rows)["gates"].bytes

    assert gates("fp32", 1) - gates("fp32", 2) == 4 * 1024 * 291 / 2
    assert gates("bf16", 1) < gates("fp32", 1)


class _Core:
    """A core with timers that read 1, 2, ... microseconds a phase, for two rollouts and ten steps on one thread."""

    def __init__(self):
        names = list(profile_cpu.PHASES)
        events = []
        for step in range(10):
            for place, name in enumerate(names):
                began = 100_000 * step + 10_000 * place
                events.append((0, name, 2, began, began + 1000 * (place + 1)))
        self._laps = {
            "nanoseconds": {name: 10_000 * (place + 1) for place, name in enumerate(names)},
            "rows": dict.fromkeys(names, 20),
            "first": events,
        }

    def take_laps(self):
        return self._laps


def test_phases_add_up(monkeypatch):
    monkeypatch.setitem(sys.modules, "wm_engine._C", _Core())
    setup = prepare(Workload(**SMALL))
    profile = profile_cpu.profile_cpp(_engine(), setup, threads=2)
    assert sum(phase.share for phase in profile.phases) == pytest.approx(1.0)
    assert profile.row_steps == 20
    assert profile.rows_a_tile == 2
    gates = next(phase for phase in profile.phases if phase.name == "gates and cell")
    assert gates.nanoseconds == 1000
    assert gates.gflops == pytest.approx(2 * 2 * 64 * (6 + 3 + 16) / 1000), "two threads, 2 flops a multiply-add"
    trace = profile_cpu.chrome_trace(profile)["traceEvents"]
    assert trace[0] == {
        "name": "controller",
        "cat": "dream",
        "ph": "X",
        "pid": 0,
        "tid": 0,
        "ts": 0.0,
        "dur": 1.0,
        "args": {"rollouts": 2},
    }


def test_a_core_without_timers_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "wm_engine._C", object())
    with pytest.raises(MissingDependencyError, match="WM_PROFILE=ON"):
        profile_cpu.profile_cpp(_engine(), prepare(Workload(**SMALL)), threads=1)


def test_the_profile_of_a_wrong_backend_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "wm_engine._C", _Core())
    with pytest.raises(WrongResultError):
        profile_cpu.profile_cpp(_changed(_engine(), torch.zeros_like), prepare(Workload(**SMALL)), threads=1)


def test_the_profile_command_writes_trace_table_and_plot(monkeypatch, tmp_path):
    monkeypatch.setattr(roofs, "_SIDE", {"cpu": 64})
    monkeypatch.setattr(roofs, "_MEMORY_BYTES", {"cpu": 1 << 16})
    arguments = ["-P2", "-E3", "-T4", "-Z4", "-H8", "-K2", "--backend=torch", "--out", str(tmp_path / "p")]
    result = CliRunner().invoke(profile, arguments)
    assert result.exit_code == 0, result.output
    assert "aten::" in result.output
    assert json.loads((tmp_path / "p" / "trace.json").read_text())["traceEvents"]
    assert json.loads((tmp_path / "p" / "profile.json").read_text())["operators"]
    assert (tmp_path / "p" / "roofline.png").stat().st_size > 0


def test_an_unknown_backend_to_profile_is_an_error_of_use(tmp_path):
    result = CliRunner().invoke(profile, ["--backend", "abacus", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "abacus" in result.output


def test_values_are_held_to_float64():
    exact = [torch.linspace(0, 1, 10, dtype=torch.float64)]
    plain = [exact[0].float()]
    check_values("op", plain, exact, plain)
    for wrong in (plain[0] + 1e-4, plain[0].flip(0), torch.full((10,), float("nan"))):
        with pytest.raises(WrongResultError):
            check_values("op", [wrong], exact, plain)
