"""The oracle: one dream in float64 NumPy, written from the design's formulas, one rollout and one step at a time.

It shares no code with the package, so that a mistake would have to be made twice.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1.0 / (1.0 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1.0 + np.exp(-np.abs(x))))


@functools.cache
def philox_words(counter: tuple[int, int, int, int], seed: int) -> list[int]:
    """Philox4x32-10 in plain Python integers."""
    c = [int(x) for x in counter]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def unit(word: int) -> float:
    return ((word >> 9) + 0.5) * 2.0**-23


@dataclass
class Oracle:
    """A world model and a controller's shape in float64.

    ``weights``: MDNRNN's state dict as NumPy arrays. The other fields are those of the public API.
    """

    weights: dict[str, np.ndarray]
    latent: int
    action: int
    hidden: int
    mixtures: int
    mixture: str
    features: str
    squash: tuple[str, ...] | str
    hidden_units: int = 0
    residual: bool = False
    w: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.w = {name: np.asarray(value, dtype=np.float64) for name, value in self.weights.items()}

    def act(self, params: np.ndarray, z: np.ndarray, h: np.ndarray, c: np.ndarray) -> np.ndarray:
        x = np.concatenate({"z": [z], "zh": [z, h], "zhc": [z, h, c]}[self.features])
        flat = np.asarray(params, dtype=np.float64)
        position = 0

        def take(*shape: int) -> np.ndarray:
            nonlocal position
            size = int(np.prod(shape))
            part = flat[position : position + size].reshape(shape)
            position += size
            return part

        if self.hidden_units:
            weight, bias = take(self.hidden_units, len(x)), take(self.hidden_units)
            x = np.tanh(weight @ x + bias)
        weight, bias = take(self.action, len(x)), take(self.action)
        assert position == len(flat)
        raw = weight @ x + bias
        if self.squash == "argmax":
            return np.eye(self.action)[int(np.argmax(raw))]
        words = (self.squash,) * self.action if isinstance(self.squash, str) else self.squash
        functions = {
            "tanh": np.tanh,
            "sigmoid": sigmoid,
            "tanh01": lambda v: (np.tanh(v) + 1.0) / 2.0,
            "relu_tanh": lambda v: np.maximum(np.tanh(v), 0.0),
            "identity": lambda v: v,
        }
        return np.array([functions[word](value) for word, value in zip(words, raw, strict=True)])

    def lstm(self, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        w = self.w
        gates = w["lstm.weight_ih_l0"] @ x + w["lstm.weight_hh_l0"] @ h + w["lstm.bias_ih_l0"] + w["lstm.bias_hh_l0"]
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    def draws(self, seed: int, step: int, episode: int, candidate: int) -> tuple[np.ndarray, np.ndarray, float]:
        Z, Q = self.latent, -(-self.latent // 4)
        words = [philox_words((block, step, episode, candidate), seed) for block in range(2 * Q + 1)]
        normals = np.empty(Z)
        for d in range(Z):
            first = 2 * ((d % 4) // 2)
            u1, u2 = unit(words[d // 4][first]), unit(words[d // 4][first + 1])
            radius = np.sqrt(-2.0 * np.log(u1))
            normals[d] = radius * (np.cos(2 * np.pi * u2) if d % 2 == 0 else np.sin(2 * np.pi * u2))
        if self.mixture == "shared":
            choice = np.array([unit(words[Q][0])])
        else:
            choice = np.array([unit(words[Q + d // 4][d % 4]) for d in range(Z)])
        return normals, choice, unit(words[2 * Q][0])

    def sample(self, head: np.ndarray, normals: np.ndarray, choice: np.ndarray, tau: float) -> np.ndarray:
        Z, K = self.latent, self.mixtures
        if self.mixture == "shared":
            logits = np.tile(head[:K], (Z, 1))
            means, log_stds = (head[K + j * K * Z : K + (j + 1) * K * Z].reshape(K, Z).T for j in range(2))
            choice = np.repeat(choice, Z)
        else:
            logits, means, log_stds = (head[j * K * Z : (j + 1) * K * Z].reshape(Z, K) for j in range(3))
        z = np.empty(Z)
        for d in range(Z):
            if tau == 0:
                z[d] = means[d, int(np.argmax(logits[d]))]
                continue
            p = np.exp(logits[d] / tau - np.max(logits[d] / tau))
            p /= p.sum()
            cumulative = np.cumsum(p)
            k = next((k for k in range(K) if cumulative[k] >= choice[d]), K - 1)
            z[d] = means[d, k] + np.exp(np.clip(log_stds[d, k], -7.0, 7.0)) * np.sqrt(tau) * normals[d]
        return z

    def after(self, z: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """The next latent, of the last one and what was drawn."""
        return z + drawn if self.residual else drawn

    def step(
        self,
        params: np.ndarray,
        z: np.ndarray,
        h: np.ndarray,
        c: np.ndarray,
        *,
        seed: int,
        step: int,
        episode: int,
        candidate: int,
        temperature: float,
        reward: str,
        done: str,
        given: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float, bool]:
        """One step: action (``given``, or the controller's), z, h, c, reward, whether the episode ends with it."""
        a = self.act(params, z, h, c) if given is None else np.asarray(given, dtype=np.float64)
        h, c = self.lstm(np.concatenate([z, a]), h, c)
        head = self.w["head.weight"] @ h + self.w["head.bias"]
        normals, choice, u = self.draws(seed, step, episode, candidate)
        z = self.after(z, self.sample(head, normals, choice, temperature))
        logit = head[-1]
        ended = bool(logit > 0) if done == "threshold" else bool(sigmoid(logit) > u)
        return a, z, h, c, float(head[-2]) if reward == "predicted" else 1.0, ended

    def rollout(
        self,
        params: np.ndarray,
        z0: np.ndarray,
        h0: np.ndarray | None = None,
        c0: np.ndarray | None = None,
        *,
        episodes: int,
        max_steps: int,
        temperature: float = 1.0,
        seed: int = 0,
        reward: str = "predicted",
        done: str = "threshold",
        common_random_numbers: bool = True,
        first_candidate: int = 0,
        actions: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """``params`` [P, D], starts [N, ...], ``actions`` [P, max_steps, A] in the controllers' place.

        To returns, lengths [P, E]; z, actions, rewards [T, P, E, ...], zero after an end.
        """
        P, E, T, H = len(params), episodes, max_steps, self.hidden
        h0 = np.zeros((len(z0), H)) if h0 is None else h0
        c0 = np.zeros((len(z0), H)) if c0 is None else c0
        out = {
            "returns": np.zeros((P, E)),
            "lengths": np.zeros((P, E), dtype=np.int32),
            "z": np.zeros((T, P, E, self.latent)),
            "actions": np.zeros((T, P, E, self.action)),
            "rewards": np.zeros((T, P, E)),
        }
        for p in range(P):
            for e in range(E):
                z, h, c = (np.asarray(s[e % len(z0)], dtype=np.float64) for s in (z0, h0, c0))
                for t in range(T):
                    a, z, h, c, r, ended = self.step(
                        params[p], z, h, c, seed=seed, step=t, episode=e,
                        candidate=0 if common_random_numbers else first_candidate + p,
                        temperature=temperature, reward=reward, done=done,
                        given=None if actions is None else actions[p, t],
                    )  # fmt: skip
                    out["returns"][p, e] += r
                    out["lengths"][p, e] += 1
                    out["z"][t, p, e], out["actions"][t, p, e], out["rewards"][t, p, e] = z, a, r
                    if ended:
                        break
        return out
