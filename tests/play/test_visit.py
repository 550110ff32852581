"""One visitor: what is asked for is done, and nobody else notices."""

from __future__ import annotations

import dataclasses
import tempfile

import pytest
from play.playing import unpacked, vectors_run

from wm_engine.errors import MissingDependencyError
from wm_engine.play.messages import Act, Begin, BeginAt, Switch, Temperature, Thumbnails, Wheel
from wm_engine.play.visit import Visit

START = BeginAt(type="begin_at", episode=1, step=2, seed=7)
YOU = Wheel(type="wheel", who="you")


def act(*action: float) -> Act:
    return Act(type="act", action=list(action))


def switch(what: str, on: bool) -> Switch:
    return Switch(type=what, on=on)


def told(messages: list[bytes], kind: str) -> list[dict]:
    return [header for header, _ in map(unpacked, messages) if header["type"] == kind]


def dreamt(visit: Visit, steps: int) -> list[bytes]:
    return [message for _ in range(steps) for message in visit.advance()]


@pytest.fixture
def visit(vectors):
    one = Visit(vectors)
    one.welcome()
    yield one
    one.close()


def test_a_visitor_is_welcomed_with_all_that_the_page_needs(vectors, pictures):
    for shared, names, temperature in ((vectors, 3, 1.0), (pictures, 3, 1.0)):
        visit = Visit(shared)
        welcome, begun, picture = (unpacked(message)[0] for message in visit.welcome())
        assert (welcome["type"], begun["type"], picture["type"]) == ("welcome", "begun", "picture")
        assert (len(welcome["controls"]["names"]), welcome["temperature"]) == (names, temperature)
        assert 0 <= begun["step"] < shared.store.info(begun["episode"]).steps
        visit.close()


@pytest.mark.parametrize("kind", ["vectors", "pictures"])
def test_enough_pictures_show_every_second(request, kind):
    shared = request.getfixturevalue(kind)
    assert shared.steps_per_second * shared.pictures_per_step >= 30.0
    visit = Visit(shared)
    visit.hear(START)
    shown = visit.advance()
    assert len(shown) == shared.pictures_per_step > 1
    assert len({unpacked(message)[1][0] for message in shown}) == len(shown)  # and they move
    visit.close()


def test_the_same_start_and_seed_make_the_same_dream(visit):
    visit.hear(START)
    first = dreamt(visit, 6)
    assert dreamt(visit, 6) != first
    visit.hear(Begin(type="begin", where="again"))
    assert dreamt(visit, 6) == first
    visit.hear(START.model_copy(update={"seed": 8}))
    assert dreamt(visit, 6) != first


def test_visitors_do_not_disturb_each_other(vectors):
    alone, quiet, wild = Visit(vectors), Visit(vectors), Visit(vectors)
    for visit in (alone, quiet, wild):
        visit.hear(START)
    want = dreamt(alone, 6)
    wild.hear(YOU)
    got = []
    for step in range(6):
        wild.hear(act(*(float(index == step % 3) for index in range(3))))
        wild.hear(Temperature(type="temperature", value=1.9))
        wild.advance()
        if step == 3:
            wild.hear(Begin(type="begin", where="anywhere"))
        got += quiet.advance()
    assert got == want
    for visit in (alone, quiet, wild):
        visit.close()


def test_whoever_is_at_the_wheel_steers(visit):
    visit.hear(START)
    by_controller = told(visit.advance(), "picture")[-1]["action"]
    visit.hear(YOU)
    visit.hear(START)
    assert told(visit.advance(), "picture")[-1]["action"] == [0.0, 1.0, 0.0]  # idle
    visit.hear(act(0.0, 0.0, 0.3))
    assert told(visit.advance(), "picture")[-1]["action"] == [0.0, 0.0, 1.0]  # one of three, not a third of one
    visit.hear(Wheel(type="wheel", who="controller"))
    visit.hear(START)
    assert told(visit.advance(), "picture")[-1]["action"] == by_controller


def test_actions_are_kept_within_their_bounds(pictures):
    visit = Visit(pictures)
    for message in (START, YOU, act(-7.0, 0.25, -1.0)):
        assert not told(visit.hear(message), "refused")
    assert told(visit.advance(), "picture")[-1]["action"] == [-1.0, 0.25, 0.0]
    visit.close()


def test_the_temperature_changes_the_dream(visit):
    dreams = []
    for value in (0.0, 1.0, 2.0):
        visit.hear(START)
        visit.hear(Temperature(type="temperature", value=value))
        dreams.append(dreamt(visit, 3))
    assert dreams[0] != dreams[1] != dreams[2] != dreams[0]


def test_a_dream_can_be_held(visit):
    visit.hear(switch("pause", True))
    assert visit.rests
    assert visit.advance() == []
    visit.hear(switch("pause", False))
    assert visit.advance()


