"""The MDN-RNN: its weights' names, its steps beside the oracle, its losses, and the units of rewards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from checker import check
from oracle import Oracle
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

from wm_engine import MDNRNN
from wm_engine.data.sequences import EncodedEpisode, SequenceBatch, cut_windows, stack_windows
from wm_engine.models.base import WorldState
from wm_engine.models.mdn_rnn import MDNRNNSettings
from wm_engine.ops.dream import dream_step
from wm_engine.ops.mdn import mdn_nll
from wm_engine.rng import StepWords, numbers
from wm_engine.spaces import Box, Discrete, Spaces, Vector

MIXTURES = ["shared", "per_dim"]
SIZES = [(5, 2, 7, 3), (1, 1, 1, 1), (4, 3, 8, 2), (9, 2, 5, 5)]


def random_model(sizes: tuple[int, int, int, int], mixture: str, seed: int = 0, residual: bool = False) -> MDNRNN:
    m, generator = MDNRNN(*sizes, mixture, residual), torch.Generator().manual_seed(seed)
    for value in m.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
    return m


def doubled(m: MDNRNN) -> MDNRNN:
    copied = MDNRNN(m.latent, m.action, m.hidden, m.mixtures, m.mixture, m.residual).double()
    copied.load_state_dict(m.state_dict())
    copied.set_reward_units(*m.reward_units())
    return copied


def random_episodes(lengths: list[int], latent: int, action: int, logvar: float = -300.0) -> list[EncodedEpisode]:
    generator = torch.Generator().manual_seed(3)
    return [
        EncodedEpisode(
            torch.randn(steps + 1, latent, generator=generator),
            torch.full((steps + 1, latent), logvar),
            torch.randn(steps, action, generator=generator),
            3.0 * torch.randn(steps, generator=generator),
            number % 2 == 0,
        )
        for number, steps in enumerate(lengths)
    ]


def as_dtype(batch: SequenceBatch, dtype: torch.dtype) -> SequenceBatch:
    """The same batch with its numbers in a dtype."""
    names = ("mu", "logvar", "actions", "rewards", "ends")
    before = None if batch.before is None else as_dtype(batch.before, dtype)
    return replace(batch, before=before, **{name: getattr(batch, name).to(dtype) for name in names})


@pytest.mark.parametrize("mixture", MIXTURES)
def test_state_dict_names_and_shapes(mixture: str) -> None:
    Z, A, H, K = 5, 2, 7, 3
    N = K * (2 * Z + 1) + 2 if mixture == "shared" else 3 * Z * K + 2
    shapes = {name: tuple(value.shape) for name, value in MDNRNN(Z, A, H, K, mixture).state_dict().items()}
    assert shapes == {
        "lstm.weight_ih_l0": (4 * H, Z + A),
        "lstm.weight_hh_l0": (4 * H, H),
        "lstm.bias_ih_l0": (4 * H,),
        "lstm.bias_hh_l0": (4 * H,),
        "head.weight": (N, H),
        "head.bias": (N,),
    }


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("residual", [False, True])
def test_an_imagined_step_is_the_oracles_and_the_ops(
    sizes: tuple[int, int, int, int], mixture: str, temperature: float, residual: bool
) -> None:
    Z, A, H, K = sizes
    m, lanes, seed = random_model(sizes, mixture, residual=residual), 6, 11
    weights = {name: value.numpy() for name, value in m.state_dict().items()}
    oracle = Oracle(weights, Z, A, H, K, mixture, "z", "tanh", residual=residual)
    generator = torch.Generator().manual_seed(1)
    z, action, h, c = (torch.randn(lanes, size, generator=generator) for size in (Z, A, H, H))
    words = StepWords(seed, torch.zeros(1, dtype=torch.int64), torch.arange(lanes), m.blocks).at(4)[0]
    with torch.no_grad():
        ours = m.imagine(WorldState(z, h, c), action, words, temperature)
        normals, choice, done = numbers(words, Z, mixture, torch.float32)
        op = dream_step(
            m.weights(), z, action, h, c, normals, choice, done,
            temperature=temperature, reward="predicted", done="threshold",
        )  # fmt: skip
        exact = doubled(m).imagine(WorldState(z.double(), h.double(), c.double()), action.double(), words, temperature)
    for name, value in (("z", ours.state.z), ("h", ours.state.h), ("c", ours.state.c), ("reward", ours.reward)):
        assert torch.equal(value, getattr(op, name)), name
    assert torch.equal(ours.done, op.done)

    want: dict[str, list[np.ndarray]] = {name: [] for name in ("z", "h", "c", "reward", "done")}
    for lane in range(lanes):
        start = (part[lane].double().numpy() for part in (h, c))
        after_h, after_c = oracle.lstm(np.concatenate([z[lane], action[lane]]).astype(np.float64), *start)
        head = oracle.w["head.weight"] @ after_h + oracle.w["head.bias"]
        lane_normals, lane_choice, _ = oracle.draws(seed, 4, lane, 0)
        after_z = oracle.after(z[lane].double().numpy(), oracle.sample(head, lane_normals, lane_choice, temperature))
        for name, part in zip(want, (after_z, after_h, after_c, head[-2], head[-1]), strict=True):
            want[name].append(part)
    reference = {name: np.array(rows) for name, rows in want.items()}
    got = {"z": exact.state.z, "h": exact.state.h, "c": exact.state.c, "reward": exact.reward, "done": exact.done}
    for name, value in got.items():
        check(name, value, reference[name], precision="fp64")
        single = {"reward": ours.reward, "done": ours.done}.get(name)
        check(name, getattr(ours.state, name) if single is None else single, reference[name], getattr(op, name))


@pytest.mark.parametrize("sizes", SIZES)
def test_observed_steps_make_the_sequence(sizes: tuple[int, int, int, int]) -> None:
    Z, A, _, _ = sizes
    m = random_model(sizes, "per_dim").double()
    z, a = torch.randn(6, 3, Z).double(), torch.randn(6, 3, A).double()
    heads, last = m.sequence(torch.cat([z, a], dim=-1))
    state = m.initial(3)
    assert not state[0].any()
    assert not state[1].any()
    for t in range(6):
        state = m.observe(z[t], a[t], state)
        check(f"head {t}", m.head(state[0]), heads[t], precision="fp64")
    for name, ours, theirs in zip("hc", state, last, strict=True):
        check(name, ours, theirs, precision="fp64")


def test_an_imagined_step_observes_what_it_dreams() -> None:
    m = random_model((4, 2, 8, 3), "shared")
    state = WorldState(torch.randn(3, 4), torch.randn(3, 8), torch.randn(3, 8))
    action = torch.randn(3, 2)
    words = StepWords(0, torch.zeros(1, dtype=torch.int64), torch.arange(3), m.blocks).at(0)[0]
    after = m.imagine(state, action, words, 1.0).state
    h, c = m.observe(state.z, action, (state.h, state.c))
    assert torch.equal(after.h, h)
    assert torch.equal(after.c, c)


def test_a_sequence_split_with_carried_state_is_the_whole() -> None:
    m = random_model((4, 2, 8, 3), "per_dim").double()
    inputs = torch.randn(9, 3, 6).double()
    whole, last = m.sequence(inputs)
    first, state = m.sequence(inputs[:4])
    second, end = m.sequence(inputs[4:], state)
    check("heads", torch.cat([first, second]), whole, precision="fp64")
    for name, ours, theirs in zip("hc", end, last, strict=True):
        check(name, ours, theirs, precision="fp64")


def read_losses(m: MDNRNN, heads: Tensor, target: Tensor, batch: SequenceBatch, settings: MDNRNNSettings) -> Tensor:
    """The three losses [3] as torch's distributions have them, over live steps, in the dtype of the heads."""
    parts, live = m.split(heads), batch.live
    logits, means, log_stds = (value[live] for value in (parts.logits, parts.means, parts.log_stds))
    stds = log_stds.clamp(-7.0, 7.0).exp()
    if m.mixture == "shared":
        components = Independent(Normal(means.mT, stds.mT), 1)
        log_likelihood = MixtureSameFamily(Categorical(logits=logits[:, 0]), components).log_prob(target[live])
    else:
        mixture = MixtureSameFamily(Categorical(logits=logits), Normal(means, stds))
        log_likelihood = mixture.log_prob(target[live]).sum(-1)
    center, scale = m.reward_units()
    error = ((batch.rewards[live] - center) / scale - parts.reward[live]).abs()
    bound = settings.reward_bound
    reward = torch.where(error <= bound, error.square(), 2.0 * bound * error - bound**2)
    ends = batch.ends[live]
    end = -Bernoulli(logits=parts.done[live]).log_prob(ends) * torch.where(ends > 0, settings.end_weight, 1.0)
    return torch.stack([-log_likelihood.mean() / m.latent, reward.mean(), end.mean()])


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("bound", [0.5, 8.0])
@pytest.mark.parametrize("residual", [False, True])
def test_losses_are_those_of_the_distributions_over_live_steps(mixture: str, bound: float, residual: bool) -> None:
    m = random_model((4, 3, 6, 2), mixture, residual=residual)
    m.set_reward_units(0.7, 1.3)
    settings = MDNRNNSettings(reward_bound=bound, end_weight=10.0, reward_weight=3.0)
    batch = stack_windows(random_episodes([5, 9, 2, 7], 4, 3))
    with torch.no_grad():
        for name in ("mu", "actions", "rewards", "ends"):  # what stands at padded steps must not matter
            value = getattr(batch, name)
            value[-len(batch.live) :][~batch.live] = torch.nan
        value, scalars = m.loss(batch, torch.Generator(), settings)
        ours = torch.stack([scalars[name] for name in ("nll_per_dimension", "reward_error", "end_loss")])
        readings = []
        for model in (doubled(m), m):
            exact = as_dtype(batch, next(model.parameters()).dtype)
            heads, _ = model.sequence(torch.cat([exact.mu[:-1], exact.actions], dim=-1))
            target = exact.mu[1:] - exact.mu[:-1] if residual else exact.mu[1:]
            readings.append(read_losses(model, heads, target, exact, settings))
    check("losses", ours, *readings)
    weights = torch.tensor([1.0, 3.0, 1.0])
    check("their sum", value, (readings[0] * weights).sum(), (readings[1] * weights).sum())
    errors = ((batch.rewards[batch.live] - 0.7) / 1.3).abs()
    assert (errors > bound).any() == (bound < 1.0), "one bound is met, the other not"


