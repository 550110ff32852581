"""The LSTM that predicts a mean: least squares, dreams without a spread, and every ability of the MDN-RNN."""

from __future__ import annotations

import math

import pytest
import torch
from checker import check
from models.test_mdn_rnn import random_episodes
from oracle import Oracle

from wm_engine import ControllerSpec, DreamEngine, Starts
from wm_engine.core import core
from wm_engine.data.sequences import stack_windows
from wm_engine.errors import ConfigError
from wm_engine.models.base import WorldState, load_world_model
from wm_engine.models.ensemble import Ensemble, build_world_model
from wm_engine.models.lstm import LSTM, LSTMSettings
from wm_engine.models.trainer import Trainer
from wm_engine.ops.mdn import LOG_STD_LIMIT
from wm_engine.run.config import make_config
from wm_engine.spaces import Discrete, Spaces, Vector

Z, A, H = 5, 2, 9
BACKENDS = ["torch", pytest.param("cpp", marks=pytest.mark.skipif(core()[0] is None, reason=core()[1] or "built"))]


def random_lstm(residual: bool = False) -> LSTM:
    torch.manual_seed(0)
    return LSTM(Z, A, H, residual)


@pytest.mark.parametrize("residual", [False, True])
def test_its_latent_loss_is_half_the_squared_error_and_a_constant(residual: bool) -> None:
    m, settings = random_lstm(residual), LSTMSettings(residual=residual)
    batch = stack_windows(random_episodes([5, 9, 2], Z, A))

    def squares(dtype: torch.dtype) -> torch.Tensor:
        heads, _ = m.to(dtype).sequence(torch.cat([batch.mu[:-1], batch.actions], dim=-1).to(dtype))
        target = (batch.mu[1:] - batch.mu[:-1] if residual else batch.mu[1:]).to(dtype)
        errors = (heads[..., 1 : 1 + Z] - target)[batch.live]
        return 0.5 * errors.square().mean() + 0.5 * math.log(2.0 * math.pi)

    with torch.no_grad():
        _, said = m.loss(batch, torch.Generator(), settings)
        check("loss", said["nll_per_dimension"], squares(torch.float64), squares(torch.float32))


def test_the_width_of_its_dreams_is_never_learnt() -> None:
    m = random_lstm()
    trainer, batch = Trainer("memory", m), stack_windows(random_episodes([5, 9], Z, A))
    before = m.head.weight.detach().clone()
    for step in range(3):
        value, _ = m.loss(batch, torch.Generator().manual_seed(step), LSTMSettings())
        trainer.step(value, 0.1, 1.0)
    widths = slice(1 + Z, 1 + 2 * Z)
    assert bool((m.head.bias[widths] == -LOG_STD_LIMIT).all())
    assert not bool(m.head.weight[widths].any())
    assert not torch.equal(m.head.weight[1 : 1 + Z], before[1 : 1 + Z])


@pytest.mark.parametrize("residual", [False, True])
def test_a_dreamt_step_takes_the_mean(residual: bool) -> None:
    m = random_lstm(residual)
    z, action, h, c = (torch.randn(4, size) for size in (Z, A, H, H))
    words = torch.zeros(4, m.blocks, 4, dtype=torch.int64)
    with torch.no_grad():
        out = m.imagine(WorldState(z, h, c), action, words, 0.0)
        mean = m.head(out.state.h)[:, 1 : 1 + Z]
    assert torch.equal(out.state.z, z + mean if residual else mean)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("residual", [False, True])
def test_backends_dream_it_as_the_oracle_does(backend: str, residual: bool) -> None:
    m, spec = random_lstm(residual), ControllerSpec(Z, H, A, "zh", "argmax")
    params, z = torch.randn(3, spec.num_params), torch.randn(4, Z)
    weights = {name: value.numpy() for name, value in m.state_dict().items()}
    oracle = Oracle(weights, Z, A, H, 1, "shared", "zh", "argmax", 0, residual)
    plan = {"episodes": 4, "max_steps": 3, "temperature": 1.0, "seed": 5}
    want = oracle.rollout(params.numpy(), z.numpy(), None, None, **plan)

    def dreamt(backend: str) -> torch.Tensor:
        return DreamEngine(m, spec, backend=backend).rollout(params, Starts(z), record=True, **plan).z

    check("z", dreamt(backend), want["z"], dreamt("torch"))


def test_it_is_a_kind_of_its_own_and_makes_ensembles(tmp_path) -> None:
    m = random_lstm(residual=True)
    m.save(tmp_path / "m.safetensors")
    loaded = load_world_model(tmp_path / "m.safetensors")
    assert isinstance(loaded, LSTM)
    assert loaded.metadata() == m.metadata() == {
        "kind": "lstm", "latent": "5", "action": "2", "hidden": "9", "residual": "True",
    }  # fmt: skip
    settings = make_config({"memory": {"kind": "lstm", "hidden": 4, "members": 3, "residual": True}}).memory
    ensemble = build_world_model(Z, Spaces(Vector(Z), Discrete(A)), settings)
    assert isinstance(ensemble, Ensemble)
    assert [(type(member), member.residual) for member in ensemble.episode_models()] == [(LSTM, True)] * 3
    with pytest.raises(ConfigError, match=r"memory\.mixtures: unknown key"):
        make_config({"memory": {"kind": "lstm", "mixtures": 5}})
