"""Exported models compute what the published ones do, at other batch sizes than the one they were traced with."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from checker import check
from foreign.test_ctallec import controller, eyes, memory, save
from foreign.test_ha2018 import car

import wm_engine as wm
from wm_engine.errors import ConfigError, MissingDependencyError, WMEngineError
from wm_engine.files import read_json
from wm_engine.foreign import ctallec, ha2018
from wm_engine.run import export as module
from wm_engine.run.export import export_run
from wm_engine.run.imported import import_models

NEEDS = {"onnx": ("onnx", "onnxruntime"), "torchscript": ()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """V, M with one component for the whole latent, and C, imported."""
    root = tmp_path_factory.mktemp("run")
    files = [save(root / f"{n}.tar", s) for n, s in enumerate((eyes().state_dict(), memory(), controller()))]
    import_models(root / "run", ctallec.read(files), "ctallec", "car_racing")
    return wm.load_run(root / "run")


@pytest.mark.parametrize("name", NEEDS)
def test_exported_models_compute_what_the_published_ones_do(run, name):
    for package in NEEDS[name]:
        pytest.importorskip(package, reason="needs pip install 'wm-engine[export]'")
    written = export_run(run, name)
    assert written.keys() == {"see", "show", "remember", "act"}
    for part_name, part in module._parts(run).items():
        data = written[part_name].read_bytes()
        call = module._onnx_session(data, part) if name == "onnx" else module._torchscript_call(data)
        inputs = part.inputs(7)
        exact = [value.double() if value.is_floating_point() else value for value in inputs]
        with torch.no_grad():
            peers = module._listed(part.module(*inputs))
            wanted = module._listed(copy.deepcopy(part.module).double()(*exact))
        for output, got, want, peer in zip(part.output_names, call(inputs), wanted, peers, strict=True):
            check(f"{part_name}: {output}", got, want, peer)
    index = read_json(written["act"].parent / "export.json")
    assert index["files"][written["act"].name] == {"inputs": ["features"], "outputs": ["action"]}
    assert index["models"] == dict(run.published["digests"])


def test_a_mixture_for_every_dimension_and_no_v(tmp_path):
    import_models(tmp_path / "run", ha2018.read([car(tmp_path / "files")]), "ha2018", "car_racing")
    written = export_run(wm.load_run(tmp_path / "run"), "torchscript", tmp_path / "out")
    assert written.keys() == {"remember", "act"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"remember.pt", "act.pt", "export.json"}


def test_a_file_that_computes_something_else_is_not_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_torchscript_call", lambda data: lambda inputs: [np.zeros((len(inputs[0]), 3))] * 7)
    with pytest.raises(WMEngineError, match=r"came out inf off the model's.* nothing was written"):
        export_run(run, "torchscript", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused_in_words(run, monkeypatch):
    with pytest.raises(ConfigError, match="--format tflite: must be one of onnx, torchscript"):
        export_run(run, "tflite")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"onnx is not installed(.|\n)*wm-engine\[export\]"):
        export_run(run, "onnx")
