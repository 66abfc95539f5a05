"""Runs of several processes, in tests: started by torchrun, or forked from one process that imports all libraries once.

    several.py TASKS    one process of a run; TASKS: a JSON file [[script, flag, ...], ...]
    several.py          forks the processes of runs (Forks): a job in each line of stdin, its outcome in a line of stdout

resnet34 stands for a tiny network without BatchNorm, which sees one image at a time: several processes compute of it
what one computes. A fault, "rank,step,kind", makes one process fail before a step of a training: "error" by a UserError,
the others by signals: "kill" at once, "stop", "warn" and "interrupt" as schedulers and users ask.
"""
import importlib
import json
import multiprocessing.util
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import torch
from conftest import ROOT, run_main
from torch import nn

from dataset import transforms
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


def import_libraries():
    """Import what a training imports late. Forked processes share it; each would take two seconds to import it again."""
    importlib.import_module('main')
    importlib.import_module('torch._subclasses')  # for the shapes of a network
    transforms.v2()


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def fork(out, err, work, limit=600):
    """Begin work() in a process of its own, whose output is appended to the files out and err. Returns its id.

    limit: seconds after which it is ended.
    """
    number = os.fork()
    if number:
        return number
    code = 1
    multiprocessing.process._children.clear()  # those of the test's process, for which only that one can wait
    try:
        for path, stream in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
        signal.alarm(limit)  # nothing waits for ever
        screen.run(work)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        traceback.print_exc()
        sys.last_value = error  # Python keeps it, too
    finally:
        multiprocessing.util._exit_function()  # ends the processes of loaders, as Python does
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def code_of(number):
    """The exit code of a forked process when it ends; -9 of one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


class Forks:
    """Runs tasks in several processes, as srun would start them. A context."""

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, __file__], env=os.environ | {'PYTHONPATH': str(ROOT)}, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_):
        self.process.communicate()

    def start(self, folder, tasks, count, fault=None):
        """Begin tasks in a folder with so many processes."""
        folder.mkdir(parents=True, exist_ok=True)
        self.process.stdin.write(json.dumps([str(folder), tasks, count, fault]) + '\n')
        self.process.stdin.flush()

    def ended(self):
        """[(exit code, stdout, stderr)] of the processes that were started last."""
        return list(map(tuple, json.loads(self.process.stdout.readline())))


def _serve():
    for line in sys.stdin:
        folder, tasks, count, fault = json.loads(line)
        os.chdir(folder)
        shared = {'WORLD_SIZE': str(count), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}

        def work(rank, tasks=tasks, fault=fault, shared=shared):
            os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
            run(tasks, fault)
        numbers = [fork(f'{rank}.out', f'{rank}.err', lambda rank=rank: work(rank)) for rank in range(count)]
        codes = list(map(code_of, numbers))
        said = [[Path(f'{rank}.{kind}').read_text() for kind in ('out', 'err')] for rank in range(count)]
        for path in Path().glob('[0-9].*'):
            path.unlink()
        print(json.dumps([[code, *texts] for code, texts in zip(codes, said, strict=True)]), flush=True)


def torchrun(folder, tasks, count):
    """Begin tasks in a folder with so many processes by torchrun. Returns the Popen."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'tasks.json').write_text(json.dumps(tasks))
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={count}', __file__, 'tasks.json']
    return subprocess.Popen(command, cwd=folder, env=os.environ | {'PYTHONPATH': str(ROOT)}, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def run(tasks, fault=None):
    """Run scripts one after another. tasks: [[script, flag, ...], ...]; {rank} in a flag is the process's number."""
    if fault:
        rank, step, kind = fault.split(',')
        training.Training.take_step = fail_at(step, kind, rank)
    for script, *flags in tasks:
        run_main(script, *(flag.replace('{rank}', str(processes.rank())) for flag in flags))


if __name__ == '__main__':
    torch.set_num_threads(1)
    networks.ARCHITECTURES.update(PLAIN)
    if len(sys.argv) == 1:
        import_libraries()
        _serve()
    else:
        screen.run(lambda: run(json.loads(Path(sys.argv[1]).read_text())))
