"""The torch backend dreams every kind of world model; the others refuse all but the MDN-RNN, in words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checker import check
from models.drift import Drift
from torch import Tensor
from world import World

from wm_engine import ControllerSpec, DreamEngine, Starts
from wm_engine.dream import BACKENDS, engine
from wm_engine.models.base import Imagined, WorldModel, WorldState


class Veiled(WorldModel):
    """An MDN-RNN that does not look like one: the backend must take the general way."""

    def __init__(self, m: Any) -> None:
        super().__init__()
        self.inner = m
        self.latent, self.action, self.hidden, self.blocks = m.latent, m.action, m.hidden, m.blocks

    @classmethod
    def build(cls, latent: int, spaces: Any, settings: Any) -> Veiled:
        raise NotImplementedError

    def initial(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.inner.initial(batch)

    def observe(self, z: Tensor, action: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.inner.observe(z, action, state)

    def imagine(self, state: WorldState, action: Tensor, words: Tensor, temperature: float) -> Imagined:
        return self.inner.imagine(state, action, words, temperature)

    def loss(self, batch: Any, generator: Any, settings: Any) -> Any:
        raise NotImplementedError

    def predict(self, batch: Any, z: Tensor) -> dict[str, Tensor]:
        return self.inner.predict(batch, z)


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
@pytest.mark.parametrize("temperature", [0.0, 1.15])
@pytest.mark.parametrize(("reward", "done"), [("predicted", "threshold"), ("survival", "sample")])
@pytest.mark.parametrize("common", [True, False])
def test_the_general_way_is_the_oracles(mixture: str, temperature: float, reward: str, done: str, common: bool) -> None:
    world = World(mixture, "zhc")
    plan = {"episodes": 5, "max_steps": 6, "temperature": temperature, "reward": reward, "done": done, "seed": 9}
    plan |= {"common_random_numbers": common, "first_candidate": 0 if common else 77}
    want, peer = world.want(**plan), world.got("torch", **plan)
    for precision, held in (("fp64", None), ("fp32", peer)):
        veiled = DreamEngine(Veiled(world.m), world.spec, backend="torch", precision=precision)
        out = veiled.rollout(world.params, world.starts, record=True, **plan)
        assert out.lengths.tolist() == want["lengths"].tolist()
        for name in ("returns", "z", "actions", "rewards"):
            check(
                f"{name} ({precision})", getattr(out, name), want[name], None if held is None else getattr(held, name)
            )
        assert not out.failed.any()


DRIFT_SPEC = ControllerSpec(latent=2, hidden=1, action=1, features="z", squash="identity")


def still(action: float) -> Tensor:
    """Parameters [1, D] of a controller that always does the same."""
    return torch.tensor([[0.0, 0.0, action]])


def test_a_kind_without_a_hidden_state_is_dreamt() -> None:
    starts = Starts(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    out = DreamEngine(Drift(wall=3.5), DRIFT_SPEC).rollout(still(1.0), starts, episodes=3, max_steps=6, record=True)
    assert out.returns.tolist() == [[4.0, 2.0, 4.0]]
    assert out.lengths.tolist() == [[4, 2, 4]]
    assert out.z is not None
    assert out.z[:, 0, 1, 0].tolist() == [3.0, 4.0, 0.0, 0.0, 0.0, 0.0]


def test_a_candidates_dream_does_not_depend_on_its_company() -> None:
    drift = DreamEngine(Drift(hidden=1, spread=0.5, wall=2.0), ControllerSpec(2, 1, 1, "zhc", "tanh"))
    params = torch.randn(9, drift.controller.num_params, generator=torch.Generator().manual_seed(0))
    starts = Starts(torch.randn(3, 2), torch.zeros(3, 1), torch.zeros(3, 1))
    plan: dict[str, Any] = {"episodes": 5, "max_steps": 20, "done": "sample", "common_random_numbers": False}
    whole = drift.rollout(params, starts, **plan)
    for first, last in ((0, 1), (1, 4), (4, 9)):
        part = drift.rollout(params[first:last], starts, first_candidate=first, **plan)
        assert torch.equal(part.returns, whole.returns[first:last])
        assert torch.equal(part.lengths, whole.lengths[first:last])


def test_a_kind_that_says_nan_fails_alone() -> None:
    engine = DreamEngine(Drift(), DRIFT_SPEC)
    params = torch.cat([still(0.5), still(-3e38), still(-0.5)])
    out = engine.rollout(params, Starts(torch.zeros(1, 2)), episodes=2, max_steps=4)
    assert out.failed.tolist() == [False, True, False]
    assert out.returns[1].isnan().all()
    assert out.returns[0].tolist() == [2.0, 2.0]


def test_the_model_is_copied_and_left_as_it_is() -> None:
    drift = Drift(spread=0.5).train()
    engine = DreamEngine(drift, DRIFT_SPEC, precision="fp64")
    drift.price.data.fill_(100.0)
    out = engine.rollout(still(1.0), Starts(torch.zeros(1, 2)), episodes=1, max_steps=3)
    assert out.returns.tolist() == [[3.0]]
    assert drift.training
    assert drift.price.dtype == torch.float32


def test_auto_takes_torch_for_another_kind_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    engine._logged.clear()
    with caplog.at_level("INFO"):
        assert DreamEngine(Drift(), DRIFT_SPEC).backend == "torch"
    entry = next(entry for entry in BACKENDS if entry.name == "cpp")
    if entry.missing() is None:
        assert "backend cpp is passed over: it dreams MDN-RNNs alone, and this world model is a Drift" in caplog.text


@pytest.mark.parametrize("name", [entry.name for entry in BACKENDS if entry.name != "torch"])
def test_the_other_backends_refuse_another_kind_in_words(name: str) -> None:
    entry = next(entry for entry in BACKENDS if entry.name == name)
    reason = entry.refuses(Drift(), DRIFT_SPEC)
    assert reason == "it dreams MDN-RNNs alone, and this world model is a Drift: the torch backend dreams it"
    assert entry.refuses(World().m, World().spec) is None
    if entry.missing() is None:
        with pytest.raises(ValueError, match=f"backend '{name}' cannot dream this: it dreams MDN-RNNs alone"):
            DreamEngine(Drift(), DRIFT_SPEC, backend=name)


def test_a_controller_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="the controller's latent must be the memory's, 3, but was 2"):
        DreamEngine(Drift(latent=3), DRIFT_SPEC)
    with pytest.raises(ValueError, match="the controller's hidden must be the memory's, 0, but was 1"):
        DreamEngine(Drift(), ControllerSpec(2, 1, 1, "zh", "tanh"))
