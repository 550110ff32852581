"""The mixture's loss, forward and backward, and its sampling (``wm_engine.ops.mdn``), each in one pass.

A program takes ROWS heads. Their parts are blocks [ROWS, ZP, KP], read with the strides that they have, so that views
of a head [B, N] need no copy; sizes are rounded up to powers of two and masked. Inputs are all float32, all
bfloat16 or all float16; everything is computed in float32. Nothing is launched on arguments that do not fit together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wm_engine.checks import check_heads, check_output

from .maths import inverse_cdf
from .philox import as_word, first_uniform, normals, uniforms

MOST_ENTRIES = 1 << 16
"""The largest ZP·KP of a head."""
_ENTRIES_A_PROGRAM = 2048
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of heads."""


@triton.jit
def load_head(
    logits, means, log_stds, row, there, latent, mixtures,
    logits_row, logits_choice, logits_k, means_row, means_d, means_k, log_stds_row, log_stds_d, log_stds_k,
    SHARED: tl.constexpr, ZP: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """Log probabilities of the components [ROWS, 1 or ZP, KP], -inf beyond K; means and log_stds [ROWS, ZP, KP]."""
    d = tl.arange(0, ZP)[None, :, None]
    k = tl.arange(0, KP)[None, None, :]
    mask = there[:, None, None] & (d < latent) & (k < mixtures)
    means = tl.load(means + row[:, None, None] * means_row + d * means_d + k * means_k, mask=mask, other=0.0)
    log_stds = log_stds + row[:, None, None] * log_stds_row + d * log_stds_d + k * log_stds_k
    log_stds = tl.load(log_stds, mask=mask, other=0.0)
    choice = tl.arange(0, 1 if SHARED else ZP)[None, :, None]
    # Choices beyond Z are uniform ones, so that nothing of them becomes NaN.
    logits = logits + row[:, None, None] * logits_row + choice * logits_choice + k * logits_k
    logits = tl.load(logits, mask=there[:, None, None] & (choice < latent) & (k < mixtures), other=0.0).to(tl.float32)
    logits = tl.where(k < mixtures, logits, float("-inf"))
    logits -= tl.max(logits, axis=2)[:, :, None]
    logits -= tl.log(tl.sum(tl.exp(logits), axis=2))[:, :, None]
    return logits, means.to(tl.float32), log_stds.to(tl.float32), mask


@triton.jit
def joint_log_density(log_p, means, log_stds, x, mask, SHARED: tl.constexpr):
    """log p_k + log N(x; mean_k, std_k) [ROWS, 1 or ZP, KP] less the constant -log sqrt(2 pi), which would cost digits;
    the standardised distances and 1 / std [ROWS, ZP, KP]."""
    clamped = tl.minimum(tl.maximum(log_stds, -7.0), 7.0)
    precision = tl.exp(-clamped)
    standard = (x[:, :, None] - means) * precision
    density = -0.5 * standard * standard - clamped
    density = tl.where(mask, density, 0.0)
    if SHARED:
        density = tl.sum(density, axis=1)[:, None, :]
    return log_p + density, standard, precision


@triton.jit(do_not_specialize=["rows"])
def nll_kernel(
    logits, means, log_stds, target, out, rows, latent, mixtures,
    logits_row, logits_choice, logits_k, means_row, means_d, means_k, log_stds_row, log_stds_d, log_stds_k,
    target_row, target_d,
    SHARED: tl.constexpr, ZP: tl.constexpr, KP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    log_p, means, log_stds, mask = load_head(
        logits, means, log_stds, row, there, latent, mixtures,
        logits_row, logits_choice, logits_k, means_row, means_d, means_k, log_stds_row, log_stds_d, log_stds_k,
        SHARED, ZP, KP,
    )  # fmt: skip
    d = tl.arange(0, ZP)[None, :]
    x = tl.load(target + row[:, None] * target_row + d * target_d, mask=there[:, None] & (d < latent), other=0.0)
    joint, _, _ = joint_log_density(log_p, means, log_stds, x.to(tl.float32), mask, SHARED)
    largest = tl.max(joint, axis=2)
    likelihood = largest + tl.log(tl.sum(tl.exp(joint - largest[:, :, None]), axis=2))
    if not SHARED:
        likelihood = tl.where(d < latent, likelihood, 0.0)
    nll = 0.9189385332046727 - tl.sum(likelihood, axis=1) / latent
    tl.store(out + row, nll.to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["rows"])
def nll_backward_kernel(
    grad, logits, means, log_stds, target, to_logits, to_means, to_log_stds, to_target, rows, latent, mixtures,
    logits_row, logits_choice, logits_k, means_row, means_d, means_k, log_stds_row, log_stds_d, log_stds_k,
    target_row, target_d,
    SHARED: tl.constexpr, ZP: tl.constexpr, KP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """With r the components' responsibilities for the target and s its standardised distances from their means:
    d/dlogit = p - r, d/dmean = -r s / std, d/dlog_std = r (1 - s^2) where not clamped; each times grad / Z. Gradients
    are contiguous."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    log_p, means, log_stds, mask = load_head(
        logits, means, log_stds, row, there, latent, mixtures,
        logits_row, logits_choice, logits_k, means_row, means_d, means_k, log_stds_row, log_stds_d, log_stds_k,
        SHARED, ZP, KP,
    )  # fmt: skip
    column = tl.arange(0, ZP)[None, :]
    x_mask = there[:, None] & (column < latent)
    x = tl.load(target + row[:, None] * target_row + column * target_d, mask=x_mask, other=0.0).to(tl.float32)
    joint, standard, precision = joint_log_density(log_p, means, log_stds, x, mask, SHARED)
    joint = tl.exp(joint - tl.max(joint, axis=2)[:, :, None])
    scale = (tl.load(grad + row, mask=there, other=0.0).to(tl.float32) / latent)[:, None, None]
    weight = scale * (joint / tl.sum(joint, axis=2)[:, :, None])
    g_logits = scale * tl.exp(log_p) - weight
    g_means = tl.where(mask, -weight * standard * precision, 0.0)
    g_log_stds = tl.where(tl.abs(log_stds) <= 7.0, weight * (1.0 - standard * standard), 0.0)

    d = tl.arange(0, ZP)[None, :, None]
    k = tl.arange(0, KP)[None, None, :]
    place = (row[:, None, None] * latent + d) * mixtures + k
    tl.store(to_means + place, g_means.to(to_means.dtype.element_ty), mask=mask)
    tl.store(to_log_stds + place, g_log_stds.to(to_log_stds.dtype.element_ty), mask=mask)
    if SHARED:
        place = row[:, None, None] * mixtures + k
        tl.store(to_logits + place, g_logits.to(to_logits.dtype.element_ty), mask=there[:, None, None] & (k < mixtures))
    else:
        tl.store(to_logits + place, g_logits.to(to_logits.dtype.element_ty), mask=mask)
    g_target = -tl.sum(g_means, axis=2)
    place = row[:, None] * latent + column
    tl.store(to_target + place, g_target.to(to_target.dtype.element_ty), mask=x_mask)


@triton.jit(do_not_specialize=["rows", "key_low", "key_high"])
def sample_kernel(
    logits, means, log_stds, counters, out, rows, latent, mixtures, key_low, key_high, temperature,
    logits_row, logits_choice, logits_k, means_row, means_d, means_k, log_stds_row, log_stds_d, log_stds_k,
    SHARED: tl.constexpr, GREEDY: tl.constexpr, ZP: tl.constexpr, KP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    d = tl.arange(0, ZP)
    k = tl.arange(0, KP)[None, None, :]
    choice = tl.arange(0, 1 if SHARED else ZP)[None, :, None]
    mask = there[:, None, None] & (choice < latent) & (k < mixtures)
    logits = logits + row[:, None, None] * logits_row + choice * logits_choice + k * logits_k
    logits = tl.where(k < mixtures, tl.load(logits, mask=mask, other=0.0).to(tl.float32), float("-inf"))
    largest = tl.max(logits, axis=2)[:, :, None]

    key_low, key_high = as_word(key_low), as_word(key_high)
    step = as_word(tl.load(counters + 3 * row, mask=there, other=0))
    episode = as_word(tl.load(counters + 3 * row + 1, mask=there, other=0))
    candidate = as_word(tl.load(counters + 3 * row + 2, mask=there, other=0))
    quads = (latent + 3) // 4
    if GREEDY:
        chosen = tl.min(tl.where(logits == largest, k, KP), axis=2)
    else:
        if SHARED:
            u = first_uniform(quads, step, episode, candidate, key_low, key_high)[:, None]
        else:
            u = uniforms(
                quads, step[:, None], episode[:, None], candidate[:, None], key_low, key_high, ROWS, ZP // 4
            )  # fmt: skip
        p = tl.where(k < mixtures, tl.exp((logits - largest) / temperature), 0.0)
        chosen = inverse_cdf(p / tl.sum(p, axis=2)[:, :, None], u, k, mixtures, 2)
    chosen = tl.minimum(chosen, mixtures - 1)

    x_mask = there[:, None] & (d < latent)[None, :]
    mean = means + row[:, None] * means_row + d[None, :] * means_d + chosen * means_k
    z = tl.load(mean, mask=x_mask, other=0.0).to(tl.float32)
    if not GREEDY:
        log_std = log_stds + row[:, None] * log_stds_row + d[None, :] * log_stds_d + chosen * log_stds_k
        log_std = tl.load(log_std, mask=x_mask, other=0.0).to(tl.float32)
        noise = normals(0, step[:, None], episode[:, None], candidate[:, None], key_low, key_high, ROWS, ZP // 4)
        z += tl.exp(tl.minimum(tl.maximum(log_std, -7.0), 7.0)) * tl.sqrt(temperature) * noise
    tl.store(out + row[:, None] * latent + d[None, :], z.to(out.dtype.element_ty), mask=x_mask)


def blocks(latent: int, mixtures: int) -> dict[str, int]:
    """ZP, KP and ROWS for a head of these sizes. ValueError where it is too large for a program."""
    zp, kp = max(4, triton.next_power_of_2(latent)), max(2, triton.next_power_of_2(mixtures))
    if zp * kp > MOST_ENTRIES:
        raise ValueError(f"the kernels take Z·K up to {MOST_ENTRIES}, but Z was {latent} and K was {mixtures}")
    return {"ZP": zp, "KP": kp, "ROWS": max(1, _ENTRIES_A_PROGRAM // (zp * kp))}


def fits(latent: int, mixtures: int, dtype: torch.dtype) -> bool:
    """Whether the kernels take heads of these sizes and dtype."""
    return (
        dtype in DTYPES
        and max(4, triton.next_power_of_2(latent)) * max(2, triton.next_power_of_2(mixtures)) <= MOST_ENTRIES
    )


def nll(logits: Tensor, means: Tensor, log_stds: Tensor, target: Tensor, out: Tensor | None = None) -> Tensor:
    """As :func:`wm_engine.ops.mdn.mdn_nll`, for one leading dimension.

    Parameters
    ----------
    logits : [B, C, K]
    means, log_stds : [B, Z, K]
    target : [B, Z]
    out : [B] to write to, contiguous and of means' dtype; a new one where None

    Returns
    -------
    [B] nats per latent dimension
    """
    check_heads(logits, means, log_stds, target=target)
    out = _output("out", out, means, means.shape[:1])
    strides = (*logits.stride(), *means.stride(), *log_stds.stride(), *target.stride())
    _launch(nll_kernel, (logits, means, log_stds, target, out), means, logits, strides)
    return out


def nll_backward(
    grad: Tensor,
    logits: Tensor,
    means: Tensor,
    log_stds: Tensor,
    target: Tensor,
    out: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`nll` to logits, means, log_stds and target, contiguous, for grad [B] of its output."""
    check_heads(logits, means, log_stds, target=target, grad=grad)
    inputs = {"to_logits": logits, "to_means": means, "to_log_stds": log_stds, "to_target": target}
    places = zip(inputs.items(), out or (None,) * 4, strict=True)
    out = tuple(_output(name, place, means, part.shape) for (name, part), place in places)
    strides = (*logits.stride(), *means.stride(), *log_stds.stride(), *target.stride())
    _launch(
        nll_backward_kernel, (grad.contiguous(), logits, means, log_stds, target, *out), means, logits, strides
    )  # fmt: skip
    return out


def sample(
    logits: Tensor,
    means: Tensor,
    log_stds: Tensor,
    counters: Tensor,
    keys: tuple[int, int],
    temperature: float,
    out: Tensor | None = None,
) -> Tensor:
    """As :func:`wm_engine.ops.registered.mdn_sample`; keys are the seed's two words, out [B, Z] is written to."""
    check_heads(logits, means, log_stds, counters=counters)
    out = _output("out", out, means, means.shape[:-1])
    signed = (word - (1 << 32) if word >= 1 << 31 else word for word in keys)
    strides = (*signed, float(temperature), *logits.stride(), *means.stride(), *log_stds.stride())
    tensors = (logits, means, log_stds, counters.contiguous(), out)
    _launch(sample_kernel, tensors, means, logits, strides, GREEDY=temperature == 0.0)
    return out


def _output(name: str, out: Tensor | None, means: Tensor, shape: torch.Size) -> Tensor:
    if out is None:
        return means.new_empty(shape)
    check_output(name, out, list(shape), means)
    return out


def _launch(
    kernel: object, tensors: tuple[Tensor, ...], means: Tensor, logits: Tensor, rest: tuple[float, ...], **flags: bool
) -> None:
    rows, latent, mixtures = means.shape
    size = blocks(latent, mixtures)
    if means.dtype not in DTYPES:
        raise TypeError(f"the kernels take float32, bfloat16 and float16, but the heads were {means.dtype}")
    if rows == 0:
        return
    with torch.cuda.device_of(means):
        kernel[(triton.cdiv(rows, size["ROWS"]),)](
            *tensors, rows, latent, mixtures, *rest, SHARED=logits.shape[1] == 1, **flags, **size, enable_fp_fusion=True
        )  # fmt: skip
