"""What a later version is held against: the scores of each prompt and the speed ratios of some runs, in one small file.

No image and no path is in it, so it can be committed and read in a review. A checksum over the content tells an edit by
hand; `gcpo-bench baseline update` writes the file anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import xxhash

from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.runs import read_json, write_text

from .load import LoadedRun, ReportData, Variant
from .measures import RIGHT, Measure
from .statistics import PromptScores

FORMAT = 2
"""Written where a score is no share of right images; else 1, which knows no other."""
BLOCKS = 10
"""Parts of a run whose medians are the samples of a speed ratio: single steps of one run follow each other's noise."""
SPEED_RATIOS = {
    "step / rollout": ("time/step_s", "time/rollout_s"),
    "update / rollout": ("time/update_s", "time/rollout_s"),
}
"""Times that were measured in one run, divided: another machine changes both alike."""


PLAIN = Measure(name=RIGHT)
"""A share of right images, mean of the tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A variant on a benchmark, by the benchmark's headline: of a panel its first scorer."""

    label: str
    """The variant's name among those it was written with."""
    policy: str
    method: str
    benchmark: str
    settings: Mapping[str, Any]
    identity: Mapping[str, Any]
    """How it was evaluated."""
    scores: Mapping[int, PromptScores]
    """Training seed -> prompt scores."""
    speed: Mapping[str, tuple[float, ...]]
    """Ratio -> its logarithm in each block of each run."""
    measure: Measure = PLAIN
    """What the scores are."""

    @property
    def name(self) -> str:
        return f"{self.policy} {self.label} on {self.benchmark}"


def entries(data: ReportData) -> list[Entry]:
    """Every trained and evaluated variant."""
    return [
        _entry(variant, benchmark, data.headline(benchmark))
        for variant in data.trained
        for benchmark in data.benchmarks
        if variant.scores(benchmark, data.headline(benchmark).name)
    ]


def _entry(variant: Variant, benchmark: str, measure: Measure) -> Entry:
    return Entry(
        label=variant.label.removeprefix(f"{variant.policy} "),
        policy=variant.policy,
        method=variant.method,
        benchmark=benchmark,
        settings=dict(variant.settings),
        identity=variant.evaluations(benchmark)[0].comparable_identity(),
        scores=variant.scores(benchmark, measure.name),
        speed={name: tuple(_log_ratios(variant.runs, *columns)) for name, columns in SPEED_RATIOS.items()},
        measure=measure,
    )


def _log_ratios(runs: tuple[LoadedRun, ...], above: str, below: str) -> list[float]:
    found = []
    for run in runs:
        if not {above, below} <= set(run.metrics.columns):
            continue
        steps = run.metrics.iloc[1:]  # the first step pays for warming up
        ratios = (steps[above] / steps[below]).to_numpy(dtype=np.float64)
        ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
        blocks = [block for block in np.array_split(ratios, BLOCKS) if len(block)]
        found += [round(math.log(float(np.median(block))), 6) for block in blocks]
    return found


# --- the file -------------------------------------------------------------------------------------------------------


def write(path: Path, found: list[Entry], version: str) -> None:
    """Sorted keys, one prompt a line: a change of the file shows what changed."""
    number = 1 if all(entry.measure == PLAIN for entry in found) else FORMAT
    content = {"format": number, "version": version, "entries": [_to_json(entry) for entry in found]}
    record = {**content, "checksum": _checksum(content)}
    write_text(path, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read(path: Path) -> list[Entry]:
    """Raises ConfigError where there is none or a newer program wrote it, CorruptDataError if it was changed."""
    if not path.is_file():
        raise ConfigError(
            f"there is no baseline {path}", hint=f"make one from good runs: gcpo-bench baseline update --out {path}"
        )
    record = read_json(path)
    mend = f"make it anew: gcpo-bench baseline update --out {path}"
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise CorruptDataError(f"{path} is no baseline", hint=mend)
    if record["format"] > FORMAT:
        raise ConfigError(
            f"{path} has format {record['format']}, this version reads up to {FORMAT}",
            hint="install the gcpo-bench that wrote it, or newer",
        )
    content = {key: value for key, value in record.items() if key != "checksum"}
    if record.get("checksum") != _checksum(content):
        raise CorruptDataError(f"{path} was changed after it was written", hint=mend)
    try:
        return [_from_json(item) for item in content["entries"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(f"{path} is damaged: {error!r}", hint=mend) from error


def _checksum(content: Mapping[str, Any]) -> str:
    return f"xxh3:{xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())}"


def _to_json(entry: Entry) -> dict[str, Any]:
    seeds = sorted(entry.scores)
    prompts = sorted(set.union(*(set(scores) for scores in entry.scores.values())))
    tags = {prompt: scores[prompt][0] for scores in entry.scores.values() for prompt in scores}
    measure = {} if entry.measure == PLAIN else {"measure": asdict(entry.measure)}
    return {
        **measure,
        "label": entry.label,
        "policy": entry.policy,
        "method": entry.method,
        "benchmark": entry.benchmark,
        "settings": dict(entry.settings),
        "identity": dict(entry.identity),
        "seeds": seeds,
        # compact: a prompt's task and its score under each seed
        "prompts": {
            prompt: " ".join([quote(tags[prompt]), *(_score_text(entry.scores[seed].get(prompt)) for seed in seeds)])
            for prompt in prompts
        },
        "speed": {name: list(values) for name, values in entry.speed.items()},
    }


def _score_text(item: tuple[str, float] | None) -> str:
    return "-" if item is None else f"{item[1]:.6g}"


def _from_json(item: Mapping[str, Any]) -> Entry:
    scores: dict[int, dict[str, tuple[str, float]]] = {int(seed): {} for seed in item["seeds"]}
    for prompt, text in item["prompts"].items():
        tag, *values = text.split(" ")
        tag = unquote(tag)
        for seed, value in zip(scores, values, strict=True):
            if value != "-":
                if not math.isfinite(float(value)):
                    raise ValueError(f"the score of {prompt} is {value}")
                scores[seed][prompt] = (tag, float(value))
    return Entry(
        label=str(item["label"]),
        policy=str(item["policy"]),
        method=str(item["method"]),
        benchmark=str(item["benchmark"]),
        settings=dict(item["settings"]),
        identity=dict(item["identity"]),
        scores=scores,
        speed={str(name): tuple(map(float, values)) for name, values in item["speed"].items()},
        measure=Measure(**item["measure"]) if "measure" in item else PLAIN,
    )