@pytest.mark.parametrize("mixture", MIXTURES)
def test_latents_are_drawn_from_the_posterior_anew(mixture: str) -> None:
    m, settings = random_model((3, 2, 5, 2), mixture), MDNRNNSettings()
    batch = stack_windows(random_episodes([6, 6], 3, 2, logvar=0.0))
    with torch.no_grad():
        draws = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
        one, same, other = (float(m.loss(batch, draw, settings)[0]) for draw in draws)
    assert one == same
    assert one != other


@pytest.mark.parametrize("mixture", MIXTURES)
def test_burning_in_is_running_through(mixture: str) -> None:
    """A window with the one before it costs what the same steps cost in the run from the one's beginning."""
    length, settings = 4, MDNRNNSettings()
    m = random_model((3, 2, 5, 2), mixture)
    episodes = random_episodes([4, 8, 12, 7, 3], 3, 2)
    batch = next(
        found
        for found in (cut_windows(episodes, length, np.random.default_rng(seed)) for seed in range(100))
        if found.continued is not None and found.continued.sum() == 3
    )
    with torch.no_grad():
        _, scalars = m.loss(batch, torch.Generator(), settings)
        ours = torch.stack([scalars[name] for name in ("nll_per_dimension", "reward_error", "end_loss")])
        readings = []
        for model in (doubled(m), m):
            dtype = next(model.parameters()).dtype
            exact = as_dtype(batch, dtype)
            heads = torch.zeros(len(exact.live), 5, m.layout.size, dtype=dtype)
            lanes = iter(range(3))
            for lane in range(5):
                parts = [exact]
                columns = [lane]
                if exact.continued[lane]:
                    parts, columns = [exact.before, exact], [next(lanes), lane]
                rows = [
                    torch.cat([part.mu[:-1, column], part.actions[:, column]], dim=-1)
                    for part, column in zip(parts, columns, strict=True)
                ]
                run, _ = model.sequence(torch.cat(rows).unsqueeze(1))
                heads[:, lane] = run[-len(exact.live) :, 0]
            readings.append(read_losses(model, heads, exact.mu[1:], exact, settings))
    check("losses", ours, *readings)


