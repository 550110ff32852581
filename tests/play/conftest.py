"""The runs that the tests of this folder play, made once."""

from __future__ import annotations

import pytest
from play.playing import pictures_run, vectors_run


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return pictures_run(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def vectors(tmp_path_factory):
    return vectors_run(tmp_path_factory.mktemp("vectors"))
