"""From a plan to the cells of a grid: which runs a question takes. Pure: no file is written, nothing is trained.

A cell is one run, named by what it is made of: its configuration, the code that decides numbers, parts and prompts from
elsewhere, and the weights it starts from. So plans share cells, a finished cell is never run again, and a change of any
of these makes another cell.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import xxhash
from pydantic import Field, ValidationError

from gcpo_bench import addresses, scenes
from gcpo_bench.config import Config, RunConfig, Share
from gcpo_bench.errors import ConfigError, CorruptDataError, did_you_mean
from gcpo_bench.files import read_yaml
from gcpo_bench.methods import METHODS, get_method
from gcpo_bench.resolve import Resolved, resolve
from gcpo_bench.variants import describe, name_of, run_prefix

STUDY = ("gcpo-init", "gcpo-struct", "gcpo-sim", "gcpo-no-daw", "gcpo")
"""The published ladder: each component alone, their union, the union with the dynamic advantage weight."""
CONTROLS = ("random", "remaining", "top-entropy", "grpo-daw", "init-reweighted")
COMPONENTS = {"init": "initial", "struct": "structural", "sim": "diverse"}
"""Component -> the selector it stands for; `daw` is the weight."""
MAX_CELLS = 10_000


class VariantSpec(Config):
    name: str | None = Field(None, pattern=r"^[^\W_][\w .+%()\[\]=-]{0,39}$")
    """What reports, lists and folders call it; None: what its settings say."""
    method: str
    ratio: Share | None = None
    """Share of the tokens each selector takes; None leaves the method's own."""
    overrides: tuple[str, ...] = ()
    """`dotted.key=value`, as with `-o`."""


class Plan(Config):
    name: str = "ablation"
    description: str = ""
    preset: str | None = None
    model: str | None = None
    num_steps: int | None = Field(None, ge=1)
    overrides: tuple[str, ...] = ()
    """For every variant."""
    variants: tuple[VariantSpec, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    id: str
    """16 hex digits over all that decides its numbers."""
    name: str
    """Of its run in the runs folder."""
    config: RunConfig
    """`num_steps` 0 means the start: weights that are evaluated only."""
    variant: str = dataclasses.field(default="", compare=False)
    """What lists show of it: method, ratio, overrides. Not written down."""

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "config": self.config.model_dump(mode="json")}

    @classmethod
    def from_json(cls, record: Any, path: Path) -> Cell:
        """Raises CorruptDataError naming `path`."""
        try:
            return cls(id=record["id"], name=record["name"], config=RunConfig.model_validate(record["config"]))
        except (KeyError, TypeError, ValidationError) as error:
            what = " ".join(str(error).split())
            raise CorruptDataError(
                f"{path} is damaged: {what}", hint="delete its folder; the same command plans it again"
            ) from error


WeightsOf = Callable[[RunConfig], str]
"""Checksum of the weights that a configuration starts from."""


def expand(plan: Plan, weights_of: WeightsOf, code: str) -> list[Cell]:
    """The starts, then all variants of the first seed, of the second, ...

    Raises:
        ConfigError: unknown names or keys, a ratio that selects no token, the same cell twice.
    """
    cells: dict[str, Cell] = {}
    if len(plan.seeds) * len(plan.variants) > MAX_CELLS:
        raise ConfigError(
            f"plan {plan.name} has more than {MAX_CELLS:,} cells", hint="leave some variants or seeds out"
        )
    starts: dict[str, Cell] = {}
    for seed in plan.seeds:
        for variant in plan.variants:
            config = _config(plan, variant, seed)
            weights = weights_of(config)
            start = start_cell(config, weights, code)
            starts[start.id] = start
            cell = trained_cell(config, weights, code, variant.overrides)
            if cell.id in cells:
                raise ConfigError(
                    f"plan {plan.name}: {cell.variant} with seed {seed} is there twice",
                    hint="name every variant and every seed once",
                )
            cells[cell.id] = cell
    return [*starts.values(), *cells.values()]


def _resolved(plan: Plan, variant: VariantSpec, seed: int) -> Resolved:
    flags = {
        "method": variant.method,
        "model": plan.model,
        "num_steps": plan.num_steps,
        "seed": seed,
        "ratio": variant.ratio,
    }
    return resolve(plan.preset, variant.overrides, flags, shared=plan.overrides)


def _config(plan: Plan, variant: VariantSpec, seed: int) -> RunConfig:
    config = _resolved(plan, variant, seed).config
    if variant.name:
        _check_name(plan, variant, config)
        config = config.model_copy(update={"logging": config.logging.model_copy(update={"variant": variant.name})})
    _check_ratios(config, variant)
    return config


