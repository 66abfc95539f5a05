"""The authors' weights by name: CALM_EM and CALM_ML on CUB, OpenImages and ImageNet (ResNet-50, 28x28).

Source: the links of the published README (Google Drive). A file is downloaded to checkpoints/ at first
use, or put there by hand as checkpoints/<name>.pth.tar. Its size and SHA-256 are recorded in
checkpoints/published.lock.json the first time it is seen, and checked ever after.

    python eval_cue_location.py --load_checkpoint=CALM_EM-CUB --score_map_process=jointll --norm_type=clipping \\
        --threshold_type=log
"""
import json
from pathlib import Path

from dataset import download
from util import UserError, read_checkpoint, write_json

FOLDER = Path('checkpoints')
DRIVE_IDS = {
    'CALM_EM-CUB': '1XfBEc1Lh24WqJZP1aLLrwGSlj_INMVef', 'CALM_EM-OpenImages': '11250uUiRNafuTbnx2h4kryiVI-7218mW',
    'CALM_EM-ImageNet': '17451YI9KANnkmmn2ix0N-uHYZljsq4Lc', 'CALM_ML-CUB': '1JgupGC2EoIX8wqpYgKPS-3kSLF-29Z8g',
    'CALM_ML-OpenImages': '1QHhiRjO_Oz_yIl64PJqMeCJzK1KUlffA', 'CALM_ML-ImageNet': '1w4L4_R9o_Sp-9_Mt5IdEJs5DZuqaCfyp',
}
CLASSES = {'CUB': 200, 'OpenImages': 100, 'ImageNet': 1000}


def canonical(name):
    """CALM-EM-CUB, CALM_EM-ILSVRC, ... -> a key of DRIVE_IDS; None if it is no published name."""
    name = str(name).rstrip('/').replace('CALM-', 'CALM_').replace('ILSVRC', 'ImageNet')
    return name if name in DRIVE_IDS else None


def file_of(name):
    """Where the weights of a name are, or will be."""
    return FOLDER / f'{name}.pth.tar'


def ensure(name):
    """The path of a published name's weights, downloaded and checked. Raises UserError."""
    path, lock_path = file_of(name), FOLDER / 'published.lock.json'
    try:
        lock = json.loads(lock_path.read_text()) if lock_path.exists() else {}
        recorded = lock.get(name, {})
    except (ValueError, AttributeError) as error:
        raise UserError(f'{lock_path} does not parse ({error}); remove it, hashes are then recorded anew') from error
    by_hand = f'https://drive.google.com/file/d/{DRIVE_IDS[name]}/view'
    try:
        download.fetch(download.drive_url(DRIVE_IDS[name]), path, size=recorded.get('size'),
                       sha256=recorded.get('sha256'), by_hand=by_hand)
    except UserError as error:
        raise UserError(f'{error} (size and SHA-256 as recorded in {lock_path})' if recorded else str(error)) from error
    if not recorded:
        read_checkpoint(path)  # what is no checkpoint is not recorded as the right one
        lock[name] = {'size': path.stat().st_size, 'sha256': download.digest(path, 'sha256')}
        write_json(lock_path, lock)
    return path


def record(path):
    """What a checkpoint of ours says of itself, for a published file, which says nothing. {} for other paths."""
    name = Path(path).name.removesuffix('.pth.tar')
    if name not in DRIVE_IDS or Path(path).resolve() != file_of(name).resolve():
        return {}
    method, dataset = name.split('-')
    return {'args': {'dataset': 'ILSVRC' if dataset == 'ImageNet' else dataset, 'resize_size': 256, 'crop_size': 224},
            'model': {'architecture': 'resnet50', 'attribution_method': method, 'num_classes': CLASSES[dataset],
                      'large_feature_map': True, 'use_bn': True, 'prior': 'relu', 'last_stage': 'layer4'}}