def test_gradients_do_not_reach_what_was_burnt_in() -> None:
    m = random_model((3, 2, 5, 2), "shared")
    episodes = random_episodes([40, 40, 40], 3, 2)
    batch = cut_windows(episodes, 5, np.random.default_rng(0))
    assert batch.before is not None
    batch.before.actions.requires_grad_()
    batch.actions.requires_grad_()
    m.loss(batch, torch.Generator(), MDNRNNSettings())[0].backward()
    assert batch.before.actions.grad is None
    assert batch.actions.grad is not None
    assert all(parameter.grad is not None for parameter in m.parameters())


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("residual", [False, True])
def test_what_is_predicted_is_what_is_imagined_of_recorded_steps(mixture: str, residual: bool) -> None:
    m = random_model((3, 2, 5, 2), mixture, residual=residual)
    m.set_reward_units(5.0, 20.0)
    batch = stack_windows(random_episodes([6, 4], 3, 2))
    finished = m.finished()
    with torch.no_grad():
        said = m.predict(batch, batch.mu)
        single, _ = m.sequence(torch.cat([batch.mu[:-1], batch.actions], dim=-1))
        exact, exact_mu = doubled(m), batch.mu.double()
        heads, _ = exact.sequence(torch.cat([batch.mu[:-1], batch.actions], dim=-1).double())
        parts = exact.split(heads)
        target = exact_mu[1:] - exact_mu[:-1] if residual else exact_mu[1:]
        want = mdn_nll(parts.logits, parts.means, parts.log_stds, target)
        check("nll", said["nll"], want, m.predict(batch, batch.mu)["nll"])
        check("reward", said["reward"], parts.reward * 20.0 + 5.0, finished.predict(batch, batch.mu)["reward"])
        check("done", said["done"], parts.done, m.split(single).done)
        state = WorldState(batch.mu[0], *finished.initial(2))
        for step in range(3):
            words = torch.zeros(2, m.blocks, 4, dtype=torch.int64)
            imagined = finished.imagine(state, batch.actions[step], words, 0.0)
            check(f"reward {step}", imagined.reward, parts.reward[step] * 20.0 + 5.0, said["reward"][step])
            state = replace(imagined.state, z=batch.mu[step + 1])


