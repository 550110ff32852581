"""Learning by gradient descent: a state goes on to the same bits, and a loss that is not finite changes nothing."""

from __future__ import annotations

import pytest
import torch
from checker import check
from recordings import same_weights
from torch import nn

from wm_engine.errors import CorruptFileError, WMEngineError
from wm_engine.files import load_tensors, save_tensors
from wm_engine.models.identity import Identity
from wm_engine.models.trainer import Trainer, repeatable
from wm_engine.rng import keyed_generator


def network():
    """A convolution in channels_last, as V's are, and a dense layer."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 2))
    return layers.to(memory_format=torch.channels_last)


def descend(trainer, steps, clip=1.0, rate=lambda step: 0.01 / (1 + step)):
    """Take the given steps; each one's data follows from its number."""
    scalars = {}
    for step in steps:
        pictures = torch.randn(5, 3, 6, 6, generator=keyed_generator(7, step))
        value = (trainer.model(pictures) - pictures.mean((1, 2, 3), keepdim=True)[:, :, 0, 0]).square().mean()
        scalars = trainer.step(value, rate(step), clip)
    return scalars


def written(trainer, path):
    """The state as it comes back from a file: plain contiguous tensors."""
    save_tensors(path, trainer.state())
    return load_tensors(path)[0]


@pytest.mark.parametrize("cut", [0, 1, 4, 9])
def test_a_state_goes_on_to_the_same_bits(tmp_path, cut):
    whole = Trainer("vision", network())
    descend(whole, range(10))
    begun = Trainer("vision", network())
    descend(begun, range(cut))
    other = network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    resumed = Trainer("vision", other)
    resumed.load_state(written(begun, tmp_path / "state.safetensors"))
    assert same_weights(resumed.model, begun.model)
    descend(resumed, range(cut, 10))
    assert same_weights(resumed.model, whole.model)
    ours, theirs = resumed.state(), whole.state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_moments_keep_their_parameters_memory_format(tmp_path):
    begun, resumed = Trainer("vision", network()), Trainer("vision", network())
    descend(begun, range(2))
    resumed.load_state(written(begun, tmp_path / "state.safetensors"))
    weight = resumed.model[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    for part in ("exp_avg", "exp_avg_sq"):
        moment = resumed._adam.state[weight][part]
        assert moment.stride() == weight.stride()
        assert torch.equal(moment, begun._adam.state[begun.model[0].weight][part])


def test_another_trainer_shares_no_memory_with_a_loaded_state():
    begun, resumed = Trainer("vision", network()), Trainer("vision", network())
    descend(begun, range(2))
    state = begun.state()
    resumed.load_state(state)
    kept = {name: value.clone() for name, value in state.items()}
    descend(resumed, range(2, 5))
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_a_state_that_lacks_something_is_corrupt():
    trainer = Trainer("vision", network())
    descend(trainer, range(2))
    state = trainer.state()
    for missing in ("model.0.weight", "adam.3.bias.exp_avg", "adam.0.weight.exp_avg_sq"):
        with pytest.raises(CorruptFileError, match=f"the state of vision is not whole .*{missing}"):
            Trainer("vision", network()).load_state({name: state[name] for name in state if name != missing})
    with pytest.raises(CorruptFileError, match="the state of vision is not whole"):
        Trainer("vision", network()).load_state(state | {"model.3.bias": torch.zeros(7)})


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error_and_changes_nothing(wrong):
    trainer = Trainer("memory", network())
    descend(trainer, range(2))
    before = {name: value.clone() for name, value in trainer.state().items()}
    value = trainer.model(torch.randn(1, 3, 6, 6)).sum() * wrong
    with pytest.raises(
        WMEngineError, match=r"memory: the loss became -?(nan|inf)\. Lower memory\.learning_rate \(now 0\.3\)"
    ):
        trainer.step(value, 0.3, 1.0)
    assert all(torch.equal(value, before[name]) for name, value in trainer.state().items())


def test_the_gradients_norm_is_bounded_and_told():
    free, bounded = Trainer("memory", network()), Trainer("memory", network())
    assert descend(free, [0], clip=0.0) == {}
    gradient = torch.cat([parameter.grad.flatten() for parameter in free.model.parameters()])
    bound = 0.1 * float(gradient.norm())
    told = descend(bounded, [0], clip=bound)
    check("norm", told["gradient_norm"], gradient.double().norm(), gradient.norm())
    clipped = torch.cat([parameter.grad.flatten() for parameter in bounded.model.parameters()])
    check("clipped gradient", clipped, 0.1 * gradient.double(), 0.1 * gradient)


def test_every_step_has_its_own_learning_rate():
    still, moving = Trainer("memory", network()), Trainer("memory", network())
    descend(still, range(3), rate=lambda step: 0.0)
    descend(moving, range(3), rate=lambda step: 0.1 * (step == 2))
    assert same_weights(still.model, network())
    assert not same_weights(moving.model, network())


def test_a_model_without_parameters_is_kept_but_does_not_learn():
    fitted, fresh = Identity(3), Identity(3)
    fitted.fit(torch.randn(10, 3))
    trainer = Trainer("vision", fitted)
    resumed = Trainer("vision", fresh)
    resumed.load_state(trainer.state())
    assert same_weights(fresh, fitted)
    with pytest.raises(ValueError, match="vision has no parameters to learn"):
        trainer.step(torch.zeros(()), 0.1, 1.0)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_on_a_gpu_cudnn_keeps_to_what_repeats_itself_and_is_put_back(monkeypatch, kind):
    flags = torch.backends.cudnn
    for before in (False, True):
        monkeypatch.setattr(flags, "deterministic", before)
        monkeypatch.setattr(flags, "benchmark", not before)
        with repeatable(torch.device(kind)):
            expected = (True, False) if kind == "cuda" else (before, not before)
            assert (flags.deterministic, flags.benchmark) == expected
        assert (flags.deterministic, flags.benchmark) == (before, not before)
