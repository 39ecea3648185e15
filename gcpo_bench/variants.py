"""What a configuration is called: by its settings, never by its field `method`, which only says where they come from.

`--method gcpo -o weighting.name=uniform` trains as `gcpo-no-daw` does, and is called so in reports, lists and folders.
Settings that no method has are named after the nearest one, with what differs in brackets: `gcpo[init+struct]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from gcpo_bench.config import RunConfig, SelectionConfig, SelectorConfig, WeightingConfig
from gcpo_bench.methods import METHODS
from gcpo_bench.registry import WEIGHTINGS

PUBLISHED_RATIO = 0.1
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "initial": {},
    "structural": {"window": [0.0, 1.0]},
    "diverse": {},
    "random": {"sets": 1},
    "top-entropy": {"sets": 1},
    "low-entropy": {"sets": 1},
    "low-confidence": {},
}
"""Selector -> its options where none are given; a test compares them with the selectors."""
SIGNALS = ("entropy", "similarity", "noise", "logprobs")
READS: Mapping[str, tuple[str, ...]] = {
    "all": (),
    "initial": (),
    "structural": ("entropy",),
    "diverse": ("similarity",),
    "random": ("noise",),
    "top-entropy": ("entropy",),
    "low-entropy": ("entropy",),
    "low-confidence": ("logprobs",),
}
"""Selector -> the signals that it looks at. One of a user's own may look at all."""
MADE = {"entropy_source": "entropy", "similarity_embedding": "similarity"}
"""Key of the selection -> the signal that it decides."""
SHORT = {"initial": "init", "structural": "struct", "diverse": "sim"}
"""The published sets, as the paper's ablation calls them."""
WEIGHTED_SETS = ("gcpo", "gcpo-official", "gcpo-paper", "gcpo-no-daw", "init-reweighted")
"""What other sets are named after, by their weight."""
MOST_PREFIX = 40
"""Characters that a variant has in the name of its run; seed and address follow."""
MOST_TOLD = 3
"""Differences from a known method that a name tells; of the rest their number."""
LONGEST = 60
"""Characters in brackets."""


def signals_read(selection: SelectionConfig) -> frozenset[str]:
    """What its selectors look at."""
    return frozenset(signal for item in selection.selectors for signal in READS.get(item.name, SIGNALS))


def acting(config: RunConfig) -> dict[str, Any]:
    """Selection and weighting as dotted keys, without what has no effect: two runs that agree here train alike."""
    selection, weighting = config.selection, config.weighting
    found: dict[str, Any] = {}
    for index, item in enumerate(selection.selectors):
        place = f"selection.selectors.{index}"
        found |= {f"{place}.name": item.name, f"{place}.ratio": item.ratio}
        found |= {f"{place}.options.{key}": value for key, value in _options(item).items()}
    found["selection.complement"] = selection.complement
    if len(selection.selectors) > 1:
        found["selection.overlap"] = selection.overlap
    read = signals_read(selection)
    found |= {f"selection.{key}": getattr(selection, key) for key, signal in MADE.items() if signal in read}
    fields = [key for key in WeightingConfig.model_fields if key == "name" or WEIGHTINGS.reads(weighting.name, key)]
    return found | {f"weighting.{key}": getattr(weighting, key) for key in fields}


def _options(item: SelectorConfig) -> dict[str, Any]:
    """As JSON has them, with those that are not given."""
    given: dict[str, Any] = json.loads(json.dumps({**OPTIONS.get(item.name, {}), **item.options}, default=str))
    return given


def even_ratio(config: RunConfig) -> float | None:
    """The share of the tokens that each of its selectors takes; None where there is none or they differ."""
    ratios = {item.ratio for item in config.selection.selectors}
    return ratios.pop() if len(ratios) == 1 else None


def ratio_text(config: RunConfig) -> str:
    """ "5 % a set", or each selector's share where they differ; "no ratio" where none has one."""
    shares = [(SHORT.get(item.name, _plain(item.name)), item.ratio) for item in config.selection.selectors]
    if len({ratio for _, ratio in shares}) == 1:
        ratio = shares[0][1]
        return "no ratio" if ratio is None else f"{100 * ratio:g} % a set"
    return ", ".join(f"{name} {100 * ratio:g} %" for name, ratio in shares if ratio is not None)


