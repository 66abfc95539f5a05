"""Check the structure of the code: where imports may point, and how long files and functions may be.

`make lint` runs it. It reads the source files as text and imports none of them.

    python tests/house.py
"""
import ast
import graphlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ('main', 'eval_pixel_perturb', 'eval_cue_location', 'eval_wsol', 'inference', 'compare', 'export')
# A room may import the rooms before it. The scripts share one place, and never import one another.
ROOMS = ('wsol', 'runtime', 'util', 'dataset', 'data_loaders', 'config', 'experiment', 'evaluation', 'reports', 'scripts',
         'research')
LIBRARIES = {'torch', 'torchvision', 'timm', 'safetensors', 'numpy', 'scipy', 'cv2', 'PIL'}  # what wsol may import beyond Python's own
FILE, FUNCTION = 350, 40          # lines
ROOT_FILES, ROOT_FOLDERS = 10, 11


def product_files(root):
    """The Python files of the product, relative to the root."""
    folders = [room for room in ROOMS if (root / room).is_dir()]
    paths = [*root.glob('*.py'), *(path for folder in folders for path in (root / folder).rglob('*.py'))]
    return sorted(path.relative_to(root) for path in paths)


def module_of(path):
    """wsol/metrics/__init__.py -> wsol.metrics"""
    return '.'.join(path.with_suffix('').parts).removesuffix('.__init__')


def room_of(module):
    """The room of a module; None for modules that are not ours."""
    first = module.split('.')[0]
    return 'scripts' if first in SCRIPTS else first if first in ROOMS else None


def imported_modules(tree, path):
    """[(line, package, names)] of every import in a file, those inside functions too: `from a import b, c` gives a and
    (b, c), which may be modules of a; `import a` gives a and ()."""
    modules_read = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules_read += [(node.lineno, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.parts[:len(path.parts) - node.level] if node.level else ()
            base = '.'.join([*package, *([node.module] if node.module else [])])
            modules_read.append((node.lineno, base, tuple(alias.name for alias in node.names)))
    return modules_read


def wrong_imports(path, imports):
    """The imports of a file that point to a later room, to another script, or out of wsol."""
    room = room_of(module_of(path))
    for line, module, _ in imports:
        target = room_of(module)
        if target is None:
            foreign = module.split('.')[0]
            if room == 'wsol' and foreign not in LIBRARIES | sys.stdlib_module_names:
                yield f'{path}:{line}: wsol imports {foreign}; it may import {", ".join(sorted(LIBRARIES))}'
        elif target != room and ROOMS.index(target) > ROOMS.index(room):
            yield f'{path}:{line}: {room} imports {module}; imports point the other way ({" <- ".join(ROOMS)})'
        elif room == 'scripts' and module.split('.')[0] in SCRIPTS:
            yield f'{path}:{line}: the script {path} imports the script {module}'


def import_circle(imports_of):
    """The modules of an import circle, or None. imports_of: {module: modules that it imports}."""
    graph = {module: {name for name in names if name in imports_of and name != module
                      and not module.startswith(f'{name}.')}  # a submodule may name its own package
             for module, names in imports_of.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def too_long(path, text, tree):
    """What is longer than it may be: the file, and its functions."""
    lines = text.count('\n')
    if lines > FILE:
        yield f'{path}: {lines} lines; a file may have {FILE}'
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION:
                yield f'{path}:{node.lineno}: {node.name} has {length} lines; a function may have {FUNCTION}'


def crowded_root(root):
    """What the root holds too many of: Python files, and folders that are not hidden or ignored."""
    files = sorted(path.name for path in root.glob('*.py'))
    kept = {'metadata', 'checkpoints', 'docs', 'tests', *ROOMS}
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name in kept)
    if len(files) > ROOT_FILES:
        yield f'the root has {len(files)} Python files; it may have {ROOT_FILES}: {", ".join(files)}'
    if len(folders) > ROOT_FOLDERS:
        yield f'the root has {len(folders)} folders; it may have {ROOT_FOLDERS}: {", ".join(folders)}'


def problems(root=ROOT):
    """Every breach of the rules, a line each."""
    imports_of = {}
    yield from crowded_root(root)
    for path in product_files(root):
        text = (root / path).read_text()
        tree = ast.parse(text)
        imports = imported_modules(tree, path)
        imports_of[module_of(path)] = {name for _, module, names in imports
                                       for name in (module, *(f'{module}.{name}' for name in names))}
        yield from wrong_imports(path, imports)
        yield from too_long(path, text, tree)
    circle = import_circle(imports_of)
    if circle:
        yield f'import circle: {" -> ".join(circle)}'


if __name__ == '__main__':
    lines = list(problems())
    print('\n'.join(lines) or 'house: every import points one way, and no file or function is too long')
    sys.exit(bool(lines))
