"""What a script prints and how it ends. The screen may be closed, and the file that it is sent to may be full."""
import logging
import mmap
import os
import re
import sys
import traceback
import zlib
from contextlib import suppress

from tabulate import tabulate
from tqdm import tqdm

from runtime import processes
from wsol.errors import UserError

# what a terminal would obey or a table would break at: control and half characters, line ends, changes of direction
UNSHOWN = re.compile('[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')
MEMORY = 'lower --workers, whose processes each hold batches, or --batch_size'
EXPLAINED = (  # (pattern of torch's message, what it means and the remedy)
    (r'killed by signal: Bus error|shared memory|/torch_\S+.*(No space|Cannot allocate)|/shm', 'the shared memory '
     'through which loader processes hand images over is full: give it more (docker run --shm-size=1g), or say '
     '--workers=0'),
    (r'DataLoader worker .*(killed by signal|exited unexpectedly)', 'a loader process was killed, most likely because '
     f'memory ran out: {MEMORY}'),
    (r'out of memory|not enough memory|Cannot allocate memory|MemoryError', f'there is not enough memory: {MEMORY}'),
)


def run(main):
    """Run a script's main(). An error that the user can correct becomes one line on stderr and exit code 2."""
    open_streams()
    _said[:] = bytes(len(_said))
    library = logging.Handler()  # what the library says is shown as warnings
    library.emit = lambda record: warn(record.getMessage())
    logging.getLogger('wsol').handlers = [library]
    code = 0
    try:
        processes.meet()
        main()
    except SystemExit as stop:  # argparse's, after --help
        code = stop.code or 0
    except KeyboardInterrupt:
        code = _last_words('interrupted; what was finished is kept', 130)
    except processes.Stopped as stop:
        code = stop.code
        if processes.is_first():
            _print(stop.message, sys.stderr)
    except Exception as error:
        code = _explain(error)
    say()
    processes.leave(code)


def _explain(error):
    """Say in one line what went wrong and return the exit code. A fault of the program gets its traceback printed."""
    text = str(error) or type(error).__name__
    if isinstance(error, UserError):
        # an error of a loader process comes with a traceback, whose last line is our message
        return _last_words('error: ' + ' '.join(text.rsplit('UserError: ', 1)[-1].strip().splitlines()), 2)
    if isinstance(error, (OSError, MemoryError, RuntimeError)):
        reason = text.strip().splitlines()[-1 if 'Traceback' in text else 0][:300]
        advice = next((advice for pattern, advice in EXPLAINED if re.search(pattern, text)), None)
        if advice is not None:
            return _last_words(f'error: {advice} ({reason})', 2)
        if processes.is_end_of_another(error):
            return _last_words('error: another process of this run has ended; what was saved is kept', 1)
        if not isinstance(error, RuntimeError):
            return _last_words(f'error: {reason}', 2)
    _print(traceback.format_exc().rstrip(), sys.stderr)
    return 1


def _last_words(message, code):
    """Print a message on stderr, unless another process of the run has already failed. Returns the code."""
    if processes.is_first_to_fail():
        _print(shown(message), sys.stderr)
    return code


def open_streams():
    """Make sure that stdin, stdout and stderr are open.

    Otherwise the next opened file would get the number of one of them, and a library would print into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name in ('stdout', 'stderr'):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, 'w'))  # noqa: SIM115  until the end
        with suppress(AttributeError):  # a test's stream
            getattr(sys, name).reconfigure(errors='backslashreplace')  # file names may hold bytes that are not text


def shown(text):
    """A name from outside, such as that of a file or a class, as one harmless line.

    What a terminal would obey is escaped, such as '\\n' and '\\x1b', and so is a byte that is no text, such as '\\xff'.
    """
    def escape(match):
        code = ord(match.group())
        return ascii(chr(code - 0xdc00 if 0xdc80 <= code <= 0xdcff else code))[1:-1]
    return UNSHOWN.sub(escape, str(text))


def _print(text, stream, end='\n'):
    try:
        print(text, end=end if text else '', file=stream, flush=True)
    except (OSError, ValueError):  # print nothing more, so that neither the next line nor Python's end fails
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def say(text=''):
    """Print a line on stdout, in the first process of the run."""
    if processes.is_first():
        _print('\n'.join(map(shown, str(text).split('\n'))), sys.stdout)


def warn(message):
    """Print a warning on stderr, in the first process of the run."""
    if processes.is_first():
        _print('warning: ' + shown(message), sys.stderr)


_said = mmap.mmap(-1, 256)  # which kinds were said; loader processes share this memory


def warn_once(kind, message):
    """Print a warning unless this run has printed one of this kind."""
    place = zlib.crc32(kind.encode()) % len(_said)
    if not _said[place]:
        _said[place] = 1
        warn(message)


class _Stderr:
    """The stream of progress bars."""

    def write(self, text):
        _print(text, sys.stderr, end='')

    def flush(self):
        """Every write flushes."""

    def __getattr__(self, name):
        return getattr(sys.stderr, name)


def progress(iterable, description, unit, **options):
    """A tqdm bar, in the first process of the run. A log gets a line every 15 s, but no line of a bar that vanishes."""
    terminal = sys.stderr.isatty()
    hidden = not processes.is_first() or (not terminal and not options.get('leave', True))
    return tqdm(iterable, description, unit=unit, dynamic_ncols=True, mininterval=0.2 if terminal else 15,
                file=_Stderr(), disable=hidden, **options)


def table(header, rows, style='simple'):
    """A table as text: the first column aligned left, the others right; floats with one decimal, None as a dash.

    style: one of tabulate's.
    """
    def show(cell):
        return '-' if cell is None else f'{cell:.1f}' if isinstance(cell, float) else shown(cell)
    header, *rows = ([show(cell) for cell in row] for row in [header, *rows])
    return tabulate(rows, header, tablefmt=style, disable_numparse=True,
                    colalign=['left', *['right'] * (len(header) - 1)] if rows else None)