def test_a_dream_ends_when_m_says_so(tmp_path):
    visit = Visit(vectors_run(tmp_path, end=1.0))
    visit.hear(START)
    *before, last = told(visit.advance(), "picture")
    assert last["ended"]
    assert not any(picture["ended"] for picture in before)
    assert last["end"] > 0.7
    assert visit.rests
    assert visit.advance() == []
    visit.hear(Begin(type="begin", where="again"))
    assert not visit.rests
    visit.close()


def test_the_road_goes_along_under_the_same_actions(visit, vectors):
    visit.hear(START)
    begun = visit.hear(switch("road", True))
    assert not told(begun, "note")
    (picture,) = told(begun, "picture")
    assert (len(picture["parts"]), picture["roadTotal"]) == (2, 0.0)
    visit.hear(YOU)
    visit.hear(act(0.0, 0.0, 1.0))
    road = vectors.road()
    road.begin(START.episode, START.step)
    for _ in range(12):
        shown = told(visit.advance(), "picture")
        road.step(vectors.spaces.actions.from_stored([2])[0])
        assert (shown[-1]["roadTotal"], shown[-1]["roadEnded"]) == (road.total, road.ended)
    assert road.ended
    road.close()
    visit.hear(switch("road", False))
    assert len(told(visit.advance(), "picture")[0]["parts"]) == 1


def test_a_road_that_does_not_repeat_the_record_is_told(pictures):
    visit = Visit(pictures)
    visit.hear(START)
    (note,) = told(visit.hear(switch("road", True)), "note")
    assert "does not repeat this recorded episode" in note["text"]
    visit.close()


def test_an_environment_that_is_not_installed_is_told_in_words(tmp_path, monkeypatch):
    from wm_engine.envs import EnvSettings
    from wm_engine.play.played_run import PlayedRun

    run = vectors_run(tmp_path).run

    def missing(settings):
        raise MissingDependencyError("corridor: not installed here: pip install corridor")

    monkeypatch.setattr(EnvSettings, "found", missing)
    visit = Visit(PlayedRun(run))
    welcome = told(visit.welcome(), "welcome")[0]
    assert "pip install corridor" in welcome["noRoad"]
    (refused,) = told(visit.hear(switch("road", True)), "refused")
    assert "pip install corridor" in refused["text"]
    assert visit.advance()  # the dream goes on
    visit.close()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (START.model_copy(update={"episode": 4}), "episode must be 0 to 3, but was 4"),
        (START.model_copy(update={"step": 999}), "step of episode 1 must be 0 to"),
        (act(1.0), "action must be 3 numbers, but were 1"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(visit, message, words):
    visit.hear(START)
    (refused,) = told(visit.hear(message), "refused")
    assert words in refused["text"]
    assert visit.advance()


def test_moments_to_pick_are_recorded_ones(visit, pictures):
    (header,) = told(visit.hear(Thumbnails(type="thumbnails")), "thumbnails")
    assert len(header["places"]) == len(header["parts"]) == 12
    for place in header["places"]:
        assert not told(visit.hear(BeginAt(type="begin_at", **place)), "refused")
    other = Visit(pictures)
    ((header, parts),) = map(unpacked, other.hear(Thumbnails(type="thumbnails")))
    for place, part in zip(header["places"], parts, strict=True):
        recorded = pictures.store.observations(place["episode"], place["step"], place["step"] + 1)[0]
        assert part == recorded.tobytes()
    other.close()


def test_what_was_seen_can_be_kept_as_a_film(visit, vectors):
    visit.hear(START)
    visit.hear(switch("record", True))
    seen = len(dreamt(visit, 5))
    ((header, parts),) = map(unpacked, visit.hear(switch("record", False)))
    assert (header["name"], header["pictures"]) == ("dream-1-2-7.mp4", seen)
    assert parts[0][4:8] == b"ftyp"
    visit.hear(switch("record", True))
    (refused,) = told(visit.hear(switch("record", False)), "refused")
    assert "Nothing was recorded" in refused["text"]


def test_a_visitor_who_leaves_leaves_nothing_behind(vectors, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    visit = Visit(vectors)
    visit.hear(START)
    visit.hear(switch("road", True))
    visit.hear(switch("record", True))
    dreamt(visit, 2)
    road = visit._road
    visit.close()
    assert list(tmp_path.iterdir()) == []
    assert road._env.workers == []
    assert visit.advance() == visit.hear(START) == []


def test_a_controller_that_is_not_finite_ends_the_dream_in_words(vectors):
    import copy

    broken = copy.copy(vectors)
    policy = copy.deepcopy(vectors.run.controller)
    policy.act = lambda features, lanes: features.new_full((1, 3), float("nan"))
    broken.run = dataclasses.replace(vectors.run, controller=policy)
    visit = Visit(broken)
    visit.hear(START)
    (note,) = told(visit.advance(), "note")
    assert "not a finite number" in note["text"]
    assert visit.rests
