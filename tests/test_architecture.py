"""The rules of who may import whom, read from the source, so that nobody has to remember them."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import gcpo_bench
from gcpo_bench import registry

ROOT = Path(gcpo_bench.__file__).resolve().parent
SIBLINGS = ("training", "evaluators", "reports")
REGISTRIES = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def core_sources() -> list[Path]:
    """`gcpo_bench` without its command line and without the three parts that are linked into it."""
    return [path for path in sources(ROOT) if path.relative_to(ROOT).parts[0] not in {"cli", *SIBLINGS}]


def imports(path: Path, module: str) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, as an absolute name; relative ones are resolved."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def module_name(path: Path, folder: Path, prefix: str) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join([prefix, *(parts[:-1] if parts[-1] == "__init__" else parts)])


def files_of(part: str) -> list[tuple[Path, str]]:
    folder = (ROOT / part).resolve()
    return [(path, module_name(path, folder, f"gcpo_bench.{part}")) for path in sources(folder)]


def is_from(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("part", SIBLINGS)
def test_siblings_never_import_each_other(part: str) -> None:
    others = [f"gcpo_bench.{other}" for other in SIBLINGS if other != part]
    for path, module in files_of(part):
        wrong = [name for name in imports(path, module) if any(is_from(name, other) for other in others)]
        assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize("part", [*SIBLINGS, "core"])
def test_no_part_reaches_into_the_command_line(part: str) -> None:
    files = [(path, "gcpo_bench.x") for path in core_sources()] if part == "core" else files_of(part)
    for path, module in files:
        if path.name != "__main__.py":
            assert not [name for name in imports(path, module) if is_from(name, "gcpo_bench.cli")], path


def test_the_core_imports_no_torch_and_no_part() -> None:
    banned = ["torch", "transformers", *(f"gcpo_bench.{part}" for part in SIBLINGS)]
    files = core_sources()
    assert len(files) >= 10
    for path in files:
        names = imports(path, module_name(path, ROOT, "gcpo_bench"))
        assert not [name for name in names if any(is_from(name, package) for package in banned)], path


@pytest.mark.parametrize("part", ["reports", "evaluators"])
def test_torch_stays_in_the_detectors_scorers_and_generators(part: str) -> None:
    heavy = tuple(f"gcpo_bench.evaluators.{folder}." for folder in ("detectors", "scorers", "generators"))
    for path, module in files_of(part):
        if not module.startswith(heavy):
            assert not [name for name in imports(path, module) if is_from(name, "torch")], module


def test_nobody_imports_the_bare_names_of_the_parts() -> None:
    """Other packages install a top-level `training`; it would be found first on some machines."""
    files = [*core_sources(), *sources(ROOT / "cli"), *(path for part in SIBLINGS for path, _ in files_of(part))]
    for path in [*files, *sources(ROOT.parent / "tests")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not [name for name in names if name.split(".")[0] in SIBLINGS], path


@pytest.mark.parametrize(
    ("kind", "name"), [(each.kind, name) for each in REGISTRIES for name in each], ids=lambda value: str(value)
)
def test_every_registered_name_leads_to_a_definition(kind: str, name: str) -> None:
    entry = next(each for each in REGISTRIES if each.kind == kind).entries[name]
    module, _, attribute = entry.target.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"{kind} {name!r}: no module {module}"
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    imported = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    defined |= {alias.asname or alias.name for node in imported for alias in node.names}
    assert attribute in defined, f"{kind} {name!r}: {module} defines no {attribute}"
    assert entry.summary, f"{kind} {name!r} has no summary for `gcpo-bench ls`"


DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "mmcv": "mmcv-lite"}
"""Import name -> package, where the two differ."""


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: items for name, items in project["optional-dependencies"].items() if name not in ("test", "dev")}
    declared = {
        normal(re.split(r"[<>=!~;\[ ]", text)[0])
        for texts in (project["dependencies"], *extras.values())
        for text in texts
    }
    files = [*core_sources(), *sources(ROOT / "cli"), *(path for part in SIBLINGS for path, _ in files_of(part))]
    for path in files:
        roots = (
            {name.split(".")[0] for name in imports(path, "gcpo_bench.x.y")} - {"gcpo_bench"} - sys.stdlib_module_names
        )
        missing = {root for root in roots if normal(DISTRIBUTIONS.get(root, root)) not in declared}
        assert not missing, f"{path.name} imports {missing}, which pyproject.toml does not declare"


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def test_there_are_no_import_cycles() -> None:
    files = {module_name(path, ROOT, "gcpo_bench"): path for path in [*core_sources(), *sources(ROOT / "cli")]}
    files |= {module: path for part in SIBLINGS for path, module in files_of(part)}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        at_import = set(top_level_imports(path, module))
        graph[module] = {known for name in at_import for known in (name, name.rpartition(".")[0]) if known in files}
        graph[module].discard(module)
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import cycle: {' -> '.join([*trail[trail.index(module) :], module])}"
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def top_level_imports(path: Path, module: str) -> Iterator[str]:
    """What is imported when the module is; not inside functions, not for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], type_ignores=[])
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in body.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, node.module] if node.module else parents)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


HEAVY = ("torch", "transformers", "pydantic", "pandas", "numpy", "matplotlib", "rich")


def loaded_by(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after `code`."""
    probe = f"{code}\nimport sys\nprint('loaded:', *(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split()[1:])


def command(*arguments: str) -> str:
    return f"from gcpo_bench.cli.app import _guarded; assert _guarded({list(arguments)!r}, False) == 0"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert loaded_by(command(*arguments)) == set()


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "report", "sample", "ls", "show", "doctor", "pretrain", "data", "models"]
)
def test_help_of_a_command_loads_nothing_heavy(name: str) -> None:
    assert loaded_by(command(name, "--help")) <= {"pydantic"}  # with which Typer itself reads option types


@pytest.mark.parametrize(
    "arguments", [["ls", "presets"], ["ls", "methods"], ["ls", "models"], ["ls", "runs"], ["show"], ["show", "--json"]]
)
def test_listings_load_no_torch(arguments: list[str]) -> None:
    assert not loaded_by(command(*arguments)) & {"torch", "transformers", "pandas", "matplotlib"}


def test_reports_can_be_imported_without_torch() -> None:
    modules = [module for _, module in files_of("reports")]
    assert "torch" not in loaded_by("\n".join(f"import {module}" for module in modules))


def test_completing_a_method_loads_nothing_heavy() -> None:
    for function in ("complete_methods", "complete_models"):
        code = f"from gcpo_bench.cli.options import {function}; assert {function}('')"
        assert loaded_by(code) == set()
    assert "torch" not in loaded_by("from gcpo_bench.cli.options import complete_presets; assert complete_presets('s')")


def test_help_loads_no_package_but_those_of_the_command_line() -> None:
    """What makes it answer in a blink; a number of seconds would be the machine's."""
    needs = [re.split(r"[^\w-]", need)[0].replace("-", "_") for need in metadata.requires("typer") or []]
    probe = f"import sys\nbefore = set(sys.modules)\n{command('--help')}\nprint('loaded:', *set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in result.stdout.splitlines()[-1].split()[1:]}
    assert packages - sys.stdlib_module_names - {"gcpo_bench", "typer", "xxhash", *needs} == set()
