"""From a preset, `-o` overrides and flags to one RunConfig, and where each of its values came from.

Order: defaults < the method's settings < preset < `-o dotted.key=value` < named flags.
All problems are reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gcpo_bench.config import RunConfig
from gcpo_bench.datasets import OWN_PROMPTS
from gcpo_bench.errors import ConfigError, did_you_mean
from gcpo_bench.files import MAX_YAML_BYTES, parse_yaml
from gcpo_bench.methods import METHODS
from gcpo_bench.registry import BENCHMARKS, POLICIES, PROMPT_SETS, REWARDS, SELECTORS, WEIGHTINGS

DEFAULT_PRESET = "scenes-gcpo"
ABSENT = "(absent)"
"""What `config_diff` shows for a key that only the other configuration has."""

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Preset:
    name: str
    description: str
    path: Path


@dataclass(frozen=True, slots=True)
class Resolved:
    config: RunConfig
    origin: Mapping[str, str]
    """Dotted key -> `default`, `method gcpo`, `preset scenes-gcpo`, `-o`, `--seed`, ..."""

    def rows(self) -> list[tuple[str, Any, str]]:
        """(dotted key, value, origin) in the order of the configuration."""
        return [(key, value, self.origin[key]) for key, value in flatten(self.config).items()]


class _Problems:
    """What is wrong and how to mend it, gathered so that one run of the program shows everything."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.hints: list[str] = []

    def add(self, message: str, hint: str) -> None:
        if message not in self.messages:
            self.messages.append(message)
        if hint not in self.hints:
            self.hints.append(hint)

    def raise_if_any(self) -> None:
        if self.messages:
            count = f"{len(self.messages)} problems: " if len(self.messages) > 1 else ""
            raise ConfigError(count + "; ".join(self.messages), hint="; ".join(self.hints))


class _Draft:
    """Nested plain values on their way to a RunConfig; remembers who set each."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values = values
        self.default = source
        self.sources: dict[KeyPath, str] = {}

    def set(self, path: KeyPath, value: Any, source: str) -> None:
        """Put `value` at `path`: a mapping onto a mapping is merged, anything else replaces what was there."""
        old = _get(self.values, path) if path else self.values
        if isinstance(value, dict) and isinstance(old, dict):
            for key, item in value.items():
                self.set((*path, key), item, source)
            return
        self.sources = {known: where for known, where in self.sources.items() if known[: len(path)] != path}
        self.sources[path] = source
        container: Any = self.values
        for key in path[:-1]:
            container = container.setdefault(key, {}) if isinstance(container, dict) else container[key]
        container[path[-1]] = value

    def source(self, path: KeyPath) -> str:
        """Who set the value at `path`, itself or as part of something larger."""
        parents = (path[:length] for length in range(len(path), 0, -1))
        return next((self.sources[parent] for parent in parents if parent in self.sources), self.default)

    def locate(self, dotted: str) -> KeyPath:
        """The path a dotted key means; list items go by index or by their `name`. Raises ValueError with the reason."""
        path: KeyPath = ()
        for part in dotted.split("."):
            here = _get(self.values, path) if path else self.values
            if isinstance(here, list):
                path = (*path, _item(here, part, display(path, self.values)))
            elif isinstance(here, dict) or here is None:
                path = (*path, part)
            else:
                raise ValueError(f"{display(path, self.values)} is a single value and has no key {part!r}")
        return path


def _get(values: Any, path: KeyPath) -> Any:
    for key in path:
        if isinstance(values, dict):
            values = values.get(key)
        elif isinstance(values, (list, tuple)) and isinstance(key, int) and key < len(values):
            values = values[key]
        else:
            return None
    return values


def _item(items: list[Any], part: str, where: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    known = [str(name) for name in names if name] or [str(index) for index in range(len(items))]
    raise ValueError(f"{where} has no item {part!r}; {did_you_mean(part, known)}")


def display(path: KeyPath, values: Any) -> str:
    """The dotted key of a path, with list items by name where the name is unique, else by index."""
    parts = []
    for length, key in enumerate(path):
        part = str(key)
        if isinstance(key, int):
            siblings = _get(values, path[:length])
            names = [item.get("name") for item in siblings or () if isinstance(item, dict)]
            name = _get(values, (*path[: length + 1], "name"))
            if isinstance(name, str) and names.count(name) == 1:
                part = name
        parts.append(part)
    return ".".join(parts)


def _leaves(values: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Single values with their paths; a list of plain values counts as one, and so does an empty mapping."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(values, list) and values and isinstance(values[0], dict):
        for index, value in enumerate(values):
            yield from _leaves(value, (*path, index))
    else:
        yield path, values


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value, in the order of the configuration."""
    values = config.model_dump(mode="json")
    return {display(path, values): value for path, value in _leaves(values)}


