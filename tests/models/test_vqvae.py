"""The VQ-VAE: shapes, what is learnt when, and the code book beside a peer's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from checker import check

from wm_engine.errors import ConfigError, WMEngineError
from wm_engine.models.base import load_vision
from wm_engine.models.trainer import Trainer
from wm_engine.models.vqvae import VQVAE, VQVAESettings, perplexity
from wm_engine.spaces import Pixels, Vector

SETTINGS = VQVAESettings(codes=16, width=8, projection=12, codec_steps=3)


def frames(count=6):
    return torch.randint(0, 256, (count, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def made(settings=SETTINGS):
    torch.manual_seed(0)
    vision = VQVAE.build(Pixels(), settings)
    assert isinstance(vision, VQVAE)
    return vision


def learn(vision, steps, settings=SETTINGS):
    trainer = Trainer("vision", vision)
    for step in range(steps):
        vision.train()
        value, scalars = vision.loss(frames(), torch.Generator().manual_seed(step), settings)
        trainer.step(value, 1e-3, 1.0)
    vision.eval()
    return scalars


def test_latents_and_pictures_have_the_shapes_that_they_promise():
    vision = made()
    mu, logvar = vision.encode(frames())
    assert mu.shape == logvar.shape == (6, 12)
    check("noise", torch.exp(0.5 * logvar), torch.full((6, 12), 0.1, dtype=torch.float64), torch.full((6, 12), 0.1))
    painted = vision.decode(mu).detach()
    assert painted.shape == (6, 64, 64, 3)
    assert 0.0 <= float(painted.min()) <= float(painted.max()) <= 1.0


def test_a_projection_has_mean_0_and_variance_1_over_its_entries():
    vision = made()
    words = vision._standard_book()[vision.tokens(frames())].flatten(1)
    raw = F.linear(words, vision.project.weight, vision.project.bias)
    exact = F.linear(words.double(), vision.project.weight.double(), vision.project.bias.double())
    exact = (exact - exact.mean(1, keepdim=True)) / (exact.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    check("projection", vision.encode(frames())[0], exact, F.layer_norm(raw, (12,)))


def test_without_a_projection_latents_are_the_codes_own_numbers():
    vision = made(SETTINGS.model_copy(update={"projection": 0}))
    mu, logvar = vision.encode(frames())
    tokens = vision.tokens(frames())
    assert torch.equal(mu.long(), tokens)
    noisy = mu + torch.exp(0.5 * logvar) * 3.0
    assert torch.equal(vision.tokens_of(noisy), tokens)
    assert torch.equal(vision.decode(mu), vision.paint(vision.book[tokens]))


def test_a_code_sees_its_own_cell_alone():
    vision, changed = made(), frames()
    changed[:, 8:16, 16:24] = 255 - changed[:, 8:16, 16:24]
    differs = (vision.embed(changed) != vision.embed(frames())).any(-1)
    assert differs.any(0).nonzero().flatten().tolist() == [8 + 2]


def test_the_codes_learn_first_and_then_hold_still_while_the_projection_learns():
    vision = made()
    before = copy.deepcopy(vision.state_dict())
    assert "mse" in learn(vision, 3)
    between = copy.deepcopy(vision.state_dict())
    assert "code_nats" in learn(vision, 2)
    after = vision.state_dict()

    def moved(old, new, prefix):
        return any(not torch.equal(old[name], new[name]) for name in old if name.startswith(prefix))

    assert [moved(before, between, part) for part in ("encoder", "decoder", "book", "project")] == [True] * 3 + [False]
    assert [moved(between, after, part) for part in ("encoder", "decoder", "book", "project")] == [False] * 3 + [True]
    assert float(vision.steps) == 5.0


def test_gradients_pass_the_codes_straight_through():
    vision = made().double()
    seen = frames(2)
    vectors = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(2)).double().requires_grad_()
    words = vision.book[vision.nearest(vectors)]
    (through,) = torch.autograd.grad(vision.paint(vectors + (words - vectors).detach()).sum(), vectors)
    leaf = words.detach().requires_grad_()
    (of_words,) = torch.autograd.grad(vision.paint(leaf).sum(), leaf)
    check("gradient", through, of_words, precision="fp64")
    assert vision.loss(seen, torch.Generator(), SETTINGS)[0].requires_grad


def test_dead_codes_move_to_where_the_book_is_coarse():
    vision = made()
    vision.book.zero_()
    vectors = torch.zeros(40, 32)
    vectors[30:] = 5.0
    tokens = vision.nearest(vectors)
    assert float(perplexity(torch.bincount(tokens).float())) == 1.0
    vision.learn_book(vectors, tokens, torch.Generator().manual_seed(0), SETTINGS)
    again = vision.nearest(vectors)
    assert len(again.unique()) == 2
    assert torch.equal(vision.book[again[35]], vectors[35])


def test_what_one_word_tells_well_is_not_split():
    vision = made()
    vectors = torch.cat([torch.zeros(20, 32), torch.full((20, 32), 5.0)])
    vision.book[:2] = vectors[[0, 20]]
    vision.usage[:2], vision.sums[:2] = 20.0, 20.0 * vision.book[:2]
    vision.book[2:] = 100.0
    tokens = vision.nearest(vectors)
    vision.learn_book(vectors, tokens, torch.Generator().manual_seed(0), SETTINGS)
    assert torch.equal(vision.nearest(vectors), tokens)


def test_a_dead_book_is_said():
    vision = made()
    vision.steps.fill_(1000.0)
    with torch.no_grad():
        for part in vision.encoder.parameters():
            part.zero_()
    vision.train()
    with pytest.raises(WMEngineError, match="the code book is dead: after 1001 steps one code of 16 stands for every"):
        vision.loss(frames(), torch.Generator(), SETTINGS)


@pytest.mark.parametrize(("counts", "wanted"), [([5, 0, 0], 1.0), ([2, 2, 2], 3.0), ([7, 7, 0], 2.0)])
def test_perplexity_counts_codes_weighed_by_their_use(counts, wanted):
    found = perplexity(torch.tensor(counts, dtype=torch.float64))
    check("perplexity", found, torch.tensor(wanted, dtype=torch.float64), precision="fp64")


@torch.no_grad()
def test_it_measures_pictures_codes_and_the_books_use():
    found = made().measure(frames())
    assert found.keys() == {"error", "mse", "codes_right", "codes_used", "perplexity"}
    assert 0.0 <= found["codes_right"] <= 1.0
    assert 1.0 <= found["perplexity"] <= found["codes_used"] <= 16.0


def test_a_file_gives_back_the_same_model(tmp_path):
    vision = made()
    learn(vision, 1)
    vision.save(tmp_path / "v.safetensors")
    read = load_vision(tmp_path / "v.safetensors")
    for first, second in zip(vision.encode(frames()), read.encode(frames()), strict=True):
        assert torch.equal(first, second)


def test_pictures_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match=r"a vqvae sees pictures \[64, 64, 3\], but the task shows Vector"):
        VQVAE.build(Vector(3), SETTINGS)
    with pytest.raises(TypeError, match="frames must be a uint8 tensor"):
        made().encode(frames().float())


@pytest.mark.parametrize(("key", "value"), [("codes", 1), ("projection", 65)])
def test_a_book_too_small_and_a_projection_too_wide_are_refused(key, value):
    with pytest.raises(ValueError, match=key):
        VQVAESettings(**{key: value})


def test_the_book_learns_as_the_peers_does():
    peer = pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed: [peers]")
    other = peer.VectorQuantize(dim=32, codebook_size=16, decay=0.9, commitment_weight=0.25, threshold_ema_dead_code=0)
    vectors = torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(3))
    vision = made()
    book, usage = other._codebook, torch.full((16,), 3.0)
    vision.book.copy_(book.embed[0])
    vision.usage.copy_(usage)
    vision.sums.copy_(vision.book * 3.0)
    book.cluster_size.copy_(usage)
    book.embed_avg.copy_(vision.sums)
    exact = copy.deepcopy(vision).double()
    other.train()
    _, indices, commitment = other(vectors)
    tokens = vision.nearest(vectors)
    assert torch.equal(tokens, indices)
    loss = 0.25 * (vectors.double() - exact.book[tokens]).square().mean()
    check("commitment", commitment.squeeze(), loss, 0.25 * (vectors - vision.book[tokens]).square().mean())
    settings = VQVAESettings(codes=16, decay=0.9, least_usage=0.0)
    for one, given in ((vision, vectors), (exact, vectors.double())):
        one.learn_book(given.flatten(0, 1), tokens.flatten(), torch.Generator(), settings)
    check("usage", vision.usage, exact.usage, book.cluster_size[0])
    check("book", vision.book, exact.book, book.embed[0])
