"""What a page may say, and what it is told when it says something else."""

from __future__ import annotations

import numpy as np
import pytest
from play.playing import unpacked

from wm_engine.play.messages import Act, BeginAt, packed, read_message


def test_messages_are_read():
    assert read_message('{"type": "act", "action": [0.5, -1]}') == Act(type="act", action=[0.5, -1.0])
    assert read_message('{"type": "begin_at", "episode": 3, "step": 0}') == BeginAt(type="begin_at", episode=3, step=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("[]", "was '\\[\\]'"),
        ("{}", "type"),
        ('{"type": "open", "path": "/etc/passwd"}', "open"),
        ('{"type": "begin", "where": "../.."}', "'beginning', 'anywhere' or 'again'"),
        ('{"type": "begin", "where": "again", "path": "x"}', r"begin\.path: Extra"),
        ('{"type": "begin_at", "episode": -1, "step": 0}', "greater than or equal to 0, but was '-1'"),
        ('{"type": "begin_at", "episode": 1.5, "step": 0}', r"begin_at\.episode"),
        ('{"type": "begin_at", "episode": 1, "step": 0, "seed": 2147483648}', "less than 2147483648"),
        ('{"type": "act", "action": [NaN]}', "finite"),
        ('{"type": "act", "action": ["0"]}', "valid number"),
        ('{"type": "act", "action": ' + str([0] * 200) + "}", "at most 128"),
        ('{"type": "temperature", "value": 1e999}', "finite"),
        ('{"type": "temperature", "value": -0.1}', "greater than or equal to 0"),
        ('{"type": "pause", "on": 1}', "valid boolean"),
    ],
)
def test_other_messages_are_refused_in_words(text, words):
    with pytest.raises(ValueError, match=words):
        read_message(text)


def test_what_is_packed_is_unpacked():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    header, parts = unpacked(packed({"type": "picture"}, [picture[:, ::2], b"film"]))
    assert header == {"type": "picture", "parts": [{"bytes": 12, "shape": [2, 2, 3]}, {"bytes": 4}]}
    assert parts == [picture[:, ::2].tobytes(), b"film"]
