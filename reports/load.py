"""Run directories -> what the report is made of. Reads through `gcpo_bench.runs` only, changes nothing.

A run that is damaged is left out with a note when others are fine; a report of nothing else is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gcpo_bench.ablations import start_name
from gcpo_bench.config import RESOURCES, RunConfig
from gcpo_bench.errors import CorruptDataError, GcpoBenchError, RunError
from gcpo_bench.files import reading
from gcpo_bench.runs import Run, first_weights, open_run
from gcpo_bench.variants import acting, even_ratio, name_of, own_loss

from . import names
from .evaluations import Evaluation, flatten, read_evaluation, remarks
from .measures import Measure
from .references import FILES, Reference, load_references
from .statistics import PromptScores

NOT_SETTINGS = ("seed", "logging", "num_threads", "evaluation", "policy.device", *RESOURCES)
"""Parts of a configuration that do not make another variant: replicate, bookkeeping, how it was looked at, where and
how fast it was computed."""
METHOD_SETTINGS = ("method", "selection", "weighting")
"""Parts in which methods differ on purpose. Of these `method` decides nothing, the others as far as they act."""
MAPS = ("entropy", "entropy_gradient", "similarity", "weight", "divergence")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMaps:
    """What the tracked prompts looked like at one step. M prompts, grid H x W."""

    step: int
    prompts: tuple[str, ...]
    images_MYXC: np.ndarray
    maps_MHW: Mapping[str, np.ndarray]
    selected_MHW: np.ndarray
    subsets_MHW: Mapping[str, np.ndarray]
    rewards_M: np.ndarray
    advantages_M: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """What `gcpo-bench analyze` found."""

    record: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRun:
    name: str
    path: Path
    config: RunConfig
    state: str
    step: int
    error: str
    metrics: pd.DataFrame
    """One row a step; columns as logged."""
    environments: tuple[Mapping[str, Any], ...]
    evaluations: Mapping[str, Evaluation]
    token_maps: tuple[TokenMaps, ...]
    analyses: Mapping[str, Analysis]
    is_outdated: bool = False
    """Whether scores are of other weights than those of its newest checkpoint: it was trained on since."""

    @property
    def is_start(self) -> bool:
        return self.config.num_steps == 0

    @property
    def unfinished(self) -> str:
        """How far it came, where its numbers are not those of the whole run: `step 1 of 14`; else empty."""
        if self.is_start:
            return ""
        if self.state != "finished":
            return f"step {max(self.step, len(self.metrics))} of {self.config.num_steps}"
        return "scores of an earlier step" if self.is_outdated else ""

    @property
    def start_weights(self) -> str:
        """Checksum of the weights that training began from; empty where it was not recorded."""
        return first_weights(self.environments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Runs that differ in nothing but the seed."""

    label: str
    method: str
    """By its settings, at whatever ratio: `gcpo`, `gcpo[init+struct]`; "start" where nothing was trained."""
    policy: str
    runs: tuple[LoadedRun, ...]
    """By seed."""
    settings: Mapping[str, Any]
    """Dotted key -> value of everything that decides the numbers, the seed aside."""

    @property
    def is_start(self) -> bool:
        return self.runs[0].is_start

    @property
    def unfinished(self) -> str:
        """As of its runs, which are alike in that."""
        return self.runs[0].unfinished

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.config.seed for run in self.runs)

    @property
    def ratio(self) -> float | None:
        """The share of the tokens that each of its sets takes; None where there is none or they differ."""
        return even_ratio(self.runs[0].config)

    def has_ratio(self, ratio: float) -> bool:
        """Whether each of its sets takes this share, or it has no sets."""
        return {item.ratio for item in self.runs[0].config.selection.selectors} in ({ratio}, {None})

    @property
    def share(self) -> float:
        """Of the tokens that it trained on, mean over its runs; nan where that was not logged."""
        key = "tokens/selected_fraction"
        shares = [float(run.metrics[key].mean()) for run in self.runs if key in run.metrics]
        return float(np.mean(shares)) if shares else math.nan

    @property
    def signals(self) -> dict[str, Any]:
        """How the signals are made that its selectors look at."""
        return names.signals(self.runs[0])

    def scores(self, benchmark: str, metric: str) -> dict[int, PromptScores]:
        """seed -> prompt scores, for the seeds that were evaluated."""
        found = {
            r.config.seed: r.evaluations[benchmark].prompt_scores(metric)
            for r in self.runs
            if benchmark in r.evaluations
        }
        return {seed: scores for seed, scores in found.items() if scores}

    def evaluations(self, benchmark: str) -> list[Evaluation]:
        return [run.evaluations[benchmark] for run in self.runs if benchmark in run.evaluations]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    variants: tuple[Variant, ...]
    """Starts first, then GRPO, then the others by label."""
    notes: tuple[str, ...]
    """What was left out or is missing, one sentence each."""
    references: tuple[Reference, ...] = ()
    """Image sets that are no runs, by label."""

    @property
    def runs(self) -> tuple[LoadedRun, ...]:
        return tuple(run for variant in self.variants for run in variant.runs)

    @property
    def trained(self) -> tuple[Variant, ...]:
        return tuple(variant for variant in self.variants if not variant.is_start)

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Those that runs have first, of these those of right and wrong: the paper's claims are about them."""
        of_runs = {name for run in self.runs for name in run.evaluations}
        names = self._evaluations()
        return tuple(sorted(names, key=lambda n: (n not in of_runs, not self.headline(n).is_verdict, n)))

    @property
    def run_benchmarks(self) -> tuple[str, ...]:
        """Those that some run was evaluated on."""
        of_runs = {name for run in self.runs for name in run.evaluations}
        return tuple(name for name in self.benchmarks if name in of_runs)

    @property
    def scored(self) -> tuple[Variant | Reference, ...]:
        """Everything that has scores."""
        return (*self.variants, *self.references)

    def headline(self, benchmark: str) -> Measure:
        """What the benchmark's overall score is the mean of."""
        return self.panel(benchmark)[0]

    def panel(self, benchmark: str) -> tuple[Measure, ...]:
        """What is compared on a benchmark, the headline first."""
        of = self.measures(benchmark)
        names = dict.fromkeys(name for evaluation in self._evaluations()[benchmark] for name in evaluation.panel)
        known = tuple(of[name] for name in names if name in of)
        return known or (Measure(name=next(iter(names))),)

    def measures(self, benchmark: str) -> dict[str, Measure]:
        """Every value of the benchmark's images; where evaluations say different things, the first one's word."""
        found: dict[str, Measure] = {}
        for evaluation in self._evaluations()[benchmark]:
            found = {**evaluation.measures, **found}
        return found

    def _evaluations(self) -> dict[str, list[Evaluation]]:
        """Benchmark -> its evaluations, those of runs first."""
        found: dict[str, list[Evaluation]] = {}
        for evaluations in (*(run.evaluations for run in self.runs), *(r.by_benchmark for r in self.references)):
            for name, evaluation in evaluations.items():
                found.setdefault(name, []).append(evaluation)
        return found

    def start_of(self, variant: Variant) -> Variant | None:
        """The weights that the variant's training began from; the evaluated ones where several fit.

        They are known by their checksum, which the name of a start's folder bears. Where neither says which they are, a
        start of the same policy with the same `policy.weights` counts.
        """
        first = variant.runs[0]
        known = [v for v in self.variants if v.is_start and _began_from(first, v.runs[0])]
        alike = [v for v in self.variants if v.is_start and _may_be_start_of(first, v.runs[0])]
        starts = sorted(known or alike, key=lambda start: not any(run.evaluations for run in start.runs))
        return starts[0] if starts else None

    def baseline_of(self, variant: Variant) -> Variant | None:
        """The GRPO variant of the same model whose other settings are nearest; None for GRPO itself."""
        if variant.method == "grpo" or variant.is_start:
            return None
        candidates = [other for other in self.trained if other.method == "grpo" and other.policy == variant.policy]
        return min(candidates, key=lambda other: (len(other_settings(variant, other)), other.label), default=None)

    def peers_of(self, variant: Variant) -> list[Variant]:
        """The variants that have the same baseline, and that baseline: one grid, as far as seeds are concerned."""
        baseline = self.baseline_of(variant) or variant
        grid = [other for other in self.trained if (self.baseline_of(other) or other) is baseline]
        return [other for other in grid if not other.unfinished or other is variant]


