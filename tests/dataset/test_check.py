"""dataset.check, and its command: every kind of problem is found and named."""
import json
import shutil

from conftest import paint_folder, roots_of

from dataset import check, registry


def test_check_finds_what_is_wrong(script, own_birds):
    roots = [flag for flag in own_birds if '_root' in flag]
    data, meta = roots_of(own_birds)
    code, out, _ = script('dataset.prepare', 'check', 'ToyBirds', *roots)
    assert code == 0 and not any(json.loads(out).values())

    images = sorted((data / 'ToyBirds/images').rglob('*.jpg'))
    images[0].write_bytes(b'broken')
    images[1].unlink()
    images[2].with_name('surplus.jpg').write_bytes(images[3].read_bytes())
    folder = meta / 'ToyBirds/train'
    lines = (folder / 'class_labels.txt').read_text().splitlines()
    (folder / 'class_labels.txt').write_text('\n'.join([*lines[:-2], lines[-2].rsplit(',', 1)[0] + ',99']) + '\n')
    boxes = (folder / 'localization.txt').read_text().splitlines()
    name = [line.rsplit(',', 4)[0] for line in boxes]
    boxes[:4] = [f'{name[0]},0,0,500,500', f'{name[1]},-1,0,5,5', f'{name[2]},9,0,5,5', f'{name[3]},1,2,3']  # and name[4]: none
    (folder / 'localization.txt').write_text('\n'.join(boxes[:4] + boxes[5:]) + '\n')
    segmentations = sorted((data / 'ToyBirds/segmentations').rglob('*.png'))
    segmentations[0].write_bytes(b'x')
    segmentations[1].unlink()
    code, out, _ = script('dataset.prepare', 'check', 'ToyBirds', *roots)
    counts = {what: entry and entry['count'] for what, entry in json.loads(out).items()}
    assert code == 1
    # the line without four integers is no place of name[3]
    assert counts == {'broken images': 1, 'missing images': 1, 'unlabelled images': 2, 'surplus images': 1, 'bad boxes': 4,
                     'missing masks': 1, 'broken masks': 1, 'images without box or mask': 2}
    whole = json.loads((data / 'check_ToyBirds.json').read_text())
    assert whole['missing images'] == [str(images[1])] and f"['{name[4]}" not in whole['bad boxes']
    assert whole['images without box or mask'][1].startswith(f'{name[4]} has no line')


def test_check_of_the_users_own_folder(tmp_path):
    pets = paint_folder(tmp_path / 'pets', ('cat', 'dog'), (2, 0, 2))
    (pets / 'test' / '.ipynb_checkpoints').mkdir()
    (pets / 'test' / '.ipynb_checkpoints' / '0.jpg').write_bytes(b'x')
    assert not any(check.check_dataset(registry.find_dataset(f'{pets}/')).values())
    (pets / 'test' / 'cow').mkdir()
    shutil.copy(pets / 'test/cat/0.jpg', pets / 'test/cow/0.jpg')
    (pets / 'test' / 'dog' / '0.jpg').write_bytes(b'x')
    problems = check.check_dataset(registry.find_dataset(f'{pets}/'))
    assert problems.pop('unlabelled images') == [str(pets / 'test/cow/0.jpg')]
    assert len(problems['broken images']) == 1 and str(pets / 'test/dog/0.jpg') in problems.pop('broken images')[0]
    assert not any(problems.values())
    lists = pets / 'metadata' / 'test'
    lists.mkdir(parents=True)
    (lists / 'localization.txt').write_text('cat/0.jpg,m.png,i.png\ncat/1.png,m.png,gone.png\ndog/0.jpg,m.png,\n')
    (pets / 'm.png').write_bytes(b'x')
    shutil.copy(pets / 'test/cat/1.png', pets / 'i.png')
    problems = check.check_dataset(registry.find_dataset(f'{pets}/'))
    assert problems['missing masks'] == [str(pets / 'gone.png')] and str(pets / 'm.png') in problems['broken masks'][0]
    assert problems['images without box or mask'] == [
        *(f'{lists / "localization.txt"} names no mask of {name}' for name in ('cow/0.jpg', 'dog/1.png')),
        f'{lists / "localization.txt"} names no ignore mask of dog/0.jpg']


def test_files_and_lists_are_compared(tmp_path):
    """Across the splits of one folder; a linked folder is there; masks beside the photos are no surplus."""
    folder, elsewhere = tmp_path / 'OpenImages', tmp_path / 'elsewhere'
    for name in ('train/1.jpg', 'test/2.jpg', 'test/2_mask.png', 'test/3.jpg', 'test/._2.jpg'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'')
    elsewhere.mkdir()
    (elsewhere / '4.jpg').write_bytes(b'')
    (folder / 'val').symlink_to(elsewhere)
    listed = {'train': ['train/1.jpg'], 'val': ['val/4.jpg', 'val/5.jpg'], 'test': ['test/2.jpg']}
    data = registry.find_dataset('OpenImages', tmp_path, tmp_path / 'meta')
    assert check.compare(data, listed) == {folder: (sorted(sum(listed.values(), [])), ['val/5.jpg'], ['test/3.jpg'])}
