"""One rollout at a time in torch, with care: no modules, no distributions, no autograd, no waiting for a number."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wm_engine.ops.mdn import LOG_STD_LIMIT

from ..workload import Setup

NAME = "one rollout at a time, tuned"
DEVICES = ("cpu",)
ONE_BY_ONE = True
OWN_NUMBERS = False


def missing(device: str) -> str | None:
    """None: torch is always here."""
    return None


def prepare(setup: Setup, device: str, precision: str) -> Callable[[], Tensor]:
    """See :mod:`bench.peers`. One thread: a single rollout's products are too small to share."""
    work, draws = setup.workload, setup.draws()
    latent, mixtures = work.latent, work.mixtures
    cell = nn.LSTMCell(latent + work.action, work.hidden)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in setup.m.lstm.state_dict().items()})
    head = setup.m.head
    shared = work.mixture == "shared"
    choices = 1 if shared else latent

    def dream(params: Tensor, episode: int) -> Tensor:
        weight = params[: work.action * (latent + work.hidden)].view(work.action, -1)
        bias = params[-work.action :]
        z = setup.starts.z[episode % len(setup.starts)]
        h = c = torch.zeros(work.hidden)
        total = torch.zeros(())
        for step in range(work.steps):
            raw = weight @ torch.cat([z, h]) + bias
            action = torch.stack([torch.tanh(raw[0]), torch.sigmoid(raw[1]), torch.sigmoid(raw[2])])
            h, c = cell(torch.cat([z, action]), (h, c))
            logits, means, log_stds, reward, done = head(h).split(
                [choices * mixtures, latent * mixtures, latent * mixtures, 1, 1]
            )
            if shared:
                means, log_stds = means.view(mixtures, latent).T, log_stds.view(mixtures, latent).T
            else:
                means, log_stds = means.view(latent, mixtures), log_stds.view(latent, mixtures)
            cumulative = torch.softmax(logits.view(choices, mixtures), dim=-1).cumsum(dim=-1)
            chosen = torch.searchsorted(cumulative, draws.choices[step, episode].unsqueeze(-1)).clamp(max=mixtures - 1)
            chosen = chosen.expand(latent, 1)
            std = torch.exp(log_stds.gather(1, chosen)[:, 0].clamp(-LOG_STD_LIMIT, LOG_STD_LIMIT))
            z = means.gather(1, chosen)[:, 0] + std * draws.normals[step, episode]
            total = total + reward[0]
            if torch.sigmoid(done[0]) > draws.ends[step, episode]:
                break
        return total

    @torch.inference_mode()
    def run() -> Tensor:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return torch.stack(
                [
                    torch.stack([dream(candidate, episode) for episode in range(work.episodes)])
                    for candidate in setup.params
                ]
            )
        finally:
            torch.set_num_threads(threads)

    return run