def other_settings(a: Variant, b: Variant) -> list[str]:
    """Dotted keys in which two variants differ although their methods do not ask for it."""
    keys = sorted((a.settings.keys() | b.settings.keys()) - own_loss(a.method) - own_loss(b.method))
    return [
        key for key in keys if key.split(".")[0] not in METHOD_SETTINGS and a.settings.get(key) != b.settings.get(key)
    ]


def load(paths: Sequence[Path], references: Sequence[Path] = (), *, strict: bool = False) -> ReportData:
    """Read runs and group them into variants; the order of `paths` does not matter.

    Args:
        references: folders of image sets that are no runs, `evaluations/<name>`.
        strict: leave no damaged run out.
    Raises:
        RunError: no path was given, or there is no run and no image set could be read.
        CorruptDataError, RunError: no run could be read; the first one's error.
    """
    if not paths and not references:
        raise RunError("there is no run to report on", hint="train one first: gcpo-bench train")
    runs: list[LoadedRun] = []
    notes: list[str] = []
    failures: list[GcpoBenchError] = []
    for path in sorted(set(paths), key=lambda path: (path.name, str(path))):
        try:
            with reading(path, "mend its permissions, or leave it out"):
                run, remarks = load_run(path)
        except GcpoBenchError as error:
            failures.append(error)
            notes.append(f"{path.name} is left out: {_relative(str(error), path)}")
            continue
        runs.append(run)
        notes.extend(f"{run.name}: {remark}" for remark in remarks)
    if failures and (strict or not runs):
        raise failures[0]
    variants, lines = group(runs)
    others, more = load_references(references, [variant.label for variant in variants])
    if not runs and not others:
        raise RunError(
            f"no image set could be read: {more[0] if more else 'there is none'}",
            hint="evaluate the images again: gcpo-bench evaluate --images DIR",
        )
    return ReportData(variants=variants, notes=(*notes, *lines, *more), references=others)


