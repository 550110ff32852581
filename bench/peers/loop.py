"""One rollout at a time in torch, the way published implementations of world models are written.

Modules for M's cell and for C, the candidate's parameters loaded into C, ``torch.distributions`` for the sampling, and
a Python number for reward and end at every step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from wm_engine.ops.mdn import LOG_STD_LIMIT

from ..workload import Setup

NAME = "one rollout at a time"
DEVICES = ("cpu",)
ONE_BY_ONE = True
OWN_NUMBERS = True


def missing(device: str) -> str | None:
    """None: torch is always here."""
    return None


class _Controller(nn.Module):
    def __init__(self, inputs: int, actions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, actions)

    def forward(self, z: Tensor, h: Tensor) -> Tensor:
        raw = self.linear(torch.cat([z, h], dim=1))
        return torch.cat([torch.tanh(raw[:, :1]), torch.sigmoid(raw[:, 1:])], dim=1)


class _Cell(nn.Module):
    """M for one step of a batch: (z, a, (h, c)) to mixture, reward, end and the next (h, c)."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        work = setup.workload
        self.layout = setup.m.layout
        self.rnn = nn.LSTMCell(work.latent + work.action, work.hidden)
        self.rnn.load_state_dict({name.removesuffix("_l0"): value for name, value in setup.m.lstm.state_dict().items()})
        self.head = setup.m.head

    def forward(self, z: Tensor, action: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        h, c = self.rnn(torch.cat([z, action], dim=1), state)
        parts = self.layout.split(self.head(h))
        stds = torch.exp(parts.log_stds.clamp(-LOG_STD_LIMIT, LOG_STD_LIMIT))
        return parts.logits, parts.means, stds, parts.reward, parts.done, h, c


def prepare(setup: Setup, device: str, precision: str) -> Callable[[], Tensor]:
    """See :mod:`bench.peers`. One thread: a single rollout's products are too small to share."""
    work = setup.workload
    cell = _Cell(setup)
    controller = _Controller(work.latent + work.hidden, work.action)

    def dream(episode: int) -> float:
        z = setup.starts.z[episode % len(setup.starts)].unsqueeze(0)
        state = (torch.zeros(1, work.hidden), torch.zeros(1, work.hidden))
        total = 0.0
        for _ in range(work.steps):
            action = controller(z, state[0])
            logits, means, stds, reward, done, h, c = cell(z, action, state)
            state = (h, c)
            chosen = Categorical(logits=logits).sample().unsqueeze(-1).expand(1, work.latent, 1)
            z = Normal(means.gather(2, chosen)[..., 0], stds.gather(2, chosen)[..., 0]).sample()
            total += reward.item()
            if torch.rand(()).item() < torch.sigmoid(done).item():
                break
        return total

    @torch.no_grad()
    def run() -> Tensor:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            returns = []
            for candidate in setup.params:
                nn.utils.vector_to_parameters(candidate, controller.parameters())
                returns.append([dream(episode) for episode in range(work.episodes)])
            return torch.tensor(returns)
        finally:
            torch.set_num_threads(threads)

    return run
