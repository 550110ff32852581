"""The command: what it refuses, in words and with status 2."""

from __future__ import annotations

import contextlib
import sys

import pytest
from play.playing import vectors_run
from recordings import little_run

from wm_engine import cli
from wm_engine.run.folder import RunFolder


def refused(capsys, *arguments: str) -> str:
    assert cli.main(["play", *arguments]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


def test_a_run_that_has_published_nothing_is_refused(capsys, tmp_path):
    folder = RunFolder(little_run(tmp_path))
    folder.published.unlink()
    assert "nothing is published yet" in refused(capsys, "--run", str(tmp_path))


def test_a_folder_that_is_no_run_is_refused(capsys, tmp_path):
    assert "no run folder" in refused(capsys, "--run", str(tmp_path / "none"))


def test_a_missing_extra_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "wm_engine.play.server", raising=False)
    assert "pip install 'wm-engine[play]'" in refused(capsys, "--run", str(tmp_path))


def test_a_port_in_use_is_refused(capsys, tmp_path):
    pytest.importorskip("uvicorn")
    from wm_engine.play import server

    root = vectors_run(tmp_path).run.folder.root
    with contextlib.closing(server.listen_on("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        assert f"port {port} of 127.0.0.1" in refused(capsys, "--run", str(root), "--port", str(port))
