"""What the tests share: reference data, a tiny ToyBirds, scripts run in this process.

Reference data (outputs of the published code, CUB's annotations) is not part of the project. It is
looked for in the folder that the environment variable CALM_SHARED names, else in ../shared; tests
that need it skip, and say so, where it is absent.
"""
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get('CALM_SHARED', ROOT.parent / 'shared'))


def shared(*parts):
    """A file or folder of the reference data; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f'no reference data at {path}: set CALM_SHARED to its folder')
    return path


def golden(name):
    """{array name: array} of one file of the published code's outputs."""
    with np.load(shared('golden', f'{name}.npz')) as arrays:
        return {key: arrays[key] for key in arrays.files}


def assert_close(ours, reference, relative=1e-5):
    """Largest difference under `relative` times the reference's largest entry."""
    ours, reference = (np.asarray(value.detach() if isinstance(value, torch.Tensor) else value, np.float64)
                       for value in (ours, reference))
    assert ours.shape == reference.shape
    assert np.isfinite(ours).all()
    assert np.abs(ours - reference).max() <= relative * np.abs(reference).max()


@pytest.fixture(scope='session')
def tiny_birds(tmp_path_factory):
    """The flags of a ToyBirds with few images, painted once."""
    from dataset import toybirds
    root = tmp_path_factory.mktemp('birds')
    toybirds.paint_dataset(root / 'data', root / 'meta', {'train': 3, 'val': 1, 'test': 2}, seed=5)
    return ['--dataset=ToyBirds', f'--data_root={root / "data"}', f'--metadata_root={root / "meta"}', '--crop_size=56',
            '--resize_size=64', '--workers=0', '--device=cpu', '--seed=3']


SMALL = ['--architecture=resnet18', '--last_stage=layer1', '--pretrained=False', '--batch_size=20']


@pytest.fixture
def script(monkeypatch, tmp_path, capsys):
    """Call a script as the shell would: script('main', '--epochs=1') -> (exit code, stdout, stderr)."""
    import importlib

    import util

    monkeypatch.chdir(tmp_path)

    def call(name, *flags):
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, flags)])
        capsys.readouterr()
        code = 0
        try:
            util.run(importlib.import_module(name).main)
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err
    return call
