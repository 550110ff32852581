"""The mixture's loss and sampling as PyTorch operators: one name each, an implementation for each kind of device.

``wm_engine::mdn_nll``, its backward and ``wm_engine::mdn_sample`` are known to autograd and ``torch.compile``. On CPUs
the C++ core answers for float32, where it was built; on CUDA devices the Triton kernels do, where Triton is installed
and they take the sizes and the dtype. The torch references answer for everything else, float64 among it: there
precision is what is asked for, not speed. Every row is computed alone, so results do not depend on the batch or on the
number of threads.

Heads, target and gradient are of one floating dtype, counters int64, all on one device: every implementation begins
with the same check (``wm_engine.checks.check_heads``), and so do those that make shapes alone, for ``torch.compile``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import wm_engine.kernels as kernels
from wm_engine.checks import FLOAT32_MAX, check_float, check_heads
from wm_engine.core import core
from wm_engine.ops import mdn
from wm_engine.rng import key_words, numbers, philox_torch


def mdn_nll(logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor) -> Tensor:
    """As :func:`wm_engine.ops.mdn.mdn_nll`, by the fastest implementation for the tensors' device.

    TypeError or ValueError where dtypes, shapes or devices do not fit together.

    Parameters
    ----------
    logits : [..., C, K]
    means, log_stds : [..., Z, K]; log_stds are clamped to ±LOG_STD_LIMIT
    target : [..., Z]

    Returns
    -------
    [...] nats per latent dimension
    """
    check_heads(logits, means, log_stds, target=target, leading=True)
    batch = target.shape[:-1]
    rows = (part.reshape(-1, *part.shape[-2:]) for part in (logits, means, log_stds))
    return torch.ops.wm_engine.mdn_nll(*rows, target.reshape(-1, target.shape[-1])).view(batch)


def mdn_sample(
    logits: Tensor, means: Tensor, log_stds: Tensor, counters: Tensor, seed: int, temperature: float
) -> Tensor:
    """Latents drawn from the mixture with the numbers of the random-number contract (``wm_engine.rng``).

    TypeError or ValueError where dtypes, shapes or devices do not fit together.

    Parameters
    ----------
    logits : [B, C, K]
    means, log_stds : [B, Z, K]; log_stds are clamped to ±LOG_STD_LIMIT
    counters : int64 [B, 3], step, episode and candidate of each row, in [0, 2**32)
    seed : in [0, 2**64)
    temperature : tau >= 0

    Returns
    -------
    z : [B, Z]
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be in [0, 2**64), but was {seed}")
    temperature = check_float("temperature", temperature, least=0.0, most=FLOAT32_MAX)
    signed = seed - (1 << 64) if seed >= 1 << 63 else seed
    return torch.ops.wm_engine.mdn_sample(logits, means, log_stds, counters, signed, temperature)


@torch.library.custom_op("wm_engine::mdn_nll", mutates_args=())
def _nll(logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor) -> Tensor:
    check_heads(logits, means, log_stds, target=target)
    return mdn.mdn_nll(logits, means, log_stds, target)


@_nll.register_fake
def _(logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor) -> Tensor:
    check_heads(logits, means, log_stds, target=target)
    return target.new_empty(target.shape[0])


