"""What numbers depend on beside settings and weights: code, parts from elsewhere, and prompts that no code fixes.

Digests are of files as they are on disk now, so an edit makes another address. Code is read for them, not imported.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import json
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import xxhash

from gcpo_bench import outside, prompt_sets
from gcpo_bench.config import RunConfig
from gcpo_bench.datasets import Prompt, prompts_of
from gcpo_bench.errors import CorruptDataError, PrerequisiteError
from gcpo_bench.registry import BENCHMARKS, POLICIES, PROMPT_SETS, REWARDS, SELECTORS, WEIGHTINGS, Registry

JUDGING = ("evaluators", "scenes.py", "datasets.py")
"""Sources that decide what an image scores."""
CODE = ("training", *JUDGING, "streams.py", "geneval_prompts.py", "prompt_files.py", "prompt_sets.py", "catalogue.py")
"""Sources that decide a run's numbers. Documentation, command line and reports are none of them."""
PACKAGE = "gcpo_bench"


def code_digest(parts: Sequence[str] = CODE) -> str:
    """Of our own sources, as they are on disk now."""
    root = Path(__file__).resolve().parent
    digest = xxhash.xxh3_64()
    for part in parts:
        path = (root / part).resolve()
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(source.relative_to(path.parent).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def run_parts(config: RunConfig) -> dict[str, str]:
    """Part by part that a run is made of, what is behind its name; see `part`.

    Raises ConfigError for an outside name that is no part, before the sources of its package are read.
    """
    for name, kind in outside.parts_of(config).items():
        outside.require_declared(kind, name)
    found = {f"{registry.kind} {name}": part(registry, name) for registry, name in _training(config)}
    return found | evaluation_parts(config) | _training_prompts(config.data.prompts)


def evaluation_parts(config: RunConfig) -> dict[str, str]:
    """As `run_parts`, of what evaluating a policy takes."""
    named = [(POLICIES, config.policy.name), (BENCHMARKS, config.evaluation.benchmark)]
    found = {f"{registry.kind} {name}": part(registry, name) for registry, name in named}
    return found | _evaluation_prompts(config.evaluation.benchmark, config.policy.name)


def outside_sources(config: RunConfig) -> dict[str, str]:
    """Of each part from elsewhere that trains a run, by name, the digest of its sources."""
    named = [*_training(config), (POLICIES, config.policy.name)]
    return {name: source for registry, name in named if (source := outside_source(registry, name))}


def _training(config: RunConfig) -> list[tuple[Registry, str]]:
    return [
        (PROMPT_SETS, config.data.prompts),
        (WEIGHTINGS, config.weighting.name),
        *((SELECTORS, item.name) for item in config.selection.selectors),
        *((REWARDS, item.name) for item in config.rewards),
    ]


def part(registry: Registry, name: str) -> str:
    """What a name stands for: `module:attribute`, and the digest of the sources where they are not ours."""
    target = registry.entries[name].target if name in registry.entries else name
    return " ".join(filter(None, (target, outside_source(registry, name))))


def outside_source(registry: Registry, name: str) -> str:
    """Digest of the sources of a part from elsewhere; empty for one of ours, and where there is no such module."""
    target = registry.entries[name].target if name in registry.entries else name
    module, colon, _ = target.partition(":")
    return source_digest(module) if colon and not _is_in(module, PACKAGE) else ""


# ---------------------------------------------------------------- prompts


def _training_prompts(name: str) -> dict[str, str]:
    if name in PROMPT_SETS.entries:
        return {}  # made by our code, or of a published file whose SHA-256 stands there
    return {f"prompts of {name}": _prompts(partial(prompts_of, name))}


def _evaluation_prompts(name: str, world: str) -> dict[str, str]:
    published = prompt_sets.SETS.get(name)
    if name in BENCHMARKS.entries and (published is None or published.sha256):
        return {}
    read = BENCHMARKS.make(name, world=world).prompts if published is None else partial(prompt_sets.load, name)
    return {f"prompts of {name}": _prompts(read)}


def _prompts(read: Callable[[], Sequence[Prompt]]) -> str:
    """Their digest; "missing" where they are not on this machine."""
    try:
        return prompts_digest(read())
    except (PrerequisiteError, CorruptDataError):
        return "missing"


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over ids, texts and metadata, in order."""
    return json_digest([[prompt.id, prompt.text, prompt.metadata] for prompt in prompts])


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


# ---------------------------------------------------------------- sources from elsewhere


def source_digest(module: str) -> str:
    """Of a module, all modules of its package, and whatever these import that is neither installed nor ours.

    Empty where there is no such module.
    """
    top = module.partition(".")[0]
    sources: dict[str, bytes] = {}
    waiting, followed = [module], set[str]()
    while waiting:
        name = waiting.pop()
        if not followed.isdisjoint(_with_parents(name)):  # a package's files are listed once, not for each import of it
            continue
        found, modules = _modules(name, top)
        followed.add(found)
        for each, path in modules:
            sources[each] = path.read_bytes()
            waiting += _imported(each, sources[each], path.name == "__init__.py") if path.suffix == ".py" else ()
    digest = xxhash.xxh3_64()
    for name in sorted(sources):
        digest.update(name.encode() + b"\0" + sources[name])
    return digest.hexdigest() if sources else ""


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _modules(name: str, top: str) -> tuple[str, list[tuple[str, Path]]]:
    """What a name is in, a module or a package, and its modules: none of what is installed, but for that of `top`."""
    root = name.partition(".")[0]
    if root == PACKAGE or root in sys.stdlib_module_names:
        return root, []
    spec = _spec(root)
    while spec is not None:
        if root != top and _is_installed(spec):
            return root, []
        folders = list(spec.submodule_search_locations or ())
        if spec.origin is not None and folders:  # a package: whatever it registers or loads by name counts too
            return spec.name, list(_package(spec.name, Path(spec.origin).parent))
        if spec.origin is not None:
            return spec.name, [(spec.name, Path(spec.origin))]
        rest = name.removeprefix(f"{spec.name}.")  # a plain folder of modules
        if rest == name:
            return "", []
        spec = importlib.machinery.PathFinder.find_spec(f"{spec.name}.{rest.partition('.')[0]}", folders)
    return name, []


def _package(name: str, folder: Path) -> Iterator[tuple[str, Path]]:
    suffixes = {".py", *importlib.machinery.EXTENSION_SUFFIXES}
    for path in sorted(folder.rglob("*")):
        if path.suffix in suffixes and path.is_file():
            inside = path.relative_to(folder).with_suffix("").parts
            yield ".".join([name, *(inside[:-1] if inside[-1] == "__init__" else inside)]), path


def _spec(root: str) -> importlib.machinery.ModuleSpec | None:
    try:
        spec = importlib.util.find_spec(root)  # of a name without a dot: nothing is imported
    except ValueError:  # a module that was made by hand
        return None
    has_file = spec is not None and (spec.origin is None or Path(spec.origin).is_file())
    return spec if has_file else None


def _is_installed(spec: importlib.machinery.ModuleSpec) -> bool:
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return any(Path(place).resolve().is_relative_to(root) for place in places for root in _installations())


@cache
def _installations() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in names})


@lru_cache(maxsize=1024)
def _imported(module: str, source: bytes, is_package: bool) -> tuple[str, ...]:
    """Every module that a source imports, anywhere in it, as an absolute name."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # importing it says so
        return ()
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*parents, node.module] if node.module else parents)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(dict.fromkeys(filter(None, names)))


def _is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
