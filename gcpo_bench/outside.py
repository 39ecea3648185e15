"""Parts from outside the package, named `"module:attribute"`: when such a name is followed.

To follow it is to run the code of a module. So three things are asked for, each before what it protects:

1. *Somebody here named it*: on the command line, in a preset or plan that was given, or by `--trust`. Names that only a
   run's folder holds, which may have been sent, are not followed.
2. *The module says that it holds parts*: its file has the word `gcpo_bench_part`. This is read before anything is
   imported, so that no other module is run because of a name. Python's own modules are none.
3. *The object says what it is*: its attribute `gcpo_bench_part` is the kind that is asked for. Looked at before it is
   called.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

from gcpo_bench.errors import ConfigError, TrustError

if TYPE_CHECKING:
    from gcpo_bench.config import RunConfig

DECLARATION = "gcpo_bench_part"
"""Attribute of an outside part: its kind, such as "selector"."""
TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

_named: set[str] = set()
"""The names that somebody here gave, in this process."""


def is_outside(name: str) -> bool:
    return ":" in name


def allow(names: Iterable[str]) -> None:
    """Follow these names from now on: somebody here gave them, or trusts who did. Others are left as they are."""
    _named.update(name for name in names if is_outside(name))


def parts_of(config: RunConfig) -> Mapping[str, str]:
    """Name -> kind of the outside parts that a configuration names."""
    return {name: kind for kind, name in _names(config) if is_outside(name)}


def _names(config: RunConfig) -> Iterator[tuple[str, str]]:
    yield "model", config.policy.name
    yield "prompt set", config.data.prompts
    yield from (("reward", item.name) for item in config.rewards)
    yield from (("selector", item.name) for item in config.selection.selectors)
    yield "weighting", config.weighting.name
    yield "benchmark", config.evaluation.benchmark
    yield "prompt set", config.logging.tracked_prompt_set


def refused(config: RunConfig) -> Mapping[str, str]:
    """Name -> kind of those that would not be followed, because nobody here gave them."""
    return {name: kind for name, kind in parts_of(config).items() if name not in _named}


def require_named(config: RunConfig) -> None:
    """Raises TrustError for the outside parts of a configuration that nobody here gave, all at once."""
    if missing := refused(config):
        raise _untrusted(missing)


def _untrusted(names: Mapping[str, str]) -> TrustError:
    listed = ", ".join(f"{kind} {name!r}" for name, kind in names.items())
    return TrustError(
        f"{listed}: code that a folder names and you did not",
        hint="look at what it does; --trust runs it. See docs/security.md",
    )


def require_declared(kind: str, name: str) -> None:
    """Raises ConfigError for a name of no declared part, as far as that is seen without importing anything."""
    if not TARGET.fullmatch(name):
        raise ConfigError(f"{kind} {name!r} is no name of a part", hint="write it as 'module:attribute'")
    module_name = name.partition(":")[0]
    if module_name in sys.modules:
        _declared(kind, name, sys.modules[module_name])
    elif DECLARATION not in _source(kind, name, module_name):
        raise _undeclared(kind, name)


def load(kind: str, name: str) -> Any:
    """The object behind an outside name, as yet uncalled.

    Raises:
        TrustError: nobody here gave this name.
        ConfigError: there is no such module or attribute, it is not declared as a part of this kind, or its module
            raises when it is imported.
    """
    if name not in _named:
        raise _untrusted({name: kind})
    require_declared(kind, name)
    return _declared(kind, name, _imported(kind, name, name.partition(":")[0]))


def _declared(kind: str, name: str, module: Any) -> Any:
    module_name, _, attribute = name.partition(":")
    if not hasattr(module, attribute):
        raise ConfigError(f"{kind} {name!r}: {module_name} has no {attribute!r}", hint="write it as 'module:attribute'")
    found = getattr(module, attribute)
    if getattr(found, DECLARATION, None) != kind:
        raise _undeclared(kind, name)
    return found


def _undeclared(kind: str, name: str) -> ConfigError:
    module_name, _, attribute = name.partition(":")
    return ConfigError(
        f"{kind} {name!r}: {module_name} does not declare it as a {kind}",
        hint=f'if it is one, add this line below it in the file of {module_name}: {attribute}.{DECLARATION} = "{kind}"',
    )


def _source(kind: str, name: str, module_name: str) -> str:
    """The text of a module that was not imported, nor anything above it. Raises ConfigError where there is none."""
    first, *deeper = module_name.split(".")
    if first in sys.stdlib_module_names:
        raise _undeclared(kind, name)
    found = (finder.find_spec(first, None) for finder in sys.meta_path)
    spec = next((spec for spec in found if spec is not None), None)
    for part in deeper:
        spec = spec and _inside(spec, part)
    if spec is None:
        raise ConfigError(
            f"{kind} {name!r}: no module {module_name!r}",
            hint="check the spelling; a module of your own must be importable: PYTHONPATH=. gcpo-bench ...",
        )
    try:
        return getattr(spec.loader, "get_source", lambda _: "")(module_name) or ""
    except (ImportError, OSError, SyntaxError, UnicodeError) as error:
        raise ConfigError(f"{kind} {name!r}: {module_name} cannot be read: {error}", hint="mend its file") from error


def _inside(package: ModuleSpec, part: str) -> ModuleSpec | None:
    """A module of a package, looked for as importlib does, which would import the package first."""
    name = f"{package.name}.{part}"
    importers = (pkgutil.get_importer(folder) for folder in package.submodule_search_locations or ())
    found = [spec for importer in importers if importer and (spec := importer.find_spec(name))]
    if spec := next((spec for spec in found if spec.loader), None):
        return spec
    folders = [folder for spec in found for folder in spec.submodule_search_locations or ()]
    if not folders:
        return None
    spec = ModuleSpec(name, None, is_package=True)  # folders without a file of their own: a namespace
    spec.submodule_search_locations = folders
    return spec


def _imported(kind: str, name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            raise  # a package that the module needs is missing, which is told as that
        raise ConfigError(f"{kind} {name!r}: {error}", hint="mend its file; --debug shows where") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{kind} {name!r}: importing {module_name} raises {type(error).__name__}: {error}",
            hint="mend its file; --debug shows where",
        ) from error
