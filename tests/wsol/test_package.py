"""`pip install` gives the library and nothing else: what is installed, and what the library imports and touches."""
import ast
import importlib.metadata
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig

import pytest
from conftest import ROOT
from house import SCRIPTS as COMMANDS
from house import imported_modules, room_of

SCRIPTS = sorted(path.stem for path in ROOT.glob('*.py'))
ROOMS = sorted(path.parent.name for path in ROOT.glob('*/__init__.py') if path.parent.name != 'wsol')
LIBRARY = sorted(path.relative_to(ROOT) for path in (ROOT / 'wsol').rglob('*.py'))
# what `import x` is called, and what pip calls it
DEPENDENCIES = {'torch': 'torch', 'torchvision': 'torchvision', 'numpy': 'numpy', 'scipy': 'scipy',
                'cv2': 'opencv-python-headless', 'PIL': 'pillow'}
OPTIONAL = {'timm', 'safetensors'}  # imported only where they are asked for


def run(*command, cwd):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(('PYTHON', 'PIP'))}
    finished = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of what packaging could see, so that nothing is built in the checkout."""
    folder = tmp_path_factory.mktemp('source') / 'calm'
    shutil.copytree(ROOT / 'wsol', folder / 'wsol', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'README.md', 'LICENSE', *(f'{script}.py' for script in SCRIPTS)):
        shutil.copy(ROOT / name, folder)
    for room in ROOMS:
        (folder / room).mkdir()
        shutil.copy(ROOT / room / '__init__.py', folder / room)
    return folder


MODULES = ['.'.join(path.with_suffix('').parts).removesuffix('.__init__') for path in LIBRARY]


@pytest.fixture(scope='module', params=['', '--editable'], ids=['plain', 'editable'])
def installed(request, source, tmp_path_factory):
    """(python of an environment in which the copy was installed, the names that came into its site-packages).

    The environment sees torch and the rest of ours through a .pth file, which hands on no .pth files of theirs.
    """
    folder = tmp_path_factory.mktemp('environment')
    run(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder)
    python = folder / ('Scripts' if os.name == 'nt' else 'bin') / 'python'
    packages = next(folder.rglob('site-packages'))
    ours = dict.fromkeys([sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), *site.getsitepackages()])
    (packages / 'ours.pth').write_text('\n'.join(ours))
    before = {path.name for path in packages.iterdir()}
    flags = [request.param] if request.param else []
    run(sys.executable, '-m', 'pip', '--python', python, '--disable-pip-version-check', 'install', '--no-deps',
        '--no-build-isolation', '--no-index', '--quiet', *flags, source, cwd=folder)
    return python, {path.name for path in packages.iterdir()} - before


def ask(python, code, folder):
    """What code prints as JSON, run by that python in an empty folder."""
    return json.loads(run(python, '-c', code, cwd=folder).splitlines()[-1])


def test_pip_installs_the_package_wsol_and_nothing_else(installed, tmp_path):
    python, names = installed
    reported = ask(python, 'import importlib.metadata as m, json; d = m.distribution("calm"); '
                        'print(json.dumps([d.read_text("top_level.txt").split(), [str(f) for f in d.files]]))', tmp_path)
    top_level, files = reported
    assert top_level == ['wsol']
    bookkeeping = re.compile(r'calm-[\d.]+\.dist-info|__editable__.*calm.*|__pycache__')
    packages = {name for name in names if not bookkeeping.fullmatch(name)}
    listed = {file.split('/')[0] for file in files}
    assert {name for name in listed if not bookkeeping.fullmatch(name)} == packages
    assert packages == (set() if any(name.startswith('__editable__') for name in names) else {'wsol'})
    if packages:  # with all sub-packages
        assert sorted(file for file in files if file.startswith('wsol/') and file.endswith('.py')) == [
            path.as_posix() for path in LIBRARY]


def test_from_another_folder_the_library_is_there_and_the_scripts_are_not(installed, source, tmp_path):
    """A network is built where what only the scripts need is not installed."""
    python, _ = installed
    code = f'''
import importlib, importlib.util, json, sys
sys.modules.update(dict.fromkeys(['matplotlib', 'munch', 'yaml', 'tqdm']))  # None: to import one fails
import wsol
for name in {MODULES!r}:
    importlib.import_module(name)
model = wsol.build_model('resnet18', 'CALM_EM', 3, last_stage='layer1')
origins = {{}}
for name in {SCRIPTS + ROOMS!r}:
    spec = importlib.util.find_spec(name)
    origins[name] = None if spec is None else str(spec.origin or list(spec.submodule_search_locations))
print(json.dumps([wsol.__file__, type(model).__name__, sorted(wsol.METHODS), origins]))
'''
    where, head, processes, origins = ask(python, code, tmp_path)
    assert head == 'CALM_EM' and 'jointll' in processes and 'occlusion' in processes
    assert str(source) in where or 'site-packages' in where
    ours = (str(source), str(python.parent.parent), str(ROOT / 'wsol'))
    reported = {name: origin for name, origin in origins.items() if origin and origin.startswith(ours)}
    assert not reported
    assert all(origins[name] is None for name in ('config', 'data_loaders', 'dataset', 'experiment'))


def test_what_pip_is_told_to_install_is_what_the_library_imports(installed, tmp_path):
    python, _ = installed
    required = ask(python, 'import importlib.metadata as m, json; print(json.dumps(m.requires("calm")))', tmp_path)
    names = {re.match(r'[\w.-]+', line)[0].lower() for line in required}
    assert names == set(DEPENDENCIES.values())
    assert all(re.search(r'>=', line) and '==' not in line for line in required)  # ranges: it lives beside other packages
    versions = {name: importlib.metadata.version(name) for name in names}
    for line in required:
        name, least = re.match(r'([\w.-]+)\s*>=\s*([\d.]+)', line).groups()
        have = [int(part) for part in re.findall(r'\d+', versions[name])[:2]]
        assert have >= [int(part) for part in least.split('.')][:2], line  # what is tested lies within


def test_the_librarys_modules_import_their_dependencies_and_one_another_alone():
    anywhere, at_import = set(), set()
    for path in LIBRARY:
        tree = ast.parse((ROOT / path).read_text())
        anywhere |= {module.split('.')[0] for _, module, _ in imported_modules(tree, path)}
        tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        at_import |= {module.split('.')[0] for _, module, _ in imported_modules(tree, path)}
    assert anywhere - set(sys.stdlib_module_names) == {'wsol', *DEPENDENCIES, *OPTIONAL}
    assert not at_import & {'torchvision', *OPTIONAL}  # which are slow to import


def test_the_scripts_find_the_rooms_without_pythons_help():
    """`python -P` and `-I` leave the folder of the script out of sys.path."""
    for path in [*(f'{name}.py' for name in COMMANDS), 'dataset/prepare.py']:
        nodes = ast.parse((ROOT / path).read_text()).body
        adds = next(line for line, node in enumerate(nodes) if ast.unparse(node).startswith('sys.path.insert(0, str(Path(__file__)'))
        assert not any(room_of(module) for node in nodes[:adds] for _, module, _ in imported_modules(node, LIBRARY[0])), path


def test_help_imports_no_network_library():
    """Nor does the library: torch alone is slow enough. -I: see above."""
    code = (f'import runpy, sys; sys.argv = ["main.py", "--help"]\n'
            f'try: runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")\n'
            'except SystemExit as end: assert not end.code\n'
            'print([name for name in ("torchvision", "timm", "torch._dynamo", "matplotlib.pyplot") if name in sys.modules])')
    finished = subprocess.run([sys.executable, '-I', '-c', code], capture_output=True, text=True, check=True)
    assert 'usage:' in finished.stdout and finished.stdout.splitlines()[-1] == '[]'


def test_importing_the_library_changes_nothing_of_the_process(tmp_path):
    """No seeds, no threads, no defaults, no files, no words."""
    code = f'''
import json, logging, os, random, sys, warnings
import cv2, numpy, torch, PIL.Image
sys.path.insert(0, {str(ROOT)!r})
def state():
    # torch sets a variable for its compiler, and its sympy a filter: those are not the library's doing
    variables = {{name: value for name, value in os.environ.items() if not name.startswith('TORCH')}}
    filters = [line for line in map(str, warnings.filters) if 'sympy' not in line]
    return [torch.get_rng_state().tolist(), hash(random.getstate()), numpy.random.get_state()[1].tolist(),
            torch.get_num_threads(), cv2.getNumThreads(), str(torch.get_default_dtype()), str(torch.get_default_device()),
            torch.is_grad_enabled(), torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(), variables,
            os.getcwd(), os.listdir(), list(sys.path), filters, logging.getLogger().handlers == [], repr(sys.stdout),
            repr(sys.stderr), repr(sys.excepthook)]
before = state()
import wsol
print(json.dumps([before[index] == now for index, now in enumerate(state())]))
'''
    finished = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert finished.stderr == '' and len(finished.stdout.splitlines()) == 1
    assert all(json.loads(finished.stdout)), finished.stdout