def config_diff(first: RunConfig, second: RunConfig) -> list[tuple[str, Any, Any]]:
    """(dotted key, first value, second value) of all that differ."""
    a, b = flatten(first), flatten(second)
    pairs = ((key, a.get(key, ABSENT), b.get(key, ABSENT)) for key in [*a, *(key for key in b if key not in a)])
    return [(key, old, new) for key, old, new in pairs if old != new]


def list_presets() -> list[Preset]:
    """The presets that come with the package, by name."""
    folder = Path(str(resources.files("gcpo_bench.presets")))
    paths = sorted(folder.glob("*.yaml"))
    return [Preset(path.stem, str(_read_yaml(path).get("description", "")), path) for path in paths]


def resolve(
    preset: str | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    base: RunConfig | None = None,
) -> Resolved:
    """The configuration that a command line means.

    Args:
        preset: name of a shipped preset or path of a .yaml file; None is `scenes-gcpo`.
        overrides: `dotted.key=value`; values are YAML, list items go by index or name.
        flags: `method`, `model`, `ratio`, `seed`, `num_steps`; None counts as not given.
        base: start from this configuration instead of defaults and preset (a resumed run); only where `preset` is None.
    Raises:
        ConfigError: naming every problem with its dotted key and the file or option it came from.
    """
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    problems = _Problems()
    start = base if base is not None and preset is None else None
    draft = _Draft((start or RunConfig()).model_dump(), "run" if start else "default")
    draft.values = _lists(draft.values)
    layers = [] if start else _preset_layers(preset or DEFAULT_PRESET, problems)
    pairs = _parse_overrides(overrides, problems)

    method, source = _chosen_method(given, pairs, layers, None if start else RunConfig().method)
    if method is not None:
        _expand_method(draft, method, source, problems)
    for where, values in layers:
        for key, value in values.items():
            if key != "method":
                draft.set((key,), _lists(value), where)
    for key, value in pairs:
        if key != "method":
            _override(draft, key, value, problems)
    _apply_flags(draft, given, problems)

    config = _validate(draft, problems)
    problems.raise_if_any()
    assert config is not None
    values = config.model_dump(mode="json")
    return Resolved(config, {display(path, values): draft.source(path) for path, _ in _leaves(values)})


def _lists(values: Any) -> Any:
    """A copy with tuples as lists, so that items can be replaced."""
    if isinstance(values, dict):
        return {key: _lists(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_lists(value) for value in values]
    return values


def _preset_layers(preset: str, problems: _Problems) -> list[tuple[str, dict[str, Any]]]:
    """(origin, values) of the preset, its base before it."""
    try:
        path = _preset_path(preset, Path())
        values = _read_yaml(path)
        layers = [(f"preset {preset}", values)]
        if "base" in values:
            base_path = _preset_path(str(values["base"]), path.parent)
            base = _read_yaml(base_path)
            if "base" in base:
                raise ConfigError(
                    f"{base_path}: a base cannot have a base itself", hint="name one preset without `base:`"
                )
            layers.insert(0, (f"preset {values['base']}", base))
    except ConfigError as error:
        problems.add(str(error), error.hint)
        return []
    meta = {"base", "description"}
    return [(where, {key: value for key, value in layer.items() if key not in meta}) for where, layer in layers]


def _preset_path(preset: str, folder: Path) -> Path:
    if preset.endswith((".yaml", ".yml")):
        return folder / preset
    known = {path.stem: path for path in Path(str(resources.files("gcpo_bench.presets"))).glob("*.yaml")}
    if preset not in known:
        raise ConfigError(
            f"unknown preset {preset!r}", hint=f"{did_you_mean(preset, known)}, or a path to a .yaml file"
        )
    return known[preset]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ValueError(f"it is larger than {MAX_YAML_BYTES:,} bytes")
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"preset {path}: {error.strerror}", hint="check the path; gcpo-bench ls presets") from error
    except ValueError as error:
        raise ConfigError(f"preset {path}: {error}", hint="see a shipped one with: gcpo-bench ls presets") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"preset {path} is no mapping of keys to values", hint="write it as `key: value` lines")
    return values


