"""Why a dream does not teach: M held to real trajectories of the dream's winner, and what that says in words.

Evolution searches M for what pays, so M's errors matter where the winner of the dream drives, and not where the data
lies on average. So everything here is measured along the winner's own real episodes, of which nothing has learnt:

- **promise**: the dream's policy dreams on from their states; what it is promised stands beside what the road paid.
- **replay**: M dreams on under the very actions that were driven. Where the promise is too high and the replay is
  right, M knows what happens, and the search has found what does not (Ha & Schmidhuber 2018, section 4.5: cheating the
  world model). Where the replay is wrong too, M is.
- **one step**: M's reward and its end on real latents, so that no drift of the latent hides in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wm_engine.data.sequences import EncodedEpisode, SequenceBatch, stack_windows
from wm_engine.dream.imagination import Dreams, imagine
from wm_engine.dream.starts import states_at
from wm_engine.dream.types import Starts
from wm_engine.judge.calibration import draw_starts, driven_actions, horizons_to, paid_over, summed_rewards
from wm_engine.models.base import WorldModel
from wm_engine.policies.base import EpisodicPolicy, OnLanes, Policy

# Steps ahead over which the latent's errors are compared: further on every model has lost its way.
NEAR = 10
LAGS = (-2, -1, 0, 1, 2)
_FIRST_STARTS = 128

# What counts as a fault. Promises and replays are measured in what the road paid, rewards in their own deviation.
_TOO_MUCH = 0.5
_SHIFTED = 0.1
_OFF = 0.25
_LEAST_R2 = 0.3
_LEAST_RECALL = 0.5
_KNOWS_LESS = 0.5
_STATE_MATTERS = 0.1
_MOST_END_WEIGHT = 200.0


@dataclass(frozen=True)
class Evidence:
    """What was measured along real episodes of the dream's winner; NaN where there was nothing to measure.

    episodes, steps, mean_return : of the real episodes; per decision, ``early`` and ``late`` are what the first and the
        last third of an episode's steps paid
    horizons, promised, replayed, paid : [K] decisions, and returns over so many: dreamt by the policy, dreamt under the
        driven actions, and real; means over ``starts`` states
    worst_promised, worst_paid : means over the tenth of the starts that paid least, over the longest horizon
    reward_mean, reward_bias, reward_std : of real rewards a decision; bias: M's mean reward less the real one, without
        steps that ended an episode
    reward_r2 : 1 - squared error / variance of these, and reward_at_lag: by lag, the correlation of M's reward of a
        step with the real reward so many steps later
    ends, ends_seen, false_ends : steps that ended an episode for good, those of them where M's end logit is over 0,
        and other steps where it is; end_probability: M's mean probability of an end at real ends
    skill : 1 - squared error / squared error of "nothing changes", of latents dreamt up to :data:`NEAR` steps ahead
        under the driven actions; stateless_skill: the same from the same states without h and c; first_skill: on
        episodes that M has learnt from its first round on
    """

    episodes: int
    steps: int
    mean_return: float
    early: float
    late: float
    starts: int
    horizons: list[int]
    promised: list[float]
    replayed: list[float]
    paid: list[float]
    spread: float
    worst_promised: float
    worst_paid: float
    reward_mean: float
    reward_bias: float
    reward_std: float
    reward_r2: float
    reward_at_lag: dict[int, float]
    ends: int
    ends_seen: int
    false_ends: int
    end_probability: float
    skill: float
    stateless_skill: float
    first_skill: float


@dataclass(frozen=True)
class Circumstances:
    """How the run dreamt and learnt, and what else is known of it: all that the words need beside the evidence.

    dream_steps : decisions of its dreams; stateless : its dreams begin without h and c
    rounds, learning_rounds : that it had, and those in which M learnt
    temperature, end_weight : its settings; at_bound : share of the latest generations with sigma at ``sigma_max``
    rank, rank_near : rho, low and high of the rank correlation of dream and road over a mix of controllers, and over
        those around the best one; None where they were not taken
    controller, planner : real scores as (mean, standard error); None where they were not taken
    survival : every step is worth 1, whatever M predicts
    """

    dream_steps: int
    stateless: bool = False
    rounds: int = 1
    learning_rounds: int = 1
    temperature: float = 1.0
    end_weight: float | None = None
    at_bound: float = 0.0
    rank: tuple[float, float, float] | None = None
    rank_near: tuple[float, float, float] | None = None
    controller: tuple[float, float] | None = None
    planner: tuple[float, float] | None = None
    survival: bool = False


@dataclass(frozen=True)
class Fault:
    """One thing at fault: its short name, the sentence that shows it by numbers, and settings to try."""

    name: str
    words: str
    settings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Diagnosis:
    """What is at fault, gravest first, and a paragraph that says it."""

    faults: list[Fault]
    words: str

    @property
    def names(self) -> list[str]:
        """Return the faults' names."""
        return [fault.name for fault in self.faults]

    @property
    def settings(self) -> list[str]:
        """Return what to try, each once."""
        return list(dict.fromkeys(setting for fault in self.faults for setting in fault.settings))


