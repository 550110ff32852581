"""The pretended device catches what a GPU would refuse, and changes no number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pretend import pretend_device
from torch import Tensor


@pytest.mark.parametrize(
    "fault",
    [
        lambda there: there + torch.ones(3),
        lambda there: torch.outer(there, torch.zeros(3)),
        lambda there: there.add_(torch.arange(3)),
        lambda there: torch.cat([there, torch.ones(3)]),
    ],
)
def test_tensors_of_two_devices_do_not_mix(fault: Callable[[Tensor], Tensor]) -> None:
    with pretend_device() as device:
        there = torch.ones(3, device=device)
        with pytest.raises(RuntimeError, match="tensors of lazy and of cpu"):
            fault(there)


def test_numbers_do_not_come_back_by_themselves() -> None:
    with pretend_device() as device, pytest.raises((TypeError, RuntimeError)):
        torch.ones(3, device=device).numpy()


def test_what_is_made_without_a_device_is_on_the_cpu() -> None:
    with pretend_device() as device:
        assert torch.ones(3).device.type == "cpu"
        assert torch.ones_like(torch.zeros(3, device=device)).device == device
        assert torch.zeros(3, device=device).cpu().device.type == "cpu"


def test_the_numbers_are_the_cpus() -> None:
    noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    want = torch.linalg.cholesky(noise @ noise.T + torch.eye(4))
    with pretend_device() as device:
        drawn = torch.randn(4, 4, generator=torch.Generator(device).manual_seed(1), device=device)
        got = torch.linalg.cholesky(drawn @ drawn.T + torch.eye(4, device=device))
        got[1:, :1].add_(1.0)  # a view's change is seen through the whole
        assert got.device == device
        assert float(got[1, 0]) == float(want[1, 0] + 1.0)
        got[1:, :1].sub_(torch.ones(3, 1, device=device))
    torch.testing.assert_close(got.cpu(), want)