def of_no_use(plan: Plan) -> list[str]:
    """What the plan sets and in some of its variants changes nothing, a line each.

    Raises ConfigError for what none of them has a use for.
    """
    resolved = [_resolved(plan, variant, plan.seeds[0]) for variant in plan.variants]
    names = [each.name or describe(of.config, each.overrides) for each, of in zip(plan.variants, resolved, strict=True)]
    unread = [{item.key: item.why for item in each.idle if item.unread} for each in resolved]
    for key in set.intersection(*(set(each) for each in unread)):
        raise ConfigError(f"-o {key} does nothing in any variant: {unread[0][key]}", hint="leave it out")
    told: dict[str, list[str]] = {}
    for name, each in zip(names, resolved, strict=True):
        for line in each.notes:
            told.setdefault(line, []).append(name)
    return [f"{line} ({', '.join(variants)})" for line, variants in told.items()]


def _check_name(plan: Plan, variant: VariantSpec, config: RunConfig) -> None:
    if sum(other.name == variant.name for other in plan.variants) > 1:
        raise ConfigError(
            f"plan {plan.name}: two variants are called {variant.name!r}", hint="give every variant its own name"
        )
    if variant.name in (*METHODS, "start") and variant.name != name_of(config):
        raise ConfigError(
            f"plan {plan.name}: a variant is called {variant.name!r} and is {name_of(config)}",
            hint="names of methods are for their own settings; call it otherwise, or leave its name out",
        )


def _check_ratios(config: RunConfig, variant: VariantSpec) -> None:
    """A ratio too small for the grid is told before hours of other cells; other models tell it when they start."""
    if config.policy.name not in scenes.WORLDS:
        return
    rows, cols = scenes.WORLDS[config.policy.name].grid
    for selector in config.selection.selectors:
        if selector.ratio is not None and math.floor(selector.ratio * rows * cols + 1e-9) < 1:
            raise ConfigError(
                f"{describe(config, variant.overrides)}: ratio {selector.ratio:g} of {rows}x{cols} tokens selects none",
                hint=f"use a ratio of at least {1 / (rows * cols):.4f} for {config.policy.name}",
            )


def address(config: RunConfig, weights: str, code: str) -> str:
    """16 hex digits over all that decides the numbers of a run, or of a start where the configuration has no steps."""
    if config.num_steps:
        settings = config.model_dump(mode="json", exclude={"logging", "num_threads"})
        parts = addresses.run_parts(config)
    else:
        settings = config.model_dump(mode="json", include={"method", "policy", "evaluation"})
        parts = addresses.evaluation_parts(config)
    text = json.dumps({"settings": settings, "weights": weights, "code": code, "parts": parts}, sort_keys=True)
    return xxhash.xxh3_64_hexdigest(text.encode())


def trained_cell(config: RunConfig, weights: str, code: str, overrides: Sequence[str] = ()) -> Cell:
    cell_id = address(config, weights, code)
    name = f"{run_prefix(config, overrides)}-s{config.seed}-{cell_id[:8]}"
    return Cell(id=cell_id, name=name, config=config, variant=describe(config, overrides))


def start_cell(config: RunConfig, weights: str, code: str) -> Cell:
    """What `config` starts from, as a run of 0 steps; one for all methods and seeds."""
    start = start_config(config)
    return Cell(id=address(start, weights, code), name=start_name(config, weights), config=start, variant="start")


def start_config(config: RunConfig) -> RunConfig:
    logging = config.logging.model_copy(update={"variant": ""})
    return config.model_copy(update={"method": "start", "num_steps": 0, "seed": 0, "logging": logging})


def start_name(config: RunConfig, weights: str) -> str:
    short = weights.removeprefix("xxh3:").replace(":", "-")[:8]  # random weights are named "random:<model>"
    policy = config.policy
    differing = [value for value, usual in ((policy.dtype, "float32"), (policy.template, "")) if value != usual]
    return "-".join([f"start-{policy.name}-{short}"[:40], *differing])[:64]


# ---------------------------------------------------------------- plans


def has_ratio(method: str) -> bool:
    selectors = get_method(method).settings["selection"]["selectors"]
    return any(item.get("ratio") is not None for item in selectors)


