"""One process of several, in tests: runs scripts one after another, as torchrun or srun would start each of them.

    several.py TASKS    TASKS: a JSON file [[script, flag, ...], ...]

resnet34 stands for a tiny network without BatchNorm, which sees one image at a time: what several processes compute of
it is what one does. An environment variable FAULT, "rank,step,kind", makes one process fail before a step of a training:
"error" by a UserError, the others by signals: "kill" at once, "stop", "warn" and "interrupt" as schedulers and users ask.
"""
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from conftest import ROOT, run_main
from torch import nn

from experiment import training
from runtime import processes, screen
from wsol import networks
from wsol.errors import UserError

LIMIT = 240  # seconds after which a test gives up on processes that should have ended
SIGNALS = {'kill': signal.SIGKILL, 'stop': signal.SIGTERM, 'warn': signal.SIGUSR1, 'interrupt': signal.SIGINT}


def _plain(weights=None, **options):
    stages = nn.Sequential()
    stages.add_module('conv1', nn.Conv2d(3, 8, 3, 4))
    stages.add_module('layer1', nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()))
    return stages, 8


PLAIN = {'resnet34': networks.Architecture(_plain, ('conv1',), ('conv1', 'layer1'), ('last_stage',))}


def fail_at(step, kind, rank=0):
    """A take_step that fails in the process of this rank before the step of this number, counted over all epochs."""
    steps, take_step = [0], training.Training.take_step

    def fail(*inputs):
        steps[0] += 1
        if processes.rank() == int(rank) and steps[0] == int(step):
            if kind == 'error':
                raise UserError(f'process {rank} cannot go on')
            os.kill(os.getpid(), SIGNALS[kind])
        return take_step(*inputs)
    return fail


@contextmanager
def started(folder, tasks, count, fault=None, port=None):
    """The tasks, started in a folder on so many processes: [Popen]; port: without torchrun, as srun does. At the end of
    the context none is left."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'tasks.json').write_text(json.dumps(tasks))
    command, own = [str(ROOT / 'tests/several.py'), 'tasks.json'], os.environ | {'PYTHONPATH': str(ROOT)}
    own |= {'FAULT': fault} if fault else {}
    if port is None:
        starts = [([sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={count}'], own)]
    else:
        starts = [([sys.executable], own | {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(count),
                                            'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)})
                  for rank in range(count)]
    own = [subprocess.Popen([*words, *command], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE) for words, environment in starts]
    try:
        yield own
    finally:
        for process in own:
            process.kill()
            process.communicate()


def ended(own):
    """[(exit code, stdout, stderr)] of processes that end by themselves."""
    said = [process.communicate(timeout=LIMIT) for process in own]
    return [(process.returncode, *texts) for process, texts in zip(own, said, strict=True)]


def main():
    torch.set_num_threads(1)
    networks.ARCHITECTURES.update(PLAIN)
    if 'FAULT' in os.environ:
        rank, step, kind = os.environ['FAULT'].split(',')
        training.Training.take_step = fail_at(step, kind, rank)
    for script, *flags in json.loads(Path(sys.argv[1]).read_text()):
        run_main(script, *flags)


if __name__ == '__main__':
    screen.run(main)
