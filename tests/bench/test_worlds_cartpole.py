"""CartPole's table: what its rows change, and how it reads."""

from __future__ import annotations

from click.testing import CliRunner

from wm_engine.bench.worlds import cartpole


def config_of(name: str):
    return cartpole.config_of(cartpole.ROWS[name])


def test_rows_have_equal_budgets_and_differ_in_what_they_say():
    preset = config_of("preset")
    for name in cartpole.ROWS:
        config, rounds = config_of(name), config_of(name).rounds
        for section in ("memory", "controller"):
            of = {"memory": lambda c: sum(c.memory.steps_in(i) for i in range(c.rounds)),
                  "controller": lambda c: c.rounds * c.controller.dream_generations}[section]  # fmt: skip
            assert of(config) == of(preset), (name, section)
        assert (rounds > 1) == (name in ("lstm-rounds", "mdn-rounds", "preset"))
        assert config.memory.residual == (name in ("lstm-residual", "mdn-residual", "lstm-both", "both", "preset"))
        many = ("lstm-ensemble", "mdn-ensemble", "lstm-both", "both", "preset")
        assert config.memory.members == (5 if name in many else 1)


def test_the_table_shows_every_seed_and_dream_beside_real():
    run = {"dream": 300.0, "real": 60.0, "random": 22.0, "peers": {}, "frames": 20000, "minutes": 1.5}
    lines = cartpole.table({"lstm": [run, run | {"real": 80.0}], "preset": [run | {"peers": {"DQN": 193.0}}]})
    assert lines[1].split() == ["LSTM,", "random", "data", "300", "70", "60,", "80", "20,000", "1.5", "22"]
    assert lines[2].split()[-2:] == ["22", "193"]


def test_an_unknown_row_is_refused(tmp_path):
    said = CliRunner().invoke(cartpole.cli, ["--out", str(tmp_path), "--rows", "gru"])
    assert said.exit_code == 2
    assert "'gru' is no row; there are lstm, mdn" in said.output