def with_ratios(methods: Iterable[str], ratios: Sequence[float]) -> list[VariantSpec]:
    """Every method at every ratio; a method that has none stands once. Without ratios each keeps its own."""
    return [variant for method in methods for variant in at_ratios(VariantSpec(method=method), ratios)]


def at_ratios(variant: VariantSpec, ratios: Sequence[float]) -> list[VariantSpec]:
    if not ratios or not has_ratio(variant.method):
        return [variant]
    return [variant.model_copy(update={"ratio": ratio}) for ratio in ratios]


def component_variants(components: Sequence[str], ratios: Sequence[float]) -> list[VariantSpec]:
    """Each set alone, their union if there are several, and with `daw` the union weighted."""
    known = [*COMPONENTS, "daw"]
    if wrong := [name for name in components if name not in known]:
        raise ConfigError(f"unknown component {wrong[0]!r}", hint=did_you_mean(wrong[0], known))
    sets = [name for name in COMPONENTS if name in components]
    if not sets:
        raise ConfigError(
            "--components names no set of tokens", hint="add init, struct or sim; `daw` only weights them"
        )
    found = with_ratios([f"gcpo-{name}" for name in sets], ratios)
    kept = [COMPONENTS[name] for name in sets]
    if len(sets) > 1:
        found += _unions("gcpo-no-daw", kept, ratios)
    if "daw" in components:
        found += _unions("gcpo", kept, ratios)
    return found


def _unions(method: str, selectors: Sequence[str], ratios: Sequence[float]) -> list[VariantSpec]:
    """The method restricted to some of its sets."""
    items = get_method(method).settings["selection"]["selectors"]
    kept = [item for item in items if item["name"] in selectors]
    if len(kept) == len(items):
        return with_ratios([method], ratios)
    return at_ratios(VariantSpec(method=method, overrides=("selection.selectors=" + json.dumps(kept),)), ratios)


def list_plans() -> list[tuple[str, str]]:
    """(name, description) of the plans that come with the package."""
    return [(path.stem, load_plan(str(path)).description) for path in sorted(_folder().glob("*.yaml"))]


def _folder() -> Path:
    return Path(str(resources.files("gcpo_bench.plans")))


def load_plan(name: str) -> Plan:
    """A shipped plan by its name, or one from a .yaml file. Raises ConfigError naming every problem."""
    path = Path(name)
    if not name.endswith((".yaml", ".yml")):
        known = {path.stem: path for path in _folder().glob("*.yaml")}
        if name not in known:
            raise ConfigError(f"unknown plan {name!r}", hint=f"{did_you_mean(name, known)}, or a path to a .yaml file")
        path = known[name]
    try:
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise ValueError("it is no mapping of keys to values")
        return Plan.model_validate({"name": path.stem, **values})
    except OSError as error:
        raise ConfigError(f"plan {path}: {error.strerror}", hint="check the path; gcpo-bench ls plans") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"plan {path}: {problems}", hint=f"keys of a plan: {', '.join(Plan.model_fields)}") from error
    except ValueError as error:
        raise ConfigError(
            f"plan {path}: {error}", hint="write it as `key: value` lines; gcpo-bench ls plans"
        ) from error


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0..4` (both ends count), `0,2,5`, `3`, or a mixture."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*\.\.\s*(\d{1,9}))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ConfigError(f"--seeds {text!r} is no list of seeds", hint="write it as 0..4 or 0,2,5")
        found = range(int(match[1]), int(match[2] or match[1]) + 1)
        if len(seeds) + len(found) > MAX_CELLS:
            raise ConfigError(f"--seeds {text!r} are more than {MAX_CELLS:,}", hint="write it as 0..4 or 0,2,5")
        seeds += found
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text!r} names a seed twice", hint="write it as 0..4 or 0,2,5")
    return tuple(seeds)


def parse_ratios(text: str) -> tuple[float, ...]:
    """`0.05,0.1`; each above 0 and at most 1."""
    try:
        ratios = tuple(float(part) for part in text.split(","))
    except ValueError:
        ratios = (math.nan,)
    if not all(0 < ratio <= 1 for ratio in ratios) or len(set(ratios)) < len(ratios):
        raise ConfigError(
            f"--ratio {text!r} is no list of different shares above 0 and at most 1", hint="write it as 0.05,0.1,0.15"
        )
    return ratios


def parse_methods(text: str) -> tuple[str, ...]:
    methods = tuple(part.strip() for part in text.split(",") if part.strip())
    if not methods:
        raise ConfigError("--methods names no method", hint=f"known: {', '.join(METHODS)}")
    for method in methods:
        get_method(method)
    return methods
