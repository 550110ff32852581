"""PPO inside a run's dream, and on the real road afterwards, beside C.

    python examples/ppo_in_the_dream.py --run runs/quick            the PPO of this file
    python examples/ppo_in_the_dream.py --run runs/quick --sb3      stable-baselines3's: pip install 'wm-engine[sb3]'

Nothing here knows that the environment is a dream but the line that makes it. PPO is Schulman et al. 2017 with the
choices of Huang et al. 2022, "The 37 implementation details of proximal policy optimization": a vector environment,
generalised advantages, normalised per minibatch, clipped ratios, and a value bootstrapped where a dream is truncated.
The policy sees what C sees, [z, h], and is scored, without exploration, in dreams and on real episodes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

import wm_engine as wm
from wm_engine.dream.imagination import imagine
from wm_engine.errors import WMEngineError
from wm_engine.policies.base import OnLanes
from wm_engine.real.scoring import score_policy
from wm_engine.rng import keyed_generator
from wm_engine.run.published import LoadedRun

STEPS, EPOCHS, MINIBATCHES = 32, 4, 8
GAMMA, LAMBDA, CLIP, VALUE_WEIGHT, ENTROPY_WEIGHT, MOST_GRADIENT = 0.99, 0.95, 0.2, 0.5, 0.0, 0.5
LEARNING_RATE, FIRST_LOG_STD = 3e-4, -0.5
DREAMS = 256


class ActorCritic(nn.Module):
    """Two tanh networks of 64 units: features float32 [B, F] to a distribution of actions, and to values [B]."""

    def __init__(self, env: wm.DreamVectorEnv) -> None:
        super().__init__()
        seen, self.space = env.single_observation_space.shape[0], env.single_action_space
        self.discrete = isinstance(self.space, gymnasium.spaces.Discrete)
        self.actor = _network(seen, int(self.space.n) if self.discrete else self.space.shape[0], 0.01)
        self.critic = _network(seen, 1, 1.0)
        self.log_std = nn.Parameter(torch.full((1 if self.discrete else self.space.shape[0],), FIRST_LOG_STD))

    def forward(self, seen: Tensor) -> tuple[Distribution, Tensor]:
        out = self.actor(seen)
        chosen = Categorical(logits=out) if self.discrete else Independent(Normal(out, self.log_std.exp()), 1)
        return chosen, self.critic(seen).squeeze(-1)

    def best(self, seen: Tensor) -> Tensor:
        """Return the most likely actions, as the environment takes them."""
        out = self.actor(seen)
        return out.argmax(-1) if self.discrete else out


def _network(inputs: int, outputs: int, last_gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, out, gain in ((inputs, 64, 2.0**0.5), (64, 64, 2.0**0.5), (64, outputs, last_gain)):
        layer = nn.Linear(width, out)
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def ppo(env: wm.DreamVectorEnv, steps: int, seed: int, say: Callable[[str], None]) -> Callable[[Tensor], Tensor]:
    """Train for about ``steps`` dream steps; returns what gives the most likely actions on features [B, F]."""
    torch.manual_seed(seed)
    agent, lanes = ActorCritic(env), env.num_envs
    optimiser = torch.optim.Adam(agent.parameters(), LEARNING_RATE, eps=1e-5)
    updates, scale, finished = max(1, steps // (STEPS * lanes)), _RewardScale(lanes), _Returns(lanes)
    seen = torch.from_numpy(env.reset(seed=seed)[0])
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1.0 - update / updates)
        batch: list[tuple[Tensor, ...]] = []
        with torch.no_grad():
            for _ in range(STEPS):
                chosen, value = agent(seen)
                action = chosen.sample()
                after, reward, ended, truncated, infos = env.step(action.numpy())
                over = ended | truncated
                finished.add(reward, over)
                worth = torch.from_numpy(scale(reward, over)).float()
                if truncated.any():  # what would have come is worth what the critic says
                    last = torch.from_numpy(np.stack(infos["final_obs"][truncated]))
                    worth[torch.from_numpy(truncated)] += GAMMA * agent(last)[1]
                batch.append((seen, action, chosen.log_prob(action), value, worth, torch.from_numpy(over)))
                seen = torch.from_numpy(after)
            features, actions, old, values, worths, overs = (torch.stack(part) for part in zip(*batch, strict=True))
            advantages = _advantages(values, worths, overs, agent(seen)[1])
        data = [part.flatten(0, 1) for part in (features, actions, old, advantages, advantages + values)]
        for epoch in range(EPOCHS):
            order = torch.randperm(STEPS * lanes, generator=keyed_generator(seed, update, epoch))
            for rows in order.chunk(MINIBATCHES):
                loss = _loss(agent, *(part[rows] for part in data))
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), MOST_GRADIENT)
                optimiser.step()
        if (update + 1) % max(1, updates // 10) == 0:
            say(f"{(update + 1) * STEPS * lanes:>11,} dream steps: {finished} a dream")
    return agent.best


def _advantages(values: Tensor, worths: Tensor, overs: Tensor, last: Tensor) -> Tensor:
    """Generalised advantages [T, B] (Schulman et al. 2016, equation 16); nothing comes back over an end."""
    following, advantage, out = last, torch.zeros_like(last), torch.empty_like(values)
    for step in reversed(range(len(values))):
        on = (~overs[step]).float()
        advantage = worths[step] + GAMMA * following * on - values[step] + GAMMA * LAMBDA * on * advantage
        out[step], following = advantage, values[step]
    return out


def _loss(agent: ActorCritic, seen: Tensor, actions: Tensor, old: Tensor, gain: Tensor, target: Tensor) -> Tensor:
    """The clipped objective (Schulman et al. 2017, equation 9), of one minibatch."""
    chosen, value = agent(seen)
    ratio = (chosen.log_prob(actions) - old).exp()
    gain = (gain - gain.mean()) / (gain.std() + 1e-8)
    objective = torch.min(gain * ratio, gain * ratio.clamp(1.0 - CLIP, 1.0 + CLIP)).mean()
    return VALUE_WEIGHT * (value - target).square().mean() - objective - ENTROPY_WEIGHT * chosen.entropy().mean()


class _RewardScale:
    """Divides rewards [B] by the standard deviation of the discounted returns so far."""

    def __init__(self, lanes: int) -> None:
        self._returns, self._count, self._mean, self._squares = np.zeros(lanes), 0, 0.0, 0.0

    def __call__(self, rewards: np.ndarray, over: np.ndarray) -> np.ndarray:
        self._returns = self._returns * GAMMA + rewards
        self._count += len(rewards)
        before, share = self._mean, len(rewards) / self._count
        self._mean += share * float(self._returns.mean() - before)
        self._squares += float(((self._returns - before) * (self._returns - self._mean)).sum())
        self._returns[over] = 0.0
        return rewards / np.sqrt(self._squares / self._count + 1e-8)


class _Returns:
    """The mean return of the dreams that ended since it was last said."""

    def __init__(self, lanes: int) -> None:
        self._sums, self._done = np.zeros(lanes), []

    def add(self, rewards: np.ndarray, over: np.ndarray) -> None:
        self._sums += rewards
        self._done += self._sums[over].tolist()
        self._sums[over] = 0.0

    def __str__(self) -> str:
        said = f"{np.mean(self._done):.2f}" if self._done else "none has ended"
        self._done.clear()
        return said


def sb3_ppo(env: wm.DreamVectorEnv, steps: int, seed: int, say: Callable[[str], None]) -> Callable[[Tensor], Tensor]:
    """The same by stable-baselines3's PPO, as it is; MissingDependencyError's words where it is not installed."""
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize
    except ImportError as error:
        raise WMEngineError("stable-baselines3 is not installed: pip install 'wm-engine[sb3]'") from error

    class Lanes(VecEnv):
        """A gymnasium vector environment that resets in the same step, in the form that stable-baselines3 has."""

        def __init__(self) -> None:
            self.render_mode = None
            super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

        def reset(self):
            return env.reset(seed=seed)[0]

        def step_async(self, actions):
            self._actions = actions

        def step_wait(self):
            seen, rewards, ended, truncated, infos = env.step(self._actions)
            said = [{} for _ in range(self.num_envs)]
            for lane in np.flatnonzero(ended | truncated):
                said[lane] = {"terminal_observation": infos["final_obs"][lane]}
                said[lane]["TimeLimit.truncated"] = bool(truncated[lane])
            return seen, rewards.astype(np.float32), ended | truncated, said

        def close(self):
            env.close()

        def get_attr(self, attr_name, indices=None):
            return [getattr(env, attr_name)] * self.num_envs

        def set_attr(self, attr_name, value, indices=None):
            setattr(env, attr_name, value)

        def env_method(self, method_name, *args, indices=None, **kwargs):
            return [getattr(env, method_name)(*args, **kwargs)] * self.num_envs

        def env_is_wrapped(self, wrapper_class, indices=None):
            return [False] * self.num_envs

    lanes = VecNormalize(VecMonitor(Lanes()), norm_obs=False, gamma=GAMMA)
    batch = STEPS * env.num_envs // MINIBATCHES
    model = PPO(
        "MlpPolicy",
        lanes,
        n_steps=STEPS,
        batch_size=batch,
        n_epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        seed=seed,
        device="cpu",
    )
    for part in range(10):
        model.learn(max(1, steps // 10), reset_num_timesteps=part == 0)
        ended = [each["r"] for each in model.ep_info_buffer]
        said = f"{np.mean(ended):.2f} a dream" if ended else "no dream has ended"
        say(f"{model.num_timesteps:>11,} dream steps: {said}")
    return lambda seen: torch.from_numpy(model.predict(seen.numpy(), deterministic=True)[0])


class Greedy:
    """A trained policy where wm_engine's go: on M's features, with actions as M knows them."""

    features = "zh"

    def __init__(self, best: Callable[[Tensor], Tensor], run: LoadedRun) -> None:
        self._best, self._space = best, run.config.env.found().spaces.actions

    @torch.no_grad()
    def act(self, features: Tensor, lanes: Tensor) -> Tensor:
        """See :class:`wm_engine.policies.base.Policy`."""
        chosen = self._best(features.float().cpu()).numpy()
        known = self._space.clip(chosen) if chosen.ndim > 1 else self._space.from_stored(chosen)
        return torch.from_numpy(known).to(features.device)


def _part(starts: wm.Starts, rows: slice) -> wm.Starts:
    return wm.Starts(*(None if value is None else value[rows] for value in (starts.z, starts.h, starts.c)))


def main(arguments: list[str] | None = None) -> None:
    """Train, and print what the policy and C make in dreams and on the road."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", required=True, help="the folder of a run that has published its models")
    parser.add_argument("--sb3", action="store_true", help="stable-baselines3's PPO in the place of this file's")
    parser.add_argument("--steps", type=int, default=2_000_000, help="dream steps in all (default: %(default)s)")
    parser.add_argument("--lanes", type=int, default=256, help="dreams side by side (default: %(default)s)")
    parser.add_argument("--starts", type=int, default=4096, help="recorded states they begin from (%(default)s)")
    parser.add_argument("--horizon", type=int, help="steps of a dream (default: those of the run's own dreams)")
    parser.add_argument("--temperature", type=float, help="of the dream (default: the run's own)")
    parser.add_argument("--episodes", type=int, default=10, help="real episodes of the score (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    run = wm.load_run(given.run)
    recorded = run.starts(given.starts + DREAMS)
    train, held_out = (_part(recorded, rows) for rows in (slice(given.starts), slice(given.starts, None)))
    env = wm.DreamVectorEnv(
        run, given.lanes, starts=train, horizon=given.horizon, temperature=given.temperature,
        autoreset_mode="SAME_STEP",
    )  # fmt: skip
    began = time.monotonic()
    best = (sb3_ppo if given.sb3 else ppo)(env, given.steps, given.seed, lambda text: print(text, flush=True))
    print(f"trained in {(time.monotonic() - began) / 60:.1f} minutes")
    agent, how = run.agent(), run.config.evaluate.model_copy(update={"episodes": given.episodes})
    for name, policy in (("PPO", Greedy(best, run)), ("C", run.controller)):
        lanes = OnLanes.everywhere(policy, DREAMS)
        dreams = imagine(run.world, lanes, held_out, env.horizon, env.temperature, seed=1).returns()
        scores = score_policy(agent, policy, run.config.env, how)
        print(
            f"{name:4}dreamt {dreams.mean():.2f} ± {dreams.std() / DREAMS**0.5:.2f} over {env.horizon} steps, "
            f"real {scores.mean:.1f} ± {scores.std:.1f} over {given.episodes} episodes"
        )


if __name__ == "__main__":
    try:
        main()
    except WMEngineError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
