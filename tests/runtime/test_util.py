"""util: how tensors go to a device, what a device computes in, how many cores there are, files written whole."""
import os
import random
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, refused, roots_of

import util
from runtime import whole_files
from wsol.errors import UserError


class Parcel:
    """Stands for a tensor, and notes how it is sent."""

    def __init__(self, ndim, pinned):
        self.ndim, self.pinned, self.sent = ndim, pinned, None

    def is_pinned(self):
        return self.pinned

    def to(self, device, **options):
        self.sent = (device, options)
        return self


@pytest.mark.parametrize('pinned', [True, False])
@pytest.mark.parametrize('kind', ['cuda', 'mps', 'cpu'])
def test_copies_run_beside_the_work_only_from_pinned_memory_to_cuda(kind, pinned):
    """Elsewhere a copy that is not waited for may read what the loader has overwritten since."""
    for ndim in (1, 4):
        parcel = Parcel(ndim, pinned)
        assert util.to_device(parcel, torch.device(kind)) is parcel
        device, options = parcel.sent
        assert device == torch.device(kind)
        assert options['non_blocking'] is (kind == 'cuda' and pinned)


@pytest.mark.parametrize('kind, layout', [('cuda', torch.channels_last), ('cpu', torch.channels_last),
                                          ('mps', torch.contiguous_format)])
def test_images_come_in_the_layout_of_the_devices_convolutions_and_all_else_as_it_is(kind, layout):
    for ndim, expected in ((4, layout), (1, torch.preserve_format), (2, torch.preserve_format)):
        parcel = Parcel(ndim, False)
        util.to_device(parcel, torch.device(kind))
        assert parcel.sent[1]['memory_format'] is expected


@pytest.mark.parametrize('kind', ['cuda', 'mps', 'cpu'])
def test_cudnn_tries_its_algorithms_on_cuda_alone(monkeypatch, kind):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    util.try_algorithms(torch.device(kind))
    assert torch.backends.cudnn.benchmark == (kind == 'cuda')


def test_a_batch_is_the_same_numbers_on_the_device():
    images, labels = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 4])
    sent = util.to_device(images, torch.device('cpu'))
    assert torch.equal(sent, images) and sent.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(util.to_device(labels, torch.device('cpu')), labels)


@pytest.mark.parametrize('asked, native, emulated, expected', [
    ('bfloat16', True, True, 'bfloat16'), ('bfloat16', False, True, 'float32'), ('bfloat16', False, False, 'float32'),
    ('auto', True, True, 'bfloat16'), ('auto', False, True, 'float32')])
def test_bfloat16_becomes_float32_on_a_gpu_that_does_not_compute_in_it(monkeypatch, capsys, asked, native, emulated, expected):
    """A GPU that emulates it is slower than in float32, and no more exact. Only who asked for bfloat16 is told."""
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported',
                        lambda including_emulation=True: native or (emulated and including_emulation))
    assert util.pick_precision(asked, torch.device('cuda'), step=16) == expected
    assert util.pick_precision('auto', torch.device('cuda'), step=15) == 'float32'  # starting its steps takes longest
    warning = capsys.readouterr().err
    assert (warning == '') == (expected == 'bfloat16' or asked == 'auto')
    if warning:
        assert warning.startswith('warning: ') and 'bfloat16' in warning and 'cuda' in warning and 'float32' in warning


def test_float32_is_computed_in_everywhere_and_bfloat16_on_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda **_: pytest.fail('float32 needs no leave'))
    for kind in ('cuda', 'mps', 'cpu'):
        assert util.pick_precision('float32', torch.device(kind)) == 'float32'
    assert util.pick_precision('bfloat16', torch.device('cpu')) == 'bfloat16'
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('machine, cpu, expected', [
    ('x86_64', {'_is_avx512_bf16_supported'}, False), ('x86_64', {'_is_amx_tile_supported'}, True), ('x86_64', set(), False),
    ('aarch64', set(), True)])
