"""Controllers: their actions beside the oracle's, their files, and a population of them at the wheels of lanes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checker import check
from oracle import Oracle

from wm_engine import ControllerSpec
from wm_engine.errors import CorruptFileError
from wm_engine.policies.controller import Controllers, act, load_controller, save_controller

SQUASHES = ["tanh", "sigmoid", "tanh01", "relu_tanh", "identity", "argmax", ("tanh", "sigmoid", "relu_tanh")]


def test_the_papers_controller_has_867_parameters() -> None:
    assert ControllerSpec(latent=32, hidden=256, action=3, features="zh").num_params == 867


@pytest.mark.parametrize("features", ["z", "zh", "zhc"])
@pytest.mark.parametrize("squash", SQUASHES)
@pytest.mark.parametrize("hidden_units", [0, 4])
def test_actions_are_the_oracles(features: str, squash: str | tuple[str, ...], hidden_units: int) -> None:
    Z, H, A, P, E = 5, 7, 3, 4, 6
    spec = ControllerSpec(Z, H, A, features, squash, hidden_units)
    oracle = Oracle({}, Z, A, H, 1, "shared", features, squash, hidden_units)
    params = torch.randn(P, spec.num_params, dtype=torch.float64)
    z, h, c = (torch.randn(P, E, n, dtype=torch.float64) for n in (Z, H, H))
    got = act(spec, params, spec.observe(z, h, c))
    want = [[oracle.act(params[p].numpy(), *(s[p, e].numpy() for s in (z, h, c))) for e in range(E)] for p in range(P)]
    check("actions", got, np.array(want), precision="fp64")


def test_argmax_takes_the_first_of_equals() -> None:
    spec = ControllerSpec(1, 1, 3, "z", "argmax")
    assert act(spec, torch.zeros(1, spec.num_params), torch.zeros(1, 1, 1)).tolist() == [[[1.0, 0.0, 0.0]]]


def test_save_and_load(tmp_path: Path) -> None:
    for squash in SQUASHES:
        spec = ControllerSpec(4, 6, 3, "zhc", squash, 2)
        params = torch.randn(spec.num_params)
        save_controller(tmp_path / "c.safetensors", spec, params)
        back, back_params = load_controller(tmp_path / "c.safetensors")
        assert back == spec
        assert torch.equal(back_params, params)


def test_another_file_is_refused(tmp_path: Path) -> None:
    from wm_engine import MDNRNN

    MDNRNN(4, 2, 8, 3).save(tmp_path / "m.safetensors")
    with pytest.raises(CorruptFileError, match=r"m\.safetensors: not a controller of this project"):
        load_controller(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": "hz"}, "features must be one of 'z', 'zh', 'zhc', but was 'hz'"),
        ({"squash": ("tanh",)}, "squash must be one word for each of the 3 action dimensions"),
        ({"squash": ("tanh", "argmax", "tanh")}, "squash must be one of"),
        ({"squash": "softmax"}, "squash must be one of"),
        ({"hidden_units": -1}, "hidden_units must be at least 0, but was -1"),
    ],
)
def test_bad_specs_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ControllerSpec(**arguments)  # type: ignore[arg-type]


def test_a_squash_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="squash must be a word or one word for each action, but was 3"):
        ControllerSpec(squash=3)  # type: ignore[arg-type]


def test_params_of_another_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"params must have shape \[867\], but had \[866\]"):
        save_controller(tmp_path / "c.safetensors", ControllerSpec(), torch.zeros(866))


def test_every_lane_is_driven_by_its_own_candidate() -> None:
    spec = ControllerSpec(4, 6, 3, "zhc", ("tanh", "sigmoid", "relu_tanh"), 2)
    params = torch.randn(5, spec.num_params)
    driving = Controllers(spec, params, torch.tensor([2, 0, 4, 2]))
    features = torch.randn(4, spec.num_features)
    acted = driving.act(features, torch.arange(4))
    assert acted.shape == (4, 3)
    for lane, candidate in enumerate([2, 0, 4, 2]):
        exact, peer = (
            act(spec, params[candidate : candidate + 1].to(dtype), features[None, lane : lane + 1].to(dtype))[0, 0]
            for dtype in (torch.float64, torch.float32)
        )
        check(f"lane {lane}", acted[lane], exact, peer)
    some = driving.act(features[[3, 1]], torch.tensor([3, 1]))
    check("lanes by their numbers", some, acted[[3, 1]].double(), acted[[3, 1]])
    assert driving.features == "zhc"


def test_a_candidate_that_is_not_finite_spoils_its_own_lanes_only() -> None:
    spec = ControllerSpec(4, 6, 2, "z", "tanh")
    params = torch.randn(3, spec.num_params)
    params[1] = torch.nan
    acted = Controllers(spec, params, torch.tensor([0, 1, 2])).act(torch.randn(3, 4), torch.arange(3))
    assert torch.isfinite(acted).all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    "candidate", [[3], [-1], [], [[0]], [0.5]], ids=["too many", "negative", "none", "nested", "no integer"]
)
def test_candidates_that_there_are_not_are_refused(candidate: list[object]) -> None:
    spec = ControllerSpec(4, 6, 2, "z", "tanh")
    with pytest.raises(ValueError, match="candidate must be"):
        Controllers(spec, torch.zeros(3, spec.num_params), torch.tensor(candidate))
    with pytest.raises(ValueError, match=r"params must have shape \[P, 10\], but had \[3, 9\]"):
        Controllers(spec, torch.zeros(3, 9), torch.tensor([0]))
