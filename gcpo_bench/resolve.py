"""From a preset, `-o` overrides and flags to one RunConfig, and where each of its values came from.

Order: defaults < the method's settings < preset < `-o dotted.key=value` < named flags. A flag that contradicts an
override is refused, and so is an override that nothing would read. All problems are reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gcpo_bench import outside
from gcpo_bench.config import RunConfig
from gcpo_bench.datasets import OWN_PROMPTS
from gcpo_bench.draft import Draft, KeyPath, display, get, leaves
from gcpo_bench.errors import ConfigError, did_you_mean
from gcpo_bench.files import inline_yaml, parse_yaml, read_yaml
from gcpo_bench.idle import Idle, idle
from gcpo_bench.methods import METHODS
from gcpo_bench.registry import BENCHMARKS, POLICIES, PROMPT_SETS, REWARDS, SELECTORS, WEIGHTINGS
from gcpo_bench.schema import allowed, node_at

DEFAULT_PRESET = "scenes-gcpo"
OVERRIDE = "-o"
SHARED = "-o for all"
"""Origin of the overrides that several configurations share; some of them may have no use for one."""
ABSENT = "(absent)"
"""What `config_diff` shows for a key that only the other configuration has."""

RUN = "run"
"""Origin of what nobody here said: a run's folder did."""


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
    notes: tuple[str, ...] = ()
    """What was asked for and changes nothing, a line each."""
    idle: tuple[Idle, ...] = ()
    """Those of the shared overrides that cannot act here."""

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


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value, in the order of the configuration."""
    values = config.model_dump(mode="json")
    return {display(path, values): value for path, value in leaves(values)}


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
    shared: Sequence[str] = (),
    reads: Sequence[str] = ("",),
) -> Resolved:
    """The configuration that a command line means.

    Args:
        preset: name of a shipped preset or path of a .yaml file; None is `scenes-gcpo`.
        overrides: `dotted.key=value`; values are YAML, list items go by index or name.
        flags: `method`, `model`, `ratio`, `seed`, `num_steps`; None counts as not given.
        base: start from this configuration instead of defaults and preset (a resumed run); only where `preset` is None.
        shared: overrides of several configurations, before `overrides`; of these one may be of no use to some.
        reads: how the dotted keys begin that the caller makes use of; others are refused as overrides.
    Raises:
        ConfigError: naming every problem with its dotted key and the file or option it came from.
    """
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    problems = _Problems()
    start = base if base is not None and preset is None else None
    draft = Draft((start or RunConfig()).model_dump(), RUN if start else "default")
    draft.values = _lists(draft.values)
    layers = [] if start else _preset_layers(preset or DEFAULT_PRESET, problems)
    pairs = [(*pair, SHARED) for pair in _parse_overrides(shared, problems)]
    pairs += [(*pair, OVERRIDE) for pair in _parse_overrides(overrides, problems)]
    _refuse_unread(pairs, reads, problems)

    method, source = _chosen_method(given, pairs, layers, None if start else RunConfig().method)
    if method is not None:
        _expand_method(draft, method, source, _chosen_model(draft, given, pairs, layers), problems)
    for where, values in layers:
        for key, value in values.items():
            if key != "method":
                draft.set((key,), _lists(value), where)
    for key, value, where in pairs:
        if key == "method":
            draft.set(("method",), value, where)  # the last word on it was had above
        else:
            _override(draft, key, value, where, problems)
    _apply_flags(draft, given, problems)
    notes = _replaced(draft, problems)

    config = _validate(draft, problems)
    found = idle(config) if config is not None else []
    notes += _refuse_idle(found, draft, problems)
    problems.raise_if_any()
    assert config is not None
    values = config.model_dump(mode="json")
    return Resolved(
        config,
        {display(path, values): draft.source(path) for path, _ in leaves(values)},
        tuple(notes),
        tuple(item for item in found if draft.source(tuple(item.key.split("."))) == SHARED),
    )


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
        values = read_yaml(path)
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


Override = tuple[str, Any, str]
"""Dotted key, value, origin."""


def _refuse_unread(pairs: list[Override], reads: Sequence[str], problems: _Problems) -> None:
    for key, _, _ in pairs:
        if not f"{key}.".startswith(tuple(reads)):
            problems.add(f"-o {key} does nothing here", f"of use are: {', '.join(name.rstrip('.') for name in reads)}")


def _replaced(draft: Draft, problems: _Problems) -> list[str]:
    """Refuses flags that contradict overrides; says which overrides later ones of the same list replaced."""
    notes = []
    for item in draft.replaced:
        if item.before not in (OVERRIDE, SHARED) or item.value == get(draft.values, item.path):
            continue
        given = f"-o {display(item.path, draft.values)}={inline_yaml(item.value)}"
        if item.after.startswith("--"):
            problems.add(f"{given} and {item.after} contradict each other", "give one of the two")
        elif item.after == item.before:
            notes.append(f"{given} is replaced by a later -o")
    return notes


def _refuse_idle(found: list[Idle], draft: Draft, problems: _Problems) -> list[str]:
    """Refuses what was asked for and nothing reads; says what else was set and cannot act."""
    notes = []
    for item in found:
        path = tuple(item.key.split("."))
        source = draft.source(path)
        if item.unread and source.startswith("-") and source != SHARED:
            problems.add(f"{_label(draft, path)} does nothing: {item.why}", item.mend)
        elif source.startswith(("-", "preset ")):
            notes.append(f"{_label(draft, path)} changes nothing: {item.why}")
    return notes


def _chosen_method(
    given: Mapping[str, Any],
    pairs: list[Override],
    layers: list[tuple[str, dict[str, Any]]],
    default: str | None,
) -> tuple[Any, str]:
    """The last word on the method, and who had it; None leaves the starting values as they are."""
    choices = [(default, "default")]
    choices += [(values["method"], where) for where, values in layers if "method" in values]
    choices += [(value, where) for key, value, where in pairs if key == "method"]
    choices += [(given["method"], "--method")] if "method" in given else []
    return choices[-1]


def _chosen_model(
    draft: Draft, given: Mapping[str, Any], pairs: list[Override], layers: list[tuple[str, dict[str, Any]]]
) -> str:
    """The last word on the model, which a method's settings may depend on."""
    sections = [values["policy"] for _, values in layers if isinstance(values.get("policy"), dict)]
    sections += [value for key, value, _ in pairs if key == "policy" and isinstance(value, dict)]
    choices = [draft.values["policy"]["name"], *(section["name"] for section in sections if "name" in section)]
    choices += [value for key, value, _ in pairs if key == "policy.name"]
    choices += [given["model"]] if "model" in given else []
    return str(choices[-1])