def test_auto_is_bfloat16_where_the_processor_computes_in_it(monkeypatch, capsys, machine, cpu, expected):
    """oneDNN supports it on any x86 processor with AVX-512, but without AMX it is slower than float32."""
    for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in cpu)
    monkeypatch.setattr(util.platform, 'machine', lambda: machine)
    monkeypatch.setattr(util.torch, 'ops', SimpleNamespace(mkldnn=SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True)))
    device = torch.device('cpu')
    assert util.computes_in_bfloat16(device) == expected
    assert util.pick_precision('auto', device, step=1) == ('bfloat16' if expected else 'float32')
    assert util.pick_precision('auto', device) == 'float32'  # evaluations
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(util.torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False)
    assert not util.computes_in_bfloat16(device)


@pytest.mark.parametrize('new_enough', [True, False])
def test_bfloat16_on_a_mac_needs_macos_14(monkeypatch, capsys, new_enough):
    asked = []
    monkeypatch.setattr(torch.backends.mps, 'is_macos_or_newer', lambda *version: asked.append(version) or new_enough)
    assert util.pick_precision('bfloat16', torch.device('mps')) == ('bfloat16' if new_enough else 'float32')
    assert asked == [(14, 0)] and ('mps' in capsys.readouterr().err) == (not new_enough)
    assert util.pick_precision('auto', torch.device('mps'), step=64) == 'float32'


@pytest.mark.parametrize('kind, supported, expected', [('cuda', True, 'tf32'), ('cuda', False, 'float32'), ('cpu', True, 'float32'),
                                                       ('mps', True, 'float32')])
def test_tf32_is_for_gpus_that_have_it(monkeypatch, capsys, kind, supported, expected):
    monkeypatch.setattr(torch.cuda, 'is_tf32_supported', lambda: supported)
    assert util.pick_precision('tf32', torch.device(kind)) == expected
    assert ('does not compute in tf32; float32 is used' in capsys.readouterr().err) == (expected == 'float32')


def test_float32_means_float32_until_tf32_is_asked_for(monkeypatch):
    """torch's default lets cuDNN round the inputs of a float32 convolution. The setting outlasts the forward, for the backward."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)
    matmul = torch.backends.cuda.matmul.allow_tf32
    for precision, rounds in (('float32', False), ('tf32', True), ('bfloat16', False), ('tf32', True), ('float32', False)):
        with util.autocast(precision, torch.device('cpu')):
            assert torch.backends.cudnn.allow_tf32 is rounds
        assert torch.backends.cudnn.allow_tf32 is rounds and torch.backends.cuda.matmul.allow_tf32 is matmul is False


def test_autocast_follows_the_precision():
    left, right = torch.rand(4, 4), torch.rand(4, 4)
    for precision, dtype in (('float32', torch.float32), ('bfloat16', torch.bfloat16)):
        with util.autocast(precision, torch.device('cpu')):
            assert (left @ right).dtype == dtype


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='this system binds no process to cores')
def test_the_usable_cores_are_those_that_the_process_is_bound_to(monkeypatch):
    """Whatever OMP_NUM_THREADS says, which torch's number of threads obeys."""
    monkeypatch.setenv('OMP_NUM_THREADS', '77')
    usable = os.sched_getaffinity(0)
    try:
        assert util.usable_cores() == len(usable)
        os.sched_setaffinity(0, {min(usable)})
        assert util.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, usable)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 2, 5, 7, 11})
    assert util.usable_cores() == 5


@pytest.mark.parametrize('cores, expected', [(6, 6), (None, 1)])
def test_a_system_that_binds_no_processes_has_the_cores_it_has(monkeypatch, cores, expected):
    monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: cores)
    assert util.usable_cores() == expected


@pytest.mark.parametrize('asked, by_user, expected, is_told', [
    (8, True, 3, True), (8, False, 3, False), (3, True, 3, False), (2, True, 2, False), (0, True, 0, False)])
