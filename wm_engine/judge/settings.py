"""How a run is judged on its way."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wm_engine.settings import Section


class JudgeSettings(Section):
    """When the present policy is scored for real, which round is published, and how the dream is held to the road."""

    every: int = Field(4, ge=0, description="score the policy after every such round, and after the last; 0: never")
    episodes: int = Field(8, ge=1, description="real episodes of such a score, the same ones each time")
    seed: int = Field(2_000_000, ge=0, lt=2**30, description="of the first of them")
    choose: Literal["last", "best"] = Field(
        "last", description="which round is published: the last, or the one with the best of these scores"
    )
    horizon: int = Field(40, ge=1, description="decisions over which the dream's promise is held to what the road paid")
    starts: int = Field(16, ge=1, description="recorded states of each newly driven episode that it is dreamt on from")
    controllers: int = Field(
        48, ge=0, description="at the end, controllers that are ranked both in the dream and for real; 0: none"
    )
    real_episodes: int = Field(1, ge=1, description="real episodes that each of them drives, the same for all")
    real_frames: int = Field(400, ge=1, description="frames after which these are cut")
    dream_episodes: int = Field(256, ge=1, description="dreams of each of them, the same starts and draws for all")
    planner_episodes: int = Field(
        0,
        ge=0,
        description="real episodes of a planner in M at the end, beside the policy's: it tells a wrong M from a search "
        "that exploits M; 0: none",
    )
    planner_horizon: int = Field(20, ge=1, description="decisions that it plans ahead")
    planner_candidates: int = Field(128, ge=4, description="sequences of actions that it dreams in an iteration")
    planner_every: int = Field(1, ge=1, description="decisions that it takes of a plan before it makes another")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples behind a confidence interval")
