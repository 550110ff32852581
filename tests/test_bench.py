"""The measuring itself: turns, ratios, checks that refuse wrong results, a guard that sees a slowed build."""

import json
import time

import pytest
import torch
from click.testing import CliRunner

from wm_engine import DreamEngine
from wm_engine.bench import dreams, guard, history, plots, rivals, tables
from wm_engine.bench.check import STEPS, WrongResultError, check, compare
from wm_engine.bench.commands import bench
from wm_engine.bench.measure import Timing, interleave, ratio
from wm_engine.bench.workload import Workload, prepare
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
    assert [line for line in table if "changed" in line] == [f"WRONG, no speed given: {by_name['changed'].wrong}"]
    assert f"after {STEPS} steps" in by_name["changed"].wrong


def _slowed(rival, factor):
    def build(setup):
        run = rival.build(setup)

        def slow():
            began = time.perf_counter()
            out = run()
            time.sleep((factor - 1) * (time.perf_counter() - began))
            return out

        return slow

    return rivals.Rival(rival.name, rival.kind, rival.device, rival.precision, build)


def test_the_guard_catches_a_slowed_build(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(dreams, "_RUN_SECONDS", 0.05)
    monkeypatch.setattr(guard, "_workload", lambda mixture: Workload(**SMALL, mixture=mixture))
    monkeypatch.setattr(guard, "_field", lambda device: [_engine()])
    path = tmp_path / "baseline.json"
    arguments = ["--baseline", str(path), "--rounds", "5", "--margin", "0.6"]
    assert guard.main(arguments) == 2, "no baseline yet"
    assert guard.main([*arguments, "--update"]) == 0
    monkeypatch.setattr(guard, "_field", lambda device: [_slowed(_engine(), 6.0)])
    assert guard.main(arguments) == 1
    assert "SLOWER: torch fp32 / bare matrix products fp32" in capsys.readouterr().out


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


def test_the_command_measures_plots_and_remembers(monkeypatch, tmp_path):
    monkeypatch.setattr(dreams, "_RUN_SECONDS", 0.02)
    history_file = tmp_path / "history.jsonl"
    sizes = ["-P2", "-P4", "-E3", "-T8", "-Z4", "-H8", "-K2", "--rounds=3"]
    sizes += ["--peers=none", "--backend=torch", "--precision=fp32"]
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png"), "--history-file", str(history_file)]
    threads = torch.get_num_threads()
    try:
        result = CliRunner().invoke(bench, [*sizes, *files])
    finally:
        torch.set_num_threads(threads)
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


def test_nothing_to_time_is_an_error_of_use():
    result = CliRunner().invoke(bench, ["--backend", "abacus", "--peers", "none"])
    assert result.exit_code == 2
    assert "nothing to time" in result.output


def test_a_plot_leaves_out_what_was_wrong(tmp_path):
    entries = [dreams.Entry("a", "engine", "fp32", Workload(), wrong="no")]
    plots.write(plots.population_plot(entries), tmp_path / "p.png")
    assert (tmp_path / "p.png").exists()