def name_of(config: RunConfig) -> str:
    """The method whose settings these are, at whatever ratio; else the nearest one with what differs in brackets.

    Examples: `gcpo`, `gcpo[init+struct]`, `random[sets 1]`, `gcpo[overlap allow, clip 0.2]`.
    """
    shape = _shape(config)
    known = _shapes()
    for name, other in known.items():
        if shape == {**other, "loss": shape["loss"]} and other["loss"].items() <= shape["loss"].items():
            return name
    alike = [name for name, other in known.items() if all(other[key] == shape[key] for key in ("tokens", "weight"))]
    told = {name: _told(shape, known[name]) for name in alike or WEIGHTED_SETS}
    name = min(told, key=lambda each: len(told[each]))  # the first of equals
    words = told[name]
    more = [f"{len(words) - MOST_TOLD} more"] if len(words) > MOST_TOLD else []
    text = ", ".join([*words[:MOST_TOLD], *more])
    return f"{name}[{text if len(text) <= LONGEST else text[: LONGEST - 1] + '…'}]"


def own_loss(name: str) -> set[str]:
    """Dotted keys of the loss that the method sets which a name is, or is after."""
    method = METHODS.get(name.partition("[")[0])
    return {f"loss.{key}" for key in method.settings.get("loss", {})} if method else set()


@cache
def _shapes() -> dict[str, dict[str, Any]]:
    """Method -> what is told of it; of its loss what the method sets itself."""
    return {
        name: {
            **_shape(RunConfig.model_validate({"method": name, **method.settings})),
            "loss": method.settings.get("loss", {}),
        }
        for name, method in METHODS.items()
    }


def _shape(config: RunConfig) -> dict[str, Any]:
    """What of `acting` a name tells, by short words: neither ratios nor how signals are made."""
    selectors = config.selection.selectors
    shape: dict[str, Any] = {"tokens": "+".join(SHORT.get(item.name, item.name) for item in selectors)}
    for item in selectors:
        for key, value in _options(item).items():
            shape[key if len(selectors) == 1 or key == "window" else f"{_plain(item.name)} {key}"] = value
    shape["complement"] = config.selection.complement
    settings = acting(config)
    if "selection.overlap" in settings:
        shape["overlap"] = config.selection.overlap
    weighting = {key.removeprefix("weighting."): v for key, v in settings.items() if key.startswith("weighting.")}
    return shape | {"weight": weighting.pop("name"), **weighting, "loss": config.loss.model_dump()}


def _told(shape: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """In which `shape` differs; what only it has is told where it is not the default."""
    defaults = {**WeightingConfig().model_dump(), **{k: v for options in OPTIONS.values() for k, v in options.items()}}
    defaults |= {"complement": False, "overlap": "exclude"}
    told = [
        _word(key, value)
        for key, value in shape.items()
        if key != "loss" and (known[key] != value if key in known else value != defaults.get(key.rsplit(" ", 1)[-1]))
    ]
    return told + [_word(k, shape["loss"][k]) for k, value in known["loss"].items() if shape["loss"][k] != value]


def _word(key: str, value: Any) -> str:
    if key == "tokens":
        return "+".join(_plain(name) for name in value.split("+"))
    if isinstance(value, bool):
        return key if value else f"not {key}"
    if isinstance(value, list):
        value = "-".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    return f"{key} {value:g}" if isinstance(value, float) else f"{key} {_plain(str(value))}"


def _plain(name: str) -> str:
    """A part of a user's own without its module."""
    return name.rsplit(":", 1)[-1][:20]


def describe(config: RunConfig, overrides: Sequence[str] = ()) -> str:
    """A variant in a line: `gcpo[init+struct], 5 % a set, loss.beta=0.1`."""
    called = config.logging.variant or name_of(config)
    ratio = [] if even_ratio(config) in (None, PUBLISHED_RATIO) and _is_even(config) else [ratio_text(config)]
    return ", ".join([called, *ratio, *_further(overrides)])


def run_prefix(config: RunConfig, overrides: Sequence[str] = ()) -> str:
    """What its folder's name begins with, in characters that any file system takes: `gcpo-init-struct-r0.05`."""
    words = [config.logging.variant or name_of(config)]
    ratio = even_ratio(config)
    words += [f"r{ratio:g}"] if ratio not in (None, PUBLISHED_RATIO) else []
    words += ["uneven"] if not _is_even(config) else []
    words += [text.partition("=")[0].rsplit(".", 1)[-1] + text.partition("=")[2] for text in _further(overrides)]
    text = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-.") for word in words)
    return re.sub(r"-{2,}", "-", text)[:MOST_PREFIX].strip("-.") or "run"


def _is_even(config: RunConfig) -> bool:
    return len({item.ratio for item in config.selection.selectors}) == 1


def _further(overrides: Sequence[str]) -> list[str]:
    """Those that are not told by the name and the ratio already."""
    told = ("selection.selectors", "selection.overlap", "selection.complement", "weighting.")
    return [text for text in overrides if not text.startswith(told)]
