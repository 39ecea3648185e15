"""What an evaluation leaves behind, written and read back.

<out>/
  samples.jsonl    one object an image: values, reason, detections
  scores.json      metrics and identity; written last, so its presence means that all is there
  results.jsonl    the same in GenEval's own format, for that benchmark
  prompts.jsonl    id, text and metadata of each prompt, where observations are kept that can be judged again
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gcpo_bench import __version__
from gcpo_bench.addresses import JUDGING, code_digest
from gcpo_bench.datasets import Prompt
from gcpo_bench.environment import PACKAGES, package_version
from gcpo_bench.errors import CorruptDataError, RunError
from gcpo_bench.files import check_files, checksum
from gcpo_bench.prompt_sets import SETS
from gcpo_bench.runs import Run, read_json, read_jsonl, write_json, write_text

from .types import Benchmark, Detection, Evaluation, Metric, SampleScore

MEND = "evaluate the run again; its images are kept"
SUMMED_UP = ("samples.jsonl", "prompts.jsonl")
"""Files whose checksums scores.json holds."""


def save(
    out: Path,
    benchmark: Benchmark,
    samples: Sequence[SampleScore],
    identity: Mapping[str, Any],
    notes: tuple[str, ...] = (),
    *,
    unanswered: int = 0,
) -> Evaluation:
    (out / "scores.json").unlink(missing_ok=True)  # never beside samples that it does not sum up
    write_text(out / "samples.jsonl", _jsonl(asdict(sample) for sample in samples))
    evaluation = Evaluation(
        benchmark=benchmark.name,
        version=benchmark.version,
        metrics=benchmark.summarize(samples),
        identity=identity,
        made_with=made_with(benchmark.name),
        notes=notes,
        unanswered=unanswered,
        headline=headline(benchmark),
        panel=tuple(getattr(getattr(benchmark, "panel", None), "names", ())),
    )
    if not evaluation.metrics:
        why = samples[0].unscored or samples[0].reason
        raise CorruptDataError(
            f"{benchmark.name}: none of the {len(samples)} images could be scored; the first: {why}",
            hint=f"look at {out / 'samples.jsonl'} for the reason of each",
        )
    summed_up = (out / name for name in SUMMED_UP)
    checksums = {path.name: checksum(path) for path in summed_up if path.exists()}
    write_json(out / "scores.json", {**_to_json(evaluation), "checksums": checksums})
    return evaluation


def made_with(benchmark: str) -> dict[str, Any]:
    """Versions and code of this process, and the digest of the published prompts, which is checked at each reading."""
    versions = {name: version for name in PACKAGES if (version := package_version(name))}
    ours = {"gcpo-bench": __version__, "code": code_digest(JUDGING)}
    record: dict[str, Any] = {**ours, "python": platform.python_version(), **versions}
    published = SETS.get(benchmark)
    if published is not None and published.sha256:
        record["prompts"] = {"set": published.name, "sha256": published.sha256, "source": published.source}
    return record


def headline(benchmark: Benchmark) -> str:
    """The value of an image that the overall score is the mean of; "correct" where a benchmark names none."""
    return str(getattr(benchmark, "headline", "correct"))


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def known(out: Path, identity: Mapping[str, Any]) -> Evaluation | None:
    """What an earlier call left, if it is whole, of the same identity and judged by the same code.

    A damaged file is made again, and so is what an earlier version left that did not say by which code it was judged.
    Nor is it enough where images could not be scored: they may have been mended, or what failed for a while may work.
    """
    try:
        found = load(out)
    except (RunError, CorruptDataError):
        return None
    is_whole = (out / "samples.jsonl").exists() and not any(metric.unscored for metric in found.metrics.values())
    is_same = found.identity == identity and found.made_with.get("code") == code_digest(JUDGING)
    return found if is_whole and is_same and not found.unanswered else None


def load_evaluation(run: Run, benchmark: str) -> Evaluation:
    """The scores of a finished evaluation. Raises RunError where there is none, CorruptDataError for a damaged file."""
    return load(run.evaluation_dir(benchmark))


def load_samples(run: Run, benchmark: str) -> list[SampleScore]:
    """Every image's score, prompt by prompt. Raises as `load_evaluation` does."""
    return load_all_samples(run.evaluation_dir(benchmark))


def load(out: Path) -> Evaluation:
    """The scores in an evaluation's folder; raises as `load_evaluation` does."""
    path = _stored(out, "scores.json")
    record = read_json(path, MEND)
    try:
        check_files(out, record.pop("checksums", {}), MEND)
        metrics = {name: _metric(fields) for name, fields in record.pop("metrics").items()}
        notes, panel = (tuple(record.pop(name, ())) for name in ("notes", "panel"))
        return Evaluation(metrics=metrics, notes=notes, panel=panel, **record)
    except (TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error


def load_all_samples(out: Path) -> list[SampleScore]:
    """Every image's score in an evaluation's folder; raises as `load_evaluation` does."""
    path = _stored(out, "samples.jsonl")
    try:
        return [_sample(record) for record in read_jsonl(path, forgive_torn_tail=False)]
    except (TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error


def _stored(out: Path, file: str) -> Path:
    path = out / file
    if not path.is_file():
        raise RunError(f"{out.parent.parent} has no {file} of benchmark {out.name!r}", hint="evaluate the run first")
    return path


def _damaged(path: Path, error: Exception) -> CorruptDataError:
    return CorruptDataError(f"{path} is damaged: {error}", hint="delete it and evaluate the run again")


def _sample(record: dict[str, Any]) -> SampleScore:
    detections = tuple(Detection(**{**item, "box": tuple(item["box"])}) for item in record.pop("detections"))
    return SampleScore(**record, detections=detections)


def _metric(fields: Mapping[str, Any]) -> Metric:
    return Metric(**{**fields, "stderr": math.nan if fields["stderr"] is None else fields["stderr"]})


def _to_json(evaluation: Evaluation) -> dict[str, Any]:
    record = asdict(evaluation)
    for fields in record["metrics"].values():
        if math.isnan(fields["stderr"]):  # JSON has no NaN
            fields["stderr"] = None
    return record


def save_files(out: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        write_text(out / name, text)


def save_prompts(out: Path, prompts: Sequence[Prompt]) -> None:
    rows = ({"id": prompt.id, "text": prompt.text, "metadata": dict(prompt.metadata)} for prompt in prompts)
    write_text(out / "prompts.jsonl", _jsonl(rows))


def load_prompts(out: Path) -> dict[str, Prompt]:
    """Id -> prompt of a stored evaluation; raises as `load_evaluation` does."""
    path = _stored(out, "prompts.jsonl")
    try:
        prompts = [Prompt(**record) for record in read_jsonl(path, forgive_torn_tail=False)]
    except TypeError as error:
        raise _damaged(path, error) from error
    return {prompt.id: prompt for prompt in prompts}