def _reference_gradients(
    grad: Tensor, logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # With r the components' responsibilities for the target and s its standardised distance from their means:
    # d/dlogit = softmax - r, d/dmean = -r s / sigma, d/dlog_std = r (1 - s^2), each times grad / Z.
    limit = mdn.LOG_STD_LIMIT
    clamped = log_stds.clamp(-limit, limit)
    precision = torch.exp(-clamped)
    standard = (target.unsqueeze(-1) - means) * precision
    log_density = -0.5 * standard * standard - clamped
    if logits.shape[-2] != means.shape[-2]:
        log_density = log_density.sum(dim=-2, keepdim=True)
    responsibility = torch.softmax(torch.log_softmax(logits, dim=-1) + log_density, dim=-1)
    scale = (grad / means.shape[-2])[:, None, None]
    weight = scale * responsibility
    to_logits = scale * torch.softmax(logits, dim=-1) - weight
    to_means = -weight * standard * precision
    to_log_stds = torch.where(log_stds == clamped, weight * (1.0 - standard * standard), 0.0)
    to_target = -to_means.sum(dim=-1)
    # Of a head's views, they lie in memory as those do: not as the functions that make shapes alone say.
    return to_logits.contiguous(), to_means.contiguous(), to_log_stds.contiguous(), to_target.contiguous()


@torch.library.custom_op("wm_engine::mdn_nll_backward", mutates_args=())
def _nll_backward(
    grad: Tensor, logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_heads(logits, means, log_stds, target=target, grad=grad)
    return _reference_gradients(grad, logits, means, log_stds, target)


@_nll_backward.register_fake
def _(
    grad: Tensor, logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_heads(logits, means, log_stds, target=target, grad=grad)
    return (
        logits.new_empty(logits.shape),
        means.new_empty(means.shape),
        log_stds.new_empty(log_stds.shape),
        target.new_empty(target.shape),
    )


def _differentiable(
    op: torch.library.CustomOpDef,
) -> Callable[[Callable[..., tuple[Tensor, ...]]], Callable[..., tuple[Tensor, ...]]]:
    def keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def register(gradients: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        op.register_autograd(gradients, setup_context=keep_inputs)
        return gradients

    return register


@_differentiable(_nll)
def _nll_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.ops.wm_engine.mdn_nll_backward(grad, *ctx.saved_tensors))


def _reference_sample(
    logits: Tensor, means: Tensor, log_stds: Tensor, counters: Tensor, seed: int, temperature: float
) -> Tensor:
    latent = means.shape[-2]
    mixture = "shared" if logits.shape[-2] == 1 else "per_dim"
    blocks = torch.arange(2 * math.ceil(latent / 4) + 1, device=means.device)
    shape = (means.shape[0], len(blocks))
    places = (counters[:, word, None].expand(shape) for word in range(3))
    words = philox_torch(torch.stack([blocks.expand(shape), *places], dim=-1), seed % (1 << 64))
    normals, uniforms, _ = numbers(words, latent, mixture, means.dtype)
    return mdn.mdn_sample(logits, means, log_stds, uniforms, normals, temperature).contiguous()


@torch.library.custom_op("wm_engine::mdn_sample", mutates_args=())
def _sample(logits: Tensor, means: Tensor, log_stds: Tensor, counters: Tensor, seed: int, temperature: float) -> Tensor:
    check_heads(logits, means, log_stds, counters=counters)
    return _reference_sample(logits, means, log_stds, counters, seed, temperature)


@_sample.register_fake
def _(logits: Tensor, means: Tensor, log_stds: Tensor, counters: Tensor, seed: int, temperature: float) -> Tensor:
    check_heads(logits, means, log_stds, counters=counters)
    return means.new_empty(means.shape[:-1])


@_nll.register_kernel("cpu")
def _nll_cpu(logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor) -> Tensor:
    check_heads(logits, means, log_stds, target=target)
    native = _core_for(logits, means, log_stds, target)
    if native is None:
        return mdn.mdn_nll(logits, means, log_stds, target)
    out = target.new_empty(target.shape[0])
    native.mdn_nll(*_arrays(logits, means, log_stds, target, out), num_threads=torch.get_num_threads())
    return out


@_nll_backward.register_kernel("cpu")
def _nll_backward_cpu(
    grad: Tensor, logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_heads(logits, means, log_stds, target=target, grad=grad)
    native = _core_for(grad, logits, means, log_stds, target)
    if native is None:
        return _reference_gradients(grad, logits, means, log_stds, target)
    to_logits, to_means, to_log_stds, to_target = (x.new_empty(x.shape) for x in (logits, means, log_stds, target))
    arrays = _arrays(grad, logits, means, log_stds, target, to_logits, to_means, to_log_stds, to_target)
    native.mdn_nll_backward(*arrays, num_threads=torch.get_num_threads())
    return to_logits, to_means, to_log_stds, to_target


@_sample.register_kernel("cpu")
def _sample_cpu(
    logits: Tensor, means: Tensor, log_stds: Tensor, counters: Tensor, seed: int, temperature: float
) -> Tensor:
    check_heads(logits, means, log_stds, counters=counters)
    native = _core_for(logits, means, log_stds)
    if native is None:
        return _reference_sample(logits, means, log_stds, counters, seed, temperature)
    out = means.new_empty(means.shape[:-1])
    *parts, words, z = _arrays(logits, means, log_stds, counters, out)
    native.mdn_sample(*parts, words, seed % (1 << 64), temperature, z, num_threads=torch.get_num_threads())
    return out


def _core_for(*tensors: Tensor) -> Any:
    """The C++ core where it was built and all of these are float32, or None."""
    return core()[0] if all(tensor.dtype == torch.float32 for tensor in tensors) else None


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Tensors on the CPU as arrays that share their memory."""
    return [tensor.detach().resolve_neg().numpy() for tensor in tensors]


@_nll.register_kernel("cuda")
def _nll_cuda(logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor) -> Tensor:
    check_heads(logits, means, log_stds, target=target)
    fused = _triton_for(means)
    if fused is None:
        return mdn.mdn_nll(logits, means, log_stds, target)
    return fused.nll(logits, means, log_stds, target)


@_nll_backward.register_kernel("cuda")
def _nll_backward_cuda(
    grad: Tensor, logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_heads(logits, means, log_stds, target=target, grad=grad)
    fused = _triton_for(means)
    if fused is None:
        return _reference_gradients(grad, logits, means, log_stds, target)
    return fused.nll_backward(grad, logits, means, log_stds, target)


@_sample.register_kernel("cuda")
def _sample_cuda(
    logits: Tensor, means: Tensor, log_stds: Tensor, counters: Tensor, seed: int, temperature: float
) -> Tensor:
    check_heads(logits, means, log_stds, counters=counters)
    fused = _triton_for(means)
    if fused is None:
        return _reference_sample(logits, means, log_stds, counters, seed, temperature)
    return fused.sample(logits, means, log_stds, counters, key_words(seed % (1 << 64)), temperature)


def _triton_for(means: Tensor) -> Any:
    """``wm_engine.kernels.mdn`` where it can take heads with these means [B, Z, K], or None."""
    if kernels.missing() is not None or kernels.unfit(means.device) is not None:
        return None
    from wm_engine.kernels import mdn as fused

    return fused if fused.fits(*means.shape[1:], means.dtype) else None
