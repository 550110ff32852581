from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wm_engine import MDNRNN
from wm_engine.errors import CorruptFileError


@pytest.mark.parametrize("mixture", ["shared", "per_dim"])
def test_state_dict_names_and_shapes(mixture: str) -> None:
    Z, A, H, K = 5, 2, 7, 3
    N = K * (2 * Z + 1) + 2 if mixture == "shared" else 3 * Z * K + 2
    shapes = {name: tuple(value.shape) for name, value in MDNRNN(Z, A, H, K, mixture).state_dict().items()}
    assert shapes == {
        "lstm.weight_ih_l0": (4 * H, Z + A),
        "lstm.weight_hh_l0": (4 * H, H),
        "lstm.bias_ih_l0": (4 * H,),
        "lstm.bias_hh_l0": (4 * H,),
        "head.weight": (N, H),
        "head.bias": (N,),
    }


def test_steps_make_the_sequence() -> None:
    m = MDNRNN(4, 2, 8, 3).double()
    z, a = torch.randn(6, 3, 4).double(), torch.randn(6, 3, 2).double()
    heads, last = m.sequence(torch.cat([z, a], dim=-1))
    state = m.initial_state(3)
    for t in range(6):
        state = m.step(z[t], a[t], state)
        torch.testing.assert_close(m.head(state[0]), heads[t], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-13)


def test_a_sequence_split_with_carried_state_is_the_whole() -> None:
    m = MDNRNN(4, 2, 8, 3).double()
    inputs = torch.randn(9, 3, 6).double()
    whole, last = m.sequence(inputs)
    first, state = m.sequence(inputs[:4])
    second, end = m.sequence(inputs[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(end, last, rtol=1e-12, atol=1e-13)


def test_save_and_load(tmp_path: Path) -> None:
    m = MDNRNN(4, 2, 8, 3, "shared")
    m.save(tmp_path / "m.safetensors")
    back = MDNRNN.load(tmp_path / "m.safetensors")
    assert (back.latent, back.action, back.hidden, back.mixtures, back.mixture) == (4, 2, 8, 3, "shared")
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in m.state_dict().items())


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.safetensors"
    MDNRNN(4, 2, 8, 3).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptFileError, match=r"m\.safetensors: damaged or truncated"):
        MDNRNN.load(path)


def test_a_flipped_bit_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    MDNRNN(4, 2, 8, 3).save(path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptFileError, match="checksum"):
        MDNRNN.load(path)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden must be at least 1, but was 0"):
        MDNRNN(hidden=0)
    with pytest.raises(TypeError, match=r"latent must be an int, but was 3\.5 \(float\)"):
        MDNRNN(latent=3.5)  # type: ignore[arg-type]