def load_run(path: Path) -> tuple[LoadedRun, list[str]]:
    """One run and what is wanting in it. Raises CorruptDataError naming the damaged file."""
    run = open_run(path)
    status = run.status()
    notes = []
    if status.state != "finished":
        reason = f": {status.error}" if status.error else ""
        notes.append(f"is {status.state} at step {status.step} of {run.config.num_steps}{reason}")
    evaluations = {}
    for folder in sorted({path.parent for file in FILES for path in (run.path / "evaluations").glob(f"*/{file}")}):
        evaluations[folder.name] = read_evaluation(folder)
    if not evaluations:
        notes.append("has not been evaluated (gcpo-bench evaluate)")
    for evaluation in evaluations.values():
        notes += remarks(evaluation, f"gcpo-bench evaluate {run.name} --bench {evaluation.benchmark} --rescore")
    now = run.weights_digest()
    judged = {evaluation.benchmark: evaluation.identity.get("weights_digest") for evaluation in evaluations.values()}
    outdated = [benchmark for benchmark, weights in judged.items() if now and weights and weights != now]
    notes += [f"was trained on since it was scored on {each} (gcpo-bench evaluate {run.name})" for each in outdated]
    loaded = LoadedRun(
        is_outdated=bool(outdated),
        name=run.name,
        path=run.path,
        config=run.config,
        state=status.state,
        step=status.step,
        error=status.error,
        metrics=_metrics_frame(run),
        environments=tuple(run.environments()),
        evaluations=evaluations,
        token_maps=tuple(_token_maps(run, step, arrays) for step, arrays in run.token_maps()),
        analyses={name: Analysis(record=record, arrays=arrays) for name, (record, arrays) in run.analyses().items()},
    )
    return loaded, notes


def _metrics_frame(run: Run) -> pd.DataFrame:
    rows = run.metrics()
    for row in rows:
        for key, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise CorruptDataError(
                    f"{run.metrics_path} is damaged: {key} is {value!r} at step {row['step']}",
                    hint="restore it from a copy, or leave this run out",
                )
    return pd.DataFrame(rows) if rows else pd.DataFrame({"step": pd.Series(dtype="int64")})


