"""The batched step in JAX, the whole dream one jit-compiled scan. JAX is the optional extra ``[peers]``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wm_engine.ops.mdn import LOG_STD_LIMIT

from ..workload import Setup

NAME = "JAX jit(scan), batched"
DEVICES = ("cpu", "cuda")
ONE_BY_ONE = False
OWN_NUMBERS = False


def missing(device: str) -> str | None:
    """Needs JAX, and for a GPU a JAX that sees it."""
    if importlib.util.find_spec("jax") is None:
        return "JAX is not installed: pip install 'wm-engine[peers]'"
    import jax

    wanted = "gpu" if device == "cuda" else device
    try:
        jax.devices(wanted)
    except RuntimeError as error:
        return f"JAX sees no {wanted}: {error}"
    return None


def prepare(setup: Setup, device: str, precision: str) -> Callable[[], Tensor]:
    """See :mod:`bench.peers`. Compiles at the first run."""
    import jax
    import jax.numpy as jnp

    work, draws, m = setup.workload, setup.draws(), setup.m
    latent, mixtures, shape = work.latent, work.mixtures, (work.candidates, work.episodes)
    low = {"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16}[precision]
    target = jax.devices("gpu" if device == "cuda" else device)[0]
    shared = work.mixture == "shared"
    choices = 1 if shared else latent
    cuts = np.cumsum([choices * mixtures, latent * mixtures, latent * mixtures, 1])

    def array(tensor: Tensor, dtype: Any = jnp.float32) -> Any:
        return jax.device_put(jnp.asarray(tensor.detach().numpy(), dtype), target)

    weight_ih, weight_hh, head_weight = (
        array(weight.T.contiguous(), low) for weight in (m.lstm.weight_ih_l0, m.lstm.weight_hh_l0, m.head.weight)
    )
    gate_bias, head_bias = array(m.lstm.bias_ih_l0 + m.lstm.bias_hh_l0), array(m.head.bias)
    weight = array(setup.params[:, : -work.action].reshape(work.candidates, work.action, -1))
    bias = array(setup.params[:, None, -work.action :])
    numbers = tuple(array(values) for values in (draws.normals, draws.choices, draws.ends))
    first = array(setup.starts.z[torch.arange(work.episodes) % len(setup.starts)].expand(*shape, -1).contiguous())

    def product(x: Any, matrix: Any) -> Any:
        # "highest": on GPUs float32 would be rounded to tf32 first.
        return jnp.dot(x.astype(low), matrix, precision="highest", preferred_element_type=jnp.float32)

    def step(state: Any, draw: Any) -> Any:
        z, h, c, alive, returns = state
        normals, uniforms, ends = draw
        raw = jnp.einsum("pef,paf->pea", jnp.concatenate([z, h], -1), weight, precision="highest") + bias
        action = jnp.concatenate([jnp.tanh(raw[..., :1]), jax.nn.sigmoid(raw[..., 1:])], -1)
        gates = product(jnp.concatenate([z, action], -1), weight_ih) + product(h, weight_hh) + gate_bias
        i, f, g, o = jnp.split(gates, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        logits, means, log_stds, reward, done = jnp.split(product(h, head_weight) + head_bias, cuts, -1)
        cumulative = jnp.cumsum(jax.nn.softmax(logits.reshape(*shape, choices, mixtures), -1), -1)
        chosen = jnp.minimum((cumulative < uniforms[None, :, :, None]).sum(-1), mixtures - 1)
        if shared:
            index = chosen[..., None]
            mean = jnp.take_along_axis(means.reshape(*shape, mixtures, latent), index, 2)[:, :, 0]
            log_std = jnp.take_along_axis(log_stds.reshape(*shape, mixtures, latent), index, 2)[:, :, 0]
        else:
            index = chosen[..., None]
            mean = jnp.take_along_axis(means.reshape(*shape, latent, mixtures), index, 3)[..., 0]
            log_std = jnp.take_along_axis(log_stds.reshape(*shape, latent, mixtures), index, 3)[..., 0]
        z = mean + jnp.exp(jnp.clip(log_std, -LOG_STD_LIMIT, LOG_STD_LIMIT)) * normals
        returns = jnp.where(alive, returns + reward[..., 0], returns)
        alive = alive & ~(jax.nn.sigmoid(done[..., 0]) > ends)
        return (z, h, c, alive, returns), None

    @jax.jit
    def dream(first: Any, numbers: Any) -> Any:
        zeros = jnp.zeros((*shape, work.hidden))
        state = (first, zeros, zeros, jnp.ones(shape, bool), jnp.zeros(shape))
        return jax.lax.scan(step, state, numbers)[0][-1]

    def run() -> Tensor:
        return torch.from_numpy(np.array(dream(first, numbers)))

    return run
