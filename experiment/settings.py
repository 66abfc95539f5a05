"""The settings that checkpoints and results record: which flags they are, and when two of them agree."""
from munch import Munch

from config import ALL_FLAGS, FLAGS
from wsol.errors import UserError
from wsol.networks import options_taken


def problem_of(name, value):
    """What is wrong with a setting that a checkpoint carries, according to the flag's parser; None if nothing is."""
    flag = ALL_FLAGS.get(name)
    if flag is None:
        return 'no flag has this name'
    if value is None and flag.default is None:
        return None
    try:
        parsed = flag.parse(','.join(map(str, value)) if isinstance(value, tuple) else str(value))
    except UserError as error:
        return str(error)
    return None if type(parsed) is type(value) and parsed == value else f'{value!r} is no value of this flag'


def network_settings(args):
    """The arguments of build_model that the flags state; a checkpoint carries the same dict. Flags with
    no effect on this network are set to their defaults."""
    unused = _without_use(args.architecture, args.attribution_method)
    return {name: flag.default if name in unused else args[name] for name, flag in ALL_FLAGS.items() if flag.network}


def _without_use(architecture, attribution_method):
    return {'use_bn', 'prior'} - set(options_taken(architecture, attribution_method))


def adopt(args, source, known, network):
    """The flags, completed by what a checkpoint knows. Raises UserError where the command line contradicts it.

    source: the checkpoint's path, for the message. known: {flag: value} of its data, for flags that the command line
    does not state. network: its arguments of build_model; a stated flag with another value is refused if it matters.
    """
    unused = _without_use(*(network.get(name, args[name]) for name in ('architecture', 'attribution_method')))
    for name in (name for name, flag in ALL_FLAGS.items() if flag.network and name not in unused):
        if name in network and name in args.given and args[name] != network[name]:
            raise UserError(f'{source} was trained with --{name}={network[name]}, not --{name}={args[name]}; leave the '
                            'flag out or name another checkpoint')
    silent = {name: value for name, value in known.items() if name in args and name not in args.given}
    return Munch(args, **silent, **network)


def changed_settings(args, before):
    """The changes of settings that a continued training must keep: ['lr was 0.1, is 0.2']. before: its settings."""
    now = args | network_settings(args)
    kept = (name for name, flag in ALL_FLAGS.items() if flag.kept)
    return [f'{name} was {before.get(name)}, is {now[name]}' for name in kept if before.get(name) != now[name]]


def usual_settings():
    """{flag: value}: the usual values of the settings that distinguish results of the same maps. crop_size is not among
    them: its usual value is the training's."""
    usual = {flag.name: flag.default for flag in FLAGS['maps and metrics'] if flag.recorded}
    return usual | {'seed': 0, 'precision': 'float32', 'skip_broken': False, 'fit': 'squash'}


def recorded_settings(args):
    """The settings that a result records: the flags that its script reads and that bear on the result."""
    idle = {'resize_size'} if args.get('resize_size') == args.get('crop_size') else ()  # nothing is cut off
    return {name: args[name] for name, flag in sorted(ALL_FLAGS.items())
            if flag.recorded and name in args and name not in idle}