def _expand_method(draft: Draft, method: Any, source: str, model: str, problems: _Problems) -> None:
    if not isinstance(method, str) or method not in METHODS:
        where = "" if source in {"default", "--method"} else f" ({source})"
        problems.add(f"unknown method {str(method)!r}{where}", did_you_mean(str(method), METHODS))
        return
    defaults = _lists(RunConfig().model_dump())
    for section, values in METHODS[method].settings_for(model).items():
        draft.values[section] = defaults[section]  # what another method set here goes
        draft.set((section,), _lists(values), f"method {method}")
    draft.set(("method",), method, source)


def _override(draft: Draft, key: str, value: Any, source: str, problems: _Problems) -> None:
    try:
        draft.set(draft.locate(key), value, source)
    except ValueError as error:
        problems.add(f"-o {key}: {error}", "see keys and values with: gcpo-bench show")


def _apply_flags(draft: Draft, given: Mapping[str, Any], problems: _Problems) -> None:
    if "method" in given:
        draft.set(("method",), given["method"], "--method")
    for flag, path in (("model", ("policy", "name")), ("seed", ("seed",)), ("num_steps", ("num_steps",))):
        if flag in given:
            draft.set(path, given[flag], f"--{flag.replace('_', '-')}")
    if "ratio" not in given:
        return
    selectors = get(draft.values, ("selection", "selectors"))
    items = list(enumerate(selectors)) if isinstance(selectors, list) else []
    indices = [index for index, item in items if isinstance(item, dict) and item.get("ratio") is not None]
    if not indices:
        problems.add(
            f"--ratio {given['ratio']:g}: no selector of method {draft.values.get('method')} has a ratio",
            "leave --ratio out, or choose a --method that selects, such as gcpo",
        )
    for index in indices:
        draft.set(("selection", "selectors", index, "ratio"), given["ratio"], "--ratio")