def test_it_is_built_for_a_tasks_spaces() -> None:
    settings = MDNRNNSettings(hidden=7, mixtures=3, mixture="shared", residual=True)
    box = MDNRNN.build(4, Spaces(Vector(9), Box((-1.0,) * 2, (1.0,) * 2)), settings)
    assert (box.latent, box.action, box.hidden, box.mixtures, box.mixture) == (4, 2, 7, 3, "shared")
    assert box.residual
    assert not MDNRNN.build(4, Spaces(Vector(9), Discrete(5)), MDNRNNSettings()).residual
    assert MDNRNN.build(4, Spaces(Vector(9), Discrete(5)), settings).action == 5


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden must be at least 1, but was 0"):
        MDNRNN(hidden=0)
    with pytest.raises(TypeError, match=r"latent must be an int, but was 3\.5 \(float\)"):
        MDNRNN(latent=3.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="residual must be True or False, but was 'no'"):
        MDNRNN(residual="no")  # type: ignore[arg-type]


def test_a_model_that_says_no_change_stays_where_it_is() -> None:
    m = MDNRNN(4, 2, 8, 3, residual=True)
    for value in m.state_dict().values():
        value.zero_()
    state = WorldState(torch.randn(3, 4), *m.initial(3))
    words = torch.zeros(3, m.blocks, 4, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(m.imagine(state, torch.randn(3, 2), words, 0.0).state.z, state.z)
