"""--freeze: the head alone learns, on features computed once, and learns what it would have learned."""
import numpy as np
import pytest
import torch
from conftest import SMALL, accepted, open_birds, refused
from munch import Munch

from data_loaders import SeededBatches
from experiment import frozen, weights
from wsol import build_model, parameter_groups
from wsol.errors import UserError

FREEZE = [*SMALL, '--attribution_method=CALM_EM', '--prior=softplus', '--freeze', '--experiment_name=frozen']


def test_the_backbone_stays_and_the_head_learns_what_a_plain_loop_learns(tiny_birds, script, trained, tmp_path):
    """A loop that runs every image, or its mirror image, through the frozen backbone at every step."""
    start = str(trained / 'CAM')
    code, out, err = script('main', *tiny_birds, *FREEZE, '--epochs=2', '--batch_size=20', f'--load_checkpoint={start}',
                            '--is_different_checkpoint')
    assert code == 0, err
    assert 'features of 54 train images' in out + err
    model, checkpoint = weights.load_model('frozen')
    before = weights.read_checkpoint(weights.find_checkpoint(start, 'save', tmp_path)).weights
    after = checkpoint.weights
    backbone = [name for name in before if not name.startswith(('conv_last', 'attention'))]
    assert backbone and all(torch.equal(before[name], after[name]) for name in backbone)

    images, _ = open_birds(tiny_birds, 'train')
    torch.manual_seed(3)
    plain = build_model('resnet18', 'CALM_EM', 18, prior='softplus', last_stage='layer1')
    plain.load_state_dict({name: before[name] for name in backbone}, strict=False)
    plain.eval()
    groups = parameter_groups(plain, 'resnet18', 0.01, 10, True)
    optimiser = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(name.startswith(('conv_last', 'attention')))
    batches = SeededBatches(len(images), 20, 3)
    for epoch in range(2):
        batches.epoch = epoch
        for batch in batches:
            batch_images = torch.stack([images[index][0].flip(2) if seed % 2 else images[index][0] for index, seed in batch])
            loss, _ = plain.loss(batch_images, torch.tensor([int(images.labels[index]) for index, _ in batch]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for name in ('conv_last.weight', 'attention.0.weight'):
        expected = dict(plain.named_parameters())[name]
        moved = (expected - torch.zeros_like(expected)).abs().max()
        assert (after[name] - expected).abs().max() < 2e-3 * moved, name  # the features are kept in half precision


def test_the_log_has_the_accuracy_of_the_whole_network(tiny_birds, script):
    accepted(script('main', *tiny_birds, *FREEZE, '--epochs=1'))
    model, checkpoint = weights.load_model('frozen')
    images, _ = open_birds(tiny_birds, 'val')
    batch = torch.stack([images[index][0] for index in range(len(images))])
    right = (model(batch).argmax(1) == torch.as_tensor(images.labels)).float().mean().item()
    assert checkpoint.content['log'][-1]['val_accuracy'] == pytest.approx(100 * right)


def test_a_resumed_training_learns_the_same(tiny_birds, script, tmp_path):
    for name, epochs in (('whole', (2,)), ('parts', (1, 2))):
        for number in epochs:
            accepted(script('main', *tiny_birds, *FREEZE[:-1], f'--experiment_name={name}', f'--epochs={number}'))
    whole, parts = (weights.load_model(name)[1].weights for name in ('whole', 'parts'))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    code, out, _ = script('main', *tiny_birds, *FREEZE[:-1], '--experiment_name=whole', '--epochs=2')
    assert code == 0 and 'features of' not in out  # nothing is left to learn


def test_refused_where_layers_below_the_head_are_new(tiny_birds, script):
    refused(script('main', *tiny_birds, '--architecture=vgg16', '--pretrained=False', '--freeze',
                   '--experiment_name=frozen'), '--freeze', 'vgg16')


@pytest.mark.parametrize('kept', [False, True])
def test_features_of_an_image_and_its_mirror_image(tiny_birds, tmp_path, kept, capsys, monkeypatch):
    torch.manual_seed(0)
    model = build_model('resnet18', 'CAM', 18, last_stage='layer1').eval()
    images = {split: open_birds(tiny_birds, split)[0] for split in ('train', 'val')}
    args = Munch(cache=kept, save_root=tmp_path / 'save', batch_size=7, workers=0, precision='float32', crop_size=56)

    def files():
        return sorted(path.name for path in (tmp_path / 'save').rglob('*') if path.is_file())

    def extract_all():
        return frozen.extract_all(model, images, tmp_path, args, torch.device('cpu'))

    def full(*_):
        raise OSError(28, 'No space left on device')
    with monkeypatch.context() as patched, pytest.raises(UserError, match='cannot write [1-9] MB in .*: No space left'):
        patched.setattr('os.posix_fallocate', full)
        extract_all()
    (tmp_path / 'features.npy').write_text("the user's own")
    splits = extract_all()
    assert (tmp_path / 'features.npy').read_text() == "the user's own"
    (tmp_path / 'features.npy').unlink()
    for index in (0, 10, 35):
        for seed in (4, 5):
            image = images['train'][index][0]
            features, label, row = splits['train'][index, seed]
            expected = model.extract_features(image.flip(2)[None] if seed % 2 else image[None])[0].detach()
            assert (label, row) == (int(images['train'].labels[index]), index)
            np.testing.assert_allclose(features.numpy(), expected.numpy(), rtol=1e-3, atol=1e-4)
    assert not any(path.is_file() for path in tmp_path.glob('*')) and len(files()) == 2 * kept  # else the file has no name
    if kept:
        before = files()
        images['val'].resized = None  # no image is read again
        np.testing.assert_array_equal(extract_all()['val'].features, splits['val'].features)
        with torch.no_grad():
            model.conv_last.weight += 1  # the head has no part in the features
        extract_all()
        assert files() == before
        path = tmp_path / 'save/cache' / next(name for name in before if 'val' in name)
        cut = path.read_bytes()[:-100]  # as by a copy that ended early
        path.unlink()
        path.write_bytes(cut)
        del images['val'].resized
        np.testing.assert_array_equal(extract_all()['val'].features, splits['val'].features)
        assert files() == before and 'is damaged' in capsys.readouterr().err
        images['val'].resized = None
        del images['val'].resized
        with torch.no_grad():
            model.layer1[0].conv1.weight += 1  # the backbone has
        extract_all()
        assert len(files()) == 4 and set(before) < set(files())
        monkeypatch.setattr('dataset.images.READER', 2)  # as if the photos had changed
        extract_all()
        assert len(files()) == 2 and not set(before) & set(files())  # those of the other backbone go, too
        assert capsys.readouterr().out.count('is removed: it is of images that have changed since') == 4


def test_features_of_other_stages_have_another_file(tiny_birds, tmp_path):
    args = Munch(crop_size=56, precision='float32')
    images, _ = open_birds(tiny_birds, 'val')
    names = set()
    for last_stage in ('layer1', 'layer2'):
        torch.manual_seed(0)
        names.add(frozen._backbone_fingerprint(build_model('resnet18', 'CAM', 18, last_stage=last_stage), images, args))
    assert len(names) == 2