def _validate(draft: Draft, problems: _Problems) -> RunConfig | None:
    _check_names(draft, problems)
    _check_options(draft, problems)
    try:
        return RunConfig.model_validate(draft.values)
    except ValidationError as error:
        schema = RunConfig.model_json_schema()
        for item in error.errors():
            _explain(draft, item, schema, problems)
        return None


def _check_names(draft: Draft, problems: _Problems) -> None:
    """Every name that a registry must know, looked up without loading what it names. What is named here may be."""
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
        items = get(draft.values, path)
        count = len(items) if isinstance(items, list) else 0
        known += [(kind, (*path, index, "name"), names) for index in range(count)]
    for kind, path, names in known:
        name = get(draft.values, path)
        if not isinstance(name, str):
            continue
        if draft.source(path) != RUN:
            outside.allow([name])
        if name not in names:
            where = _label(draft, path)
            is_file = kind == "prompt set" and Path(name).is_file()
            problems.add(f"unknown {kind} {name!r} ({where})", OWN_PROMPTS if is_file else did_you_mean(name, names))


def _check_options(draft: Draft, problems: _Problems) -> None:
    """Selector options can be anything: their schema refuses neither what no file could hold nor what is not read."""
    selectors = get(draft.values, ("selection", "selectors"))
    for index, item in enumerate(selectors if isinstance(selectors, list) else ()):
        name, options = get(item, ("name",)), get(item, ("options",))
        given = ["options." + key for key in options] if isinstance(options, dict) else []
        given += ["ratio"] if get(item, ("ratio",)) is not None else []
        for key in given if name in SELECTORS.entries else ():
            if not SELECTORS.reads(name, key.removeprefix("options.")):
                where = _label(draft, ("selection", "selectors", index, *key.split(".")))
                takes = ", ".join(SELECTORS.entries[name].reads) or "no ratio and no options"
                problems.add(f"{where} does nothing: the selector {name} does not take it", f"{name} takes {takes}")
    for path, value in leaves(draft.values):
        items = value if isinstance(value, list) else [value]
        if "options" in path and any(isinstance(item, float) and not math.isfinite(item) for item in items):
            problems.add(f"{_label(draft, path)} is {value}: must be finite", "write a number such as 0.5")


def _label(draft: Draft, path: KeyPath) -> str:
    """What a user has to look at to mend the value: the flag, or the key and where it was set."""
    source = draft.source(path)
    if source.startswith("--"):
        return source
    # a list item's own name may be what is wrong, so only the part before it goes by name
    key = ".".join(map(str, path)) if path[-1] == "name" else display(path, draft.values)
    return f"-o {key}" if source in (OVERRIDE, SHARED) else f"{key} in {source}"


def _explain(draft: Draft, item: Any, schema: dict[str, Any], problems: _Problems) -> None:
    path: KeyPath = item["loc"]
    value, kind = item["input"], item["type"]
    if kind == "too_short" and len(value) >= item["ctx"]["min_length"]:
        return  # pydantic counts only the items that are right; the wrong ones have their own line
    if kind == "extra_forbidden":
        # an unknown section was made by the override of a key in it
        setter = next((known for known in draft.sources if known[: len(path)] == path), path)
        siblings = node_at(schema, path[:-1]).get("properties", {})
        problems.add(f"unknown key {_label(draft, setter)}", did_you_mean(str(path[-1]), siblings))
        return
    shown = "missing" if kind == "missing" else "empty" if value is None else _shown(value)
    if len(shown) > 80:
        shown = f"{shown[:77]}..."
    must_be = allowed(node_at(schema, path))
    problems.add(f"{_label(draft, path)} is {shown}: must be {must_be}", "see keys and values with: gcpo-bench show")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else inline_yaml(value)