def _parse_overrides(overrides: Sequence[str], problems: _Problems) -> list[tuple[str, Any]]:
    pairs = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.add(f"-o {text!r} is not key=value", "write it as -o loss.beta=0.1")
            continue
        try:
            pairs.append((key.strip(), parse_yaml(value)))
        except ValueError as error:
            problems.add(f"-o {key}: {value!r} cannot be read: {error}", "quote it as YAML: numbers, words, [lists]")
    return pairs


def _chosen_method(
    given: Mapping[str, Any],
    pairs: list[tuple[str, Any]],
    layers: list[tuple[str, dict[str, Any]]],
    default: str | None,
) -> tuple[Any, str]:
    """The last word on the method, and who had it; None leaves the starting values as they are."""
    choices = [(default, "default")]
    choices += [(values["method"], where) for where, values in layers if "method" in values]
    choices += [(value, "-o") for key, value in pairs if key == "method"]
    choices += [(given["method"], "--method")] if "method" in given else []
    return choices[-1]


def _expand_method(draft: _Draft, method: Any, source: str, problems: _Problems) -> None:
    if not isinstance(method, str) or method not in METHODS:
        where = "" if source in {"default", "--method"} else f" ({source})"
        problems.add(f"unknown method {str(method)!r}{where}", did_you_mean(str(method), METHODS))
        return
    defaults = _lists(RunConfig().model_dump())
    for section, values in METHODS[method].settings.items():
        draft.values[section] = defaults[section]  # what another method set here goes
        draft.set((section,), _lists(values), f"method {method}")
    draft.set(("method",), method, source)


def _override(draft: _Draft, key: str, value: Any, problems: _Problems) -> None:
    try:
        draft.set(draft.locate(key), value, "-o")
    except ValueError as error:
        problems.add(f"-o {key}: {error}", "see keys and values with: gcpo-bench show")


def _apply_flags(draft: _Draft, given: Mapping[str, Any], problems: _Problems) -> None:
    for flag, path in (("model", ("policy", "name")), ("seed", ("seed",)), ("num_steps", ("num_steps",))):
        if flag in given:
            draft.set(path, given[flag], f"--{flag.replace('_', '-')}")
    if "ratio" not in given:
        return
    selectors = _get(draft.values, ("selection", "selectors"))
    items = list(enumerate(selectors)) if isinstance(selectors, list) else []
    indices = [index for index, item in items if isinstance(item, dict) and item.get("ratio") is not None]
    if not indices:
        problems.add(
            f"--ratio {given['ratio']:g}: no selector of method {draft.values.get('method')} has a ratio",
            "leave --ratio out, or choose a --method that selects, such as gcpo",
        )
    for index in indices:
        draft.set(("selection", "selectors", index, "ratio"), given["ratio"], "--ratio")


def _validate(draft: _Draft, problems: _Problems) -> RunConfig | None:
    _check_names(draft, problems)
    _check_options(draft, problems)
    try:
        return RunConfig.model_validate(draft.values)
    except ValidationError as error:
        schema = RunConfig.model_json_schema()
        for item in error.errors():
            _explain(draft, item, schema, problems)
        return None