def examine(
    world: WorldModel,
    policy: Policy,
    episodes: Sequence[EncodedEpisode],
    first: Sequence[EncodedEpisode],
    *,
    horizon: int,
    starts: int,
    temperature: float,
    seed: int = 0,
    survival: bool = False,
) -> Evidence:
    """Measure M along real episodes of the dream's winner.

    Parameters
    ----------
    world : M, finished; policy : the winner, for one lane
    episodes : that it drove without noise, and nothing has learnt
    first : episodes of M's first data, for comparison; may be none
    horizon : decisions of the longest dreams compared; cut to the longest episode
    starts : how many states of each episode are dreamt on from
    temperature : of the dreams

    Raises ValueError where there are no episodes.
    """
    if not episodes:
        raise ValueError("episodes must be some, but were none")
    horizon = min(horizon, max(episode.steps for episode in episodes))
    sums = summed_rewards(episodes, survival)
    owners, steps = draw_starts(episodes, horizon, starts, seed)
    begin = states_at(world, episodes, owners, steps, seed)
    actor: Policy | Callable[[int], Tensor] = OnLanes.everywhere(policy, len(owners))
    if isinstance(policy, EpisodicPolicy):
        actor = driven_actions(episodes, owners, steps, horizon).__getitem__
    dreams = imagine(world, actor, begin, horizon, temperature, seed, survival=survival)
    replay, driven = _replay(world, episodes, owners, steps, begin, horizon, temperature, seed, survival)
    lengths = horizons_to(horizon)
    paid = [paid_over(sums, owners, steps, int(length)) for length in lengths]
    worst = paid[-1].argsort(kind="stable")[: max(1, len(owners) // 10)]
    # A dream that goes on where the road had ended is not followed there: nothing was driven.
    replayed = replay.rewards.where(replay.live & driven.live, 0.0).double()
    totals = np.array([each[-1] for each in sums])
    thirds = [max((len(each) - 1) // 3, 1) for each in sums]
    return Evidence(
        episodes=len(episodes),
        steps=sum(episode.steps for episode in episodes),
        mean_return=float(totals.mean()),
        early=float(np.mean([each[third] / third for each, third in zip(sums, thirds, strict=True)])),
        late=float(np.mean([(each[-1] - each[-1 - third]) / third for each, third in zip(sums, thirds, strict=True)])),
        starts=len(owners),
        horizons=lengths.tolist(),
        promised=[float(dreams.returns(int(length)).mean()) for length in lengths],
        replayed=[float(replayed[: int(length)].sum(0).mean()) for length in lengths],
        paid=[float(each.mean()) for each in paid],
        spread=float(paid[-1].std()),
        worst_promised=float(dreams.returns().numpy()[worst].mean()),
        worst_paid=float(paid[-1][worst].mean()),
        **_one_step(world, episodes),
        skill=_skill(world, episodes, owners, steps, begin, seed),
        stateless_skill=_skill(world, episodes, owners, steps, Starts(begin.z), seed),
        first_skill=_first_skill(world, first, seed),
    )


def _replay(
    world: WorldModel, episodes: Sequence[EncodedEpisode], owners: np.ndarray, steps: np.ndarray, begin: Starts,
    horizon: int, temperature: float, seed: int, survival: bool = False,
) -> tuple[Dreams, SequenceBatch]:  # fmt: skip
    """Dream on from states of episodes under the actions that were driven there; returns that beside the record."""
    pairs = zip(owners.tolist(), steps.tolist(), strict=True)
    batch = stack_windows([episodes[o].window(s, min(s + horizon, episodes[o].steps)) for o, s in pairs])
    actions = driven_actions(episodes, owners, steps, len(batch.actions))
    return imagine(world, actions.__getitem__, begin, len(actions), temperature, seed, survival=survival), batch


def _skill(
    world: WorldModel, episodes: Sequence[EncodedEpisode], owners: np.ndarray, steps: np.ndarray, begin: Starts,
    seed: int,
) -> float:  # fmt: skip
    if not len(owners):
        return math.nan
    dreams, batch = _replay(world, episodes, owners, steps, begin, NEAR, 0.0, seed)
    after, live = batch.mu[1:], batch.live
    error = (dreams.z[1:] - after)[live].double().square().sum().item()
    copied = (batch.mu[0] - after)[live].double().square().sum().item()
    return 1.0 - error / copied if copied > 0.0 else math.nan


def _first_skill(world: WorldModel, first: Sequence[EncodedEpisode], seed: int) -> float:
    if not first:
        return math.nan
    owners, steps = draw_starts(first, min(NEAR, min(episode.steps for episode in first)), _FIRST_STARTS, seed)
    return _skill(world, first, owners, steps, states_at(world, first, owners, steps, seed), seed)


@torch.inference_mode()
def _one_step(world: WorldModel, episodes: Sequence[EncodedEpisode]) -> dict[str, Any]:
    """Read M's reward and end of every step, fed what the agent saw: V's means."""
    batch: SequenceBatch = stack_windows(episodes)
    said = {
        name: value.cpu() for name, value in world.predict(batch.to(world.device), batch.mu.to(world.device)).items()
    }
    ended = batch.ends > 0.5
    going_on = batch.live & ~ended
    predicted, real = said["reward"].double(), batch.rewards.double()
    error, variance = (predicted - real)[going_on], real[going_on].var(correction=0)
    over = said["done"] > 0.0
    return {
        "reward_mean": real[going_on].mean().item(),
        "reward_bias": error.mean().item(),
        "reward_std": variance.sqrt().item(),
        "reward_r2": 1.0 - (error.square().mean() / variance).item() if variance > 0.0 else math.nan,
        "reward_at_lag": {lag: _at_lag(predicted, real, going_on, lag) for lag in LAGS},
        "ends": int(ended.sum()),
        "ends_seen": int((ended & over).sum()),
        "false_ends": int((going_on & over).sum()),
        "end_probability": said["done"][ended].sigmoid().mean().item() if bool(ended.any()) else math.nan,
    }


def _at_lag(predicted: Tensor, real: Tensor, live: Tensor, lag: int) -> float:
    """Correlate what M says of step t with what step t + lag paid, over all t where both were driven."""
    count = len(predicted)
    here, there = slice(max(0, -lag), count - max(0, lag)), slice(max(0, lag), count - max(0, -lag))
    both = live[here] & live[there]
    x, y = predicted[here][both], real[there][both]
    if len(x) < 3:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    norm = (x.square().sum() * y.square().sum()).sqrt().item()
    return (x @ y).item() / norm if norm > 0.0 else math.nan


def diagnose(evidence: Evidence, how: Circumstances) -> Diagnosis:
    """Say what is at fault: what M is told wrongly, then what it has not learnt, then what the search makes of it."""
    e = evidence
    found = [
        fault
        for fault in (
            *(() if how.survival else (_rewards_in_time(e), _rewards_in_value(e), _rewards_unlearnt(e))),
            _ends(e, how),
            _frozen(e, how),
            _stateless(e, how),
            _exploited(e, how),
            _step_size(how),
            _unranked(how),
        )
        if fault is not None
    ]
    return Diagnosis(found, _paragraph(e, how, found))


def _rewards_in_time(e: Evidence) -> Fault | None:
    known = {lag: rho for lag, rho in e.reward_at_lag.items() if not math.isnan(rho)}
    best = max(known, key=lambda lag: known[lag], default=0)
    if best == 0 or known[best] < known.get(0, 0.0) + _SHIFTED:
        return None
    late = "later" if best > 0 else "earlier"
    return Fault(
        "shifted rewards",
        f"M's reward of a step goes with what the road paid {_times(abs(best), 'step')} {late} (correlation "
        f"{known[best]:.2f}) rather than with its own ({known.get(0, math.nan):.2f}): rewards are credited to the "
        "wrong step, in the data or in M's loss",
        ["look at how rewards are recorded: reward[t] must be what action[t] was paid"],
    )


def _rewards_in_value(e: Evidence) -> Fault | None:
    if not abs(e.reward_bias) > _OFF * e.reward_std or not abs(e.reward_bias) > 0.0:
        return None
    return Fault(
        "shifted rewards",
        f"M's rewards are off by {e.reward_bias:+.3g} a decision on real latents, where the road paid "
        f"{e.reward_mean:.3g} on average with a deviation of {e.reward_std:.3g}",
        ["memory.steps up", "memory.recent=0.7", "memory.reward_weight=3"],
    )


def _rewards_unlearnt(e: Evidence) -> Fault | None:
    best = max((rho for rho in e.reward_at_lag.values() if not math.isnan(rho)), default=math.nan)
    # A shift in time or in value costs R² too, and is named by itself.
    centred = e.reward_r2 + (e.reward_bias / e.reward_std) ** 2 if e.reward_std > 0.0 else math.nan
    if math.isnan(centred) or centred >= _LEAST_R2 or best**2 >= _LEAST_R2:
        return None
    return Fault(
        "rewards not learnt",
        f"M's reward explains {max(centred, 0.0):.0%} of what the road paid a decision on the winner's own states",
        ["memory.steps up", "memory.reward_weight=3", "memory.hidden up", "vision.steps up: what pays must be in z"],
    )


def _ends(e: Evidence, how: Circumstances) -> Fault | None:
    if e.ends and e.ends_seen < _LEAST_RECALL * e.ends:
        usual = max((e.steps - e.ends) / e.ends, 2.0)
        weight = min(round(max(usual, 2.0 * (how.end_weight or 1.0))), _MOST_END_WEIGHT)
        return Fault(
            "unweighted ends",
            f"of {_times(e.ends, 'real end')} M saw {e.ends_seen}, and gave them a probability of "
            f"{e.end_probability:.2f} on average: the dream goes on where the road has ended",
            [f"memory.end_weight={weight:g}", 'controller.done="sample"'],
        )
    if e.false_ends > max(2 * e.ends, 0.02 * e.steps):
        return Fault(
            "false ends",
            f"M ended {_times(e.false_ends, 'step')} of {e.steps} that went on for real, where {e.ends} ended: the "
            "dream stops before it is paid",
            ["memory.end_weight down", 'controller.done="sample"'],
        )
    return None


def _frozen(e: Evidence, how: Circumstances) -> Fault | None:
    nothing = not e.skill > 0.0
    lost = not math.isnan(e.first_skill) and e.first_skill > 0.0 and e.skill < _KNOWS_LESS * e.first_skill
    if math.isnan(e.skill) or not (nothing or lost):
        return None
    rest = f", and knows {max(e.first_skill, 0.0):.0%} of it on its first data" if lost else ""
    learnt = f"M learnt in {how.learning_rounds} of {_times(how.rounds, 'round')}"
    frozen = how.learning_rounds < how.rounds or nothing
    return Fault(
        "a frozen M" if frozen else "M lags behind the search",
        f"on the winner's states M knows {max(e.skill, 0.0):.0%} of how latents change over {NEAR} decisions{rest}; "
        f"{learnt}",
        ["memory.steps=100" if frozen else "memory.steps up", "memory.recent=0.7", "drive.episodes up"],
    )


def _stateless(e: Evidence, how: Circumstances) -> Fault | None:
    if not how.stateless or math.isnan(e.skill) or e.skill - e.stateless_skill < _STATE_MATTERS:
        return None
    return Fault(
        "starts without state",
        f"dreams begin without M's hidden state, and from the same latents M then knows "
        f"{max(e.stateless_skill, 0.0):.0%} of the change where with its state it knows {e.skill:.0%}: C is trained on "
        "an h that the road never shows",
        ["controller.burn_in=true"],
    )


def _excess(e: Evidence, values: list[float]) -> float:
    scale = max(abs(e.paid[-1]), 0.5 * e.spread)
    return (values[-1] - e.paid[-1]) / scale if scale > 0.0 else math.nan


def _exploited(e: Evidence, how: Circumstances) -> Fault | None:
    if not _excess(e, e.promised) > _TOO_MUCH:
        return None
    over = f"over {e.horizons[-1]} decisions the dream promised {e.promised[-1]:.3g} and the road paid {e.paid[-1]:.3g}"
    if _excess(e, e.replayed) > _TOO_MUCH:
        return Fault(
            "M is wrong along the winner's road",
            f"{over}; told the driven actions, M still says {e.replayed[-1]:.3g}, so it is M and not the search",
            ["memory.steps up", "memory.recent=0.7", "drive.episodes up", "controller.dream_generations down"],
        )
    return Fault(
        "the search exploits M",
        f"{over}; told the driven actions, M says {e.replayed[-1]:.3g}, so M knows what was driven, and the search has "
        "found what was not",
        ["controller.temperature=1.3", "controller.dream_generations down", "controller.dream_episodes up",
         "drive.episodes up"],
    )  # fmt: skip


def _step_size(how: Circumstances) -> Fault | None:
    if how.at_bound < 0.5:
        return None
    return Fault(
        "the step size runs away",
        f"sigma stood at its bound in {how.at_bound:.0%} of the latest generations: the dream does not tell candidates "
        "apart",
        ["controller.dream_episodes up", "controller.starts up", "controller.sigma_max down"],
    )


def _unranked(how: Circumstances) -> Fault | None:
    if how.rank_near is None or not how.rank_near[1] <= 0.0:
        return None
    return Fault(
        "the order around the best is noise",
        f"around the best controller the dream's order goes with the road's to {_interval(how.rank_near)}, which may "
        "be nothing",
        ["controller.dream_episodes up", "controller.average=3", "judge.choose=\"best\""],
    )  # fmt: skip


def _paragraph(e: Evidence, how: Circumstances, faults: Sequence[Fault]) -> str:
    said = [
        f"Along {_times(e.episodes, 'real episode')} of the dream's winner ({e.steps} decisions, mean return "
        f"{e.mean_return:.3g}), over {e.horizons[-1]} decisions the dream promised {e.promised[-1]:.3g}, M replayed "
        f"{e.replayed[-1]:.3g} under the driven actions, and the road paid {e.paid[-1]:.3g}."
    ]
    if faults:
        said.append(f"At fault: {faults[0].name}. " + " ".join(_sentence(fault.words) for fault in faults))
        settings = list(dict.fromkeys(setting for fault in faults for setting in fault.settings))
    else:
        said.append("Nothing of this is at fault: the dream keeps its word as far as it looks.")
        unseen, settings = _beyond(e, how)
        said += unseen
    said += _judged(how)
    said.append("To try: " + "; ".join(settings) + ".")
    return " ".join(said)


def _beyond(e: Evidence, how: Circumstances) -> tuple[list[str], list[str]]:
    """Say what holds a run back whose dream keeps its word on average, and what to try."""
    said, settings = [], []
    if e.worst_paid < 0.5 * e.paid[-1] and e.worst_promised - e.worst_paid > 0.5 * (e.paid[-1] - e.worst_paid):
        said.append(
            f"But in the worst tenth of the states the road paid {e.worst_paid:.3g} where the dream promised "
            f"{e.worst_promised:.3g}: what goes wrong there is not in the dream."
        )
        settings += ["drive.patience up and drive.noise up, so that recoveries are in the data", "memory.steps up"]
    if e.late < 0.5 * e.early and e.horizons[-1] < e.steps / e.episodes:
        said.append(
            f"An episode's last third paid {e.late:.3g} a decision where its first paid {e.early:.3g}: what goes wrong "
            f"lies beyond the {how.dream_steps} decisions of a dream."
        )
        settings.append("controller.dream_steps up, or controller.dream_steps_growth=1.02")
    if _excess(e, e.replayed) < -0.25:
        said.append(
            f"Under the driven actions M makes {e.replayed[-1]:.3g} of {e.paid[-1]:.3g}: an open loop, which nobody "
            "corrects, drifts away."
        )
    return said, settings or ["rounds up", "memory.hidden up", "controller.dream_steps_growth=1.02"]


def _judged(how: Circumstances) -> list[str]:
    """Say how dream and road rank controllers, and what a planner makes of the same M."""
    said = []
    if how.rank is None:
        said.append("How the dream ranks controllers has not been measured (a run does so at its end).")
    else:
        said.append(f"Dream and road rank controllers alike to {_interval(how.rank)}")
        said[-1] += f", around the best one to {_interval(how.rank_near)}." if how.rank_near else "."
    if how.planner is not None and how.controller is not None:
        (planned, its), (mean, own) = how.planner, how.controller
        error = math.hypot(its, own)
        beside = (
            f"Planning in M scores {planned:.3g} ± {its:.2g} for real beside the controller's {mean:.3g} ± {own:.2g}"
        )
        if planned - mean > 2.0 * error:
            said.append(f"{beside}: M knows enough for more, so it is the search or C that falls short.")
        elif mean - planned > 2.0 * error:
            said.append(f"{beside}: a short plan is no judge here, or M is wrong where it is pressed hardest.")
        else:
            said.append(f"{beside}: the same within two standard errors, so what holds both back is M or the horizon.")
    return said


def _interval(rank: tuple[float, float, float]) -> str:
    return f"{rank[0]:.2f} (95 % interval {rank[1]:.2f} to {rank[2]:.2f})"


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def _times(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