def _token_maps(run: Run, step: int, arrays: Mapping[str, np.ndarray]) -> TokenMaps:
    path = run.path / "tokens" / f"step-{step:06d}.npz"

    def wanted(name: str, dimensions: int) -> np.ndarray:
        array = arrays.get(name)
        if array is None or array.ndim != dimensions:
            found = "missing" if array is None else f"{array.ndim}-dimensional, not {dimensions}"
            raise CorruptDataError(
                f"{path} is damaged: {name!r} is {found}", hint="delete it; the report leaves that step out"
            )
        return array

    prompts = tuple(str(text) for text in wanted("prompts", 1))
    selected_MHW = wanted("selected", 3).astype(bool)
    maps = {name: wanted(name, 3).astype(np.float32) for name in MAPS if name in arrays}
    subsets = {n.removeprefix("subset/"): wanted(n, 3).astype(bool) for n in sorted(arrays) if n.startswith("subset/")}
    images = wanted("images", 4)
    shapes = {selected_MHW.shape, *(array.shape for array in (*maps.values(), *subsets.values()))}
    if len(shapes) > 1 or len(images) != len(prompts) or len(selected_MHW) != len(prompts) or images.dtype != np.uint8:
        raise CorruptDataError(
            f"{path} is damaged: its arrays do not fit together", hint="delete it; the report leaves that step out"
        )
    unknown = np.full(len(prompts), np.nan, dtype=np.float32)
    return TokenMaps(
        step=step,
        prompts=prompts,
        images_MYXC=images,
        maps_MHW=maps,
        selected_MHW=selected_MHW,
        subsets_MHW=subsets,
        rewards_M=arrays.get("reward", unknown),
        advantages_M=arrays.get("advantage", unknown),
    )


# --- variants -------------------------------------------------------------------------------------------------------


def group(runs: Sequence[LoadedRun]) -> tuple[tuple[Variant, ...], list[str]]:
    """Runs -> variants, and remarks on runs that do the same twice."""
    notes = []
    members: dict[tuple[str, str], dict[int, LoadedRun]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        flat = flatten(run.config.model_dump(mode="json"))
        flat = {key: value for key, value in flat.items() if not {key, key.split(".")[0]} & set(NOT_SETTINGS)}
        if run.start_weights:
            flat[names.START_WEIGHTS] = run.start_weights
        if run.is_start:  # nothing was trained: the weights are all that tells one start from another
            flat = {key: value for key, value in flat.items() if key.startswith("policy.")}
        others = {key: value for key, value in flat.items() if key.split(".")[0] not in METHOD_SETTINGS}
        trained = {} if run.is_start else acting(run.config)
        alike = json.dumps({**others, **trained, "is_start": run.is_start}, sort_keys=True)
        key = (alike, run.unfinished)  # numbers of unfinished runs are not pooled with those of whole ones
        settings.setdefault(alike, flat)
        earlier = members.setdefault(key, {}).get(0 if run.is_start else run.config.seed)
        if earlier is None:
            members[key][0 if run.is_start else run.config.seed] = run
        elif run.evaluations and not earlier.evaluations:
            members[key][earlier.config.seed if not run.is_start else 0] = run
            notes.append(
                f"{earlier.name} is left out: {run.name} has the same configuration and seed and was evaluated"
            )
        else:
            notes.append(f"{run.name} is left out: {earlier.name} has the same configuration and seed")
    of_settings: dict[str, list[LoadedRun]] = {}
    for (alike, _), of_seed in members.items():
        of_settings.setdefault(alike, []).extend(of_seed.values())
    labels = names.labels(of_settings, settings)
    variants = []
    for (alike, unfinished), of_seed in members.items():
        first = next(iter(of_seed.values()))
        mark = f" [{unfinished}]" if unfinished else ""  # wherever its numbers are, and in no method's role
        variants.append(
            Variant(
                label=f"{labels[alike]}{mark}",
                method="start" if first.is_start else f"{name_of(first.config)}{mark}",
                policy=first.config.policy.name,
                runs=tuple(of_seed[seed] for seed in sorted(of_seed)),
                settings=settings[alike],
            )
        )
    variants.sort(key=lambda v: (not v.is_start, v.policy, v.method != "grpo", v.method != "gcpo", v.label))
    return tuple(variants), notes


def _began_from(run: LoadedRun, start: LoadedRun) -> bool:
    """Whether what is recorded says so."""
    if not run.start_weights:
        return False
    return run.start_weights == start.start_weights or start.name == start_name(run.config, run.start_weights)


def _may_be_start_of(run: LoadedRun, start: LoadedRun) -> bool:
    """Whether nothing that is recorded speaks against it."""
    if run.start_weights and start.start_weights:
        return False
    mine, other = run.config.policy, start.config.policy
    return (mine.name, mine.weights, mine.random_init) == (other.name, other.weights, other.random_init)


def _relative(message: str, path: Path) -> str:
    """Error texts name whole paths; a report that is sent around names the run's files only."""
    return message.replace(f"{path}/", "").replace(f"{path.resolve()}/", "")