def _check_names(draft: _Draft, problems: _Problems) -> None:
    """Every name that a registry must know, looked up without loading what it names."""
    known: list[tuple[str, KeyPath, Any]] = [
        ("model", ("policy", "name"), POLICIES),
        ("weighting", ("weighting", "name"), WEIGHTINGS),
        ("benchmark", ("evaluation", "benchmark"), BENCHMARKS),
        ("prompt set", ("data", "prompts"), PROMPT_SETS),
        ("prompt set", ("logging", "tracked_prompt_set"), PROMPT_SETS),
    ]
    lists: list[tuple[str, KeyPath, Any]] = [
        ("selector", ("selection", "selectors"), SELECTORS),
        ("reward", ("rewards",), REWARDS),
    ]
    for kind, path, names in lists:
        items = _get(draft.values, path)
        count = len(items) if isinstance(items, list) else 0
        known += [(kind, (*path, index, "name"), names) for index in range(count)]
    for kind, path, names in known:
        name = _get(draft.values, path)
        if isinstance(name, str) and name not in names:
            where = _label(draft, path)
            is_file = kind == "prompt set" and Path(name).is_file()
            problems.add(f"unknown {kind} {name!r} ({where})", OWN_PROMPTS if is_file else did_you_mean(name, names))


def _check_options(draft: _Draft, problems: _Problems) -> None:
    """Selector options can be anything, so their schema does not refuse what no file could hold."""
    for path, value in _leaves(draft.values):
        items = value if isinstance(value, list) else [value]
        if "options" in path and any(isinstance(item, float) and not math.isfinite(item) for item in items):
            problems.add(f"{_label(draft, path)} is {value}: must be finite", "write a number such as 0.5")


def _label(draft: _Draft, path: KeyPath) -> str:
    """What a user has to look at to mend the value: the flag, or the key and where it was set."""
    source = draft.source(path)
    if source.startswith("--"):
        return source
    # a list item's own name may be what is wrong, so only the part before it goes by name
    key = ".".join(map(str, path)) if path[-1] == "name" else display(path, draft.values)
    return f"-o {key}" if source == "-o" else f"{key} in {source}"


def _explain(draft: _Draft, item: Any, schema: dict[str, Any], problems: _Problems) -> None:
    path: KeyPath = item["loc"]
    value, kind = item["input"], item["type"]
    if kind == "too_short" and len(value) >= item["ctx"]["min_length"]:
        return  # pydantic counts only the items that are right; the wrong ones have their own line
    if kind == "extra_forbidden":
        # an unknown section was made by the override of a key in it
        setter = next((known for known in draft.sources if known[: len(path)] == path), path)
        siblings = _node(schema, path[:-1]).get("properties", {})
        problems.add(f"unknown key {_label(draft, setter)}", did_you_mean(str(path[-1]), siblings))
        return
    shown = "missing" if kind == "missing" else "empty" if value is None else repr(value)
    if len(shown) > 80:
        shown = f"{shown[:77]}..."
    allowed = _allowed(_node(schema, path))
    problems.add(f"{_label(draft, path)} is {shown}: must be {allowed}", "see keys and values with: gcpo-bench show")


def _node(schema: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    """The part of a JSON schema that describes the value at `path`."""
    node = schema
    for key in path:
        if isinstance(key, str):
            node = node.get("properties", {}).get(key, {})
        else:
            node = node["prefixItems"][key] if "prefixItems" in node else node.get("items", {})
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node


def _allowed(node: dict[str, Any]) -> str:
    """A JSON schema of one value, in words."""
    if "anyOf" in node:
        return " or ".join(_allowed(option) for option in node["anyOf"] if option.get("type") != "null")
    if "enum" in node:
        return " or ".join(map(repr, node["enum"]))
    nouns = {
        "number": "a finite number",
        "integer": "a whole number",
        "string": "a word",
        "boolean": "true or false",
        "array": "a list",
        "object": "a mapping of keys to values",
    }
    limits = (
        ("exclusiveMinimum", "above {}"),
        ("minimum", "at least {}"),
        ("exclusiveMaximum", "below {}"),
        ("maximum", "at most {}"),
        ("minItems", "of at least {}"),
    )
    # a bound of 1.0 is said as 1, which a schema has in some versions of pydantic
    bounds = [words.format(int(b) if (b := node[limit]) == int(b) else b) for limit, words in limits if limit in node]
    return " ".join([nouns.get(node.get("type", ""), "valid"), " and ".join(bounds)]).strip()
