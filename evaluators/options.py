"""What the command line says to all benchmarks at once, made into what each of them is told.

`--fidelity` asks for the same everywhere: `official`, as the published numbers were made; `fixed`, without the known
mistakes; `reward-server`, as Flow-GRPO and GCPO trained (GenEval only). GenEval has it as an option of its own
(`fidelity`); for other benchmarks it stands for some of theirs:

* HPS, `official`: bare samples and half precision on CUDA, as hpsv2 runs beside torchvision 0.16 and older; 0.17 came
  half a year after HPSv2 (arXiv 2306.09341). `fixed`: antialiased, single precision, which is also the default.
* T2I-CompBench's 3D positions: depth read with rows and columns exchanged, or not.

An option that a benchmark lacks has no meaning for it, and others of a list may be given it all the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from gcpo_bench.errors import ConfigError
from gcpo_bench.registry import BENCHMARKS

from . import fidelity as fidelities

_HPS = {
    "official": {"antialias": "false", "precision": "autocast"},
    "fixed": {"antialias": "true", "precision": "float32"},
}
FIDELITIES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "hps-benchmark": _HPS,
    "hps-gcpo400": _HPS,
    "t2i-compbench-3d-spatial": {name: {"fidelity": name} for name in ("official", "fixed")},
}
"""Benchmark -> fidelity -> what it comes to in options of its own."""


def divided(
    benchmarks: Sequence[str], given: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """What each benchmark is made with, and of each option the benchmarks that it has no meaning for.

    Args:
        given: option -> value, for all; `options` holds the benchmarks' own, which go before a fidelity's.
    Raises ConfigError for an unknown benchmark or fidelity, or an option that has no meaning for any of them.
    """
    told = {name: _told(name, given) for name in benchmarks}
    without = {key: [name for name in told if key not in told[name][1]] for key in given}
    for key, names in without.items():
        if names and len(names) == len(told):
            raise _without_meaning(key, given[key], names)
    return {name: own for name, (own, _) in told.items()}, {key: names for key, names in without.items() if names}


def _told(name: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """What a benchmark is made with, and which options have a meaning for it."""
    accepted = inspect.signature(BENCHMARKS.load(name)).parameters
    own = {key: value for key, value in given.items() if key in accepted}
    meant = set(own)
    stands_for = FIDELITIES.get(name, {}).get(given.get("fidelity", ""))
    if stands_for is not None:
        own["options"] = {**stands_for, **own.get("options", {})}
        meant.add("fidelity")
    return own, meant


def _without_meaning(key: str, value: Any, names: Sequence[str]) -> ConfigError:
    if key == "fidelity" and (name := next((name for name in names if name in FIDELITIES), "")):
        fidelities.get(value)  # a name that is none
        known = ", ".join(FIDELITIES[name])
        return ConfigError(f"fidelity {value!r} has no meaning for {name}", hint=f"known: {known}")
    return ConfigError(
        f"benchmark {names[0]!r} has no option {key!r}", hint="leave it out, or choose another benchmark"
    )