def test_no_more_workers_than_cores_and_only_who_asked_is_told(monkeypatch, capsys, asked, by_user, expected, is_told):
    monkeypatch.setattr(util, 'usable_cores', lambda: 3)
    assert util.pick_workers(asked, by_user) == expected
    error = capsys.readouterr().err
    assert bool(error) == is_told
    if is_told:
        assert error.startswith('warning: ') and f'--workers={asked}' in error and '3 workers' in error


def test_an_image_has_the_same_seed_in_any_batch_and_no_two_of_a_data_set_share_one():
    indices = torch.arange(100_000)
    seeds = util.image_seeds(7, indices)
    assert len(seeds.unique()) == len(indices)
    assert torch.equal(util.image_seeds(7, indices[500:502]), seeds[500:502])
    assert not set(seeds.tolist()) & set(util.image_seeds(8, indices).tolist())


@pytest.mark.parametrize('seed', [0, 2**31 - 1, 2**40 + 5])
def test_a_seed_of_any_size_makes_all_generators_repeat_themselves(seed):
    def draws():
        util.seed_everything(seed)
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002  the global state is the matter
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        assert draws() == draws()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / 'results.json'
    whole_files.write_json(path, {'old': 1})
    before = path.read_bytes()

    def half(file):
        file.write_text('{"new"')
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        whole_files.write_atomically(path, half)
    assert path.read_bytes() == before and [child.name for child in tmp_path.iterdir()] == ['results.json']

    long = tmp_path / ('图' * 83 + '.json')  # as long as a name may be
    whole_files.write_json(long, {})
    long.unlink()

    def full(file):
        file.write_text('{"new"')
        raise OSError(28, 'No space left on device')
    with pytest.raises(UserError, match=r'cannot write .*results.json: No space left'):
        whole_files.write_atomically(path, full)
    assert path.read_bytes() == before and [child.name for child in tmp_path.iterdir()] == ['results.json']


def test_algorithms_are_tried_where_images_have_one_size(script, tiny_birds, save, monkeypatch):
    def tried(device):
        raise UserError('they are tried')
    monkeypatch.setattr(util, 'try_algorithms', tried)
    for name in ('eval_wsol', 'main'):
        refused(script(name, *tiny_birds, '--experiment_name=CAM', '--is_train=False'), 'they are tried')
    photo = next((roots_of(tiny_birds)[0] / 'ToyBirds/images').rglob('*.jpg'))
    assert script('inference', photo, '--device=cpu', '--load_checkpoint=CAM')[0] == 0


def test_a_durable_write_removes_old_unfinished_copies_of_its_own_file_alone(tmp_path):
    """The user's files stay, whatever their age and however much like ours they are called."""
    old = time.time() - 7200
    ours = tmp_path / '.a.json.0123456789ab.partial'
    fresh = tmp_path / '.a.json.ba9876543210.partial'
    theirs = [tmp_path / name for name in ('.movie.mkv.partial', '.a.json.partial', '.a.json.final.partial', 'a.json.partial',
                                           '.b.json.0123456789ab.partial', '.a.json.0123456789AB.partial', '.a.json.0123456789abc.partial')]
    for path in (ours, fresh, *theirs):
        path.touch()
        os.utime(path, (old, old))
    os.utime(fresh)
    whole_files.write_json(tmp_path / 'a.json', {})
    assert not ours.exists() and fresh.exists() and all(path.exists() for path in theirs)


def test_file_names_are_kept_where_python_reads_them_as_ascii(tmp_path):
    """Temporary names, and the names of results, of a file whose name the encoding of the file system cannot show."""
    code = ('import sys\nfrom pathlib import Path\nfrom reports.photos import unique_names\nfrom runtime import whole_files\n'
            'path = Path(sys.argv[1])\nwhole_files.write_lines(path, ["kept"])\n'
            'print(ascii(unique_names([("a", path), ("b", Path("p" * 300))])[0]) == ascii(str(path.with_suffix(""))))')
    path = tmp_path / '\u65e5\u672c.txt'
    run = subprocess.run([sys.executable, '-c', code, path], cwd=ROOT, capture_output=True, text=True, check=True,
                         env={'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'})
    assert run.stdout.strip() == 'True' and path.read_text() == 'kept\n'
