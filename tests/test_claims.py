"""The claims ledger says what the runs say: planted truths are found, planted falsehoods contradicted, silence kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gcpo_bench import runs
from gcpo_bench.reports.claims import CLAIMS, Finding, judge_all
from gcpo_bench.reports.load import load
from gcpo_bench.reports.page import build
from gcpo_bench.reports.paper import RELEASED
from gcpo_bench.reports.study import paper_table, unlike_released

from .run_factory import make_run, make_study

SIZE = {"prompts_per_task": 40, "images_per_prompt": 4, "maps": False, "draw": False, "steps": 4}


def runs_of(root: Path, skills: dict[str, float], seeds: int = 3, **more: object) -> list[Path]:
    return [
        make_run(root, f"{method}-{seed}", method=method, seed=seed, skill=skill, **SIZE, **more).path  # type: ignore[arg-type]
        for method, skill in skills.items()
        for seed in range(seeds)
    ]


def by_name(paths: list[Path]) -> dict[str, Finding]:
    return {finding.claim: finding for finding in judge_all(load(paths), "scenes")}


def test_a_planted_difference_supports_a_claim_and_the_opposite_contradicts_it(tmp_path: Path) -> None:
    found = by_name(runs_of(tmp_path, {"grpo": 0.5, "gcpo": 0.8, "gcpo-no-daw": 0.9, "remaining": 0.6}))
    assert found["critical-beats-all"].status == "supported"
    assert found["critical-beats-remaining"].status == "supported"
    assert found["weight-helps"].status == "contradicted"
    assert found["critical-beats-all"].outcomes[0].interval is not None
    assert "gcpo − grpo: +" in found["critical-beats-all"].words


def test_a_conjunction_is_contradicted_by_one_part_and_supported_only_by_all(tmp_path: Path) -> None:
    parts = {"gcpo-no-daw": 0.7, "gcpo-init": 0.5, "gcpo-struct": 0.5}
    assert by_name(runs_of(tmp_path / "a", {**parts, "gcpo-sim": 0.5}))["union-beats-parts"].status == "supported"
    assert by_name(runs_of(tmp_path / "b", {**parts, "gcpo-sim": 0.95}))["union-beats-parts"].status == "contradicted"
    assert by_name(runs_of(tmp_path / "c", {**parts, "gcpo-sim": 0.7}))["union-beats-parts"].status == "not decided"


def test_one_seed_and_missing_runs_test_nothing_and_say_why(tmp_path: Path) -> None:
    found = by_name(runs_of(tmp_path, {"grpo": 0.2, "gcpo": 0.9}, seeds=1))
    assert found["critical-beats-all"].status == "not tested"
    assert "one training seed" in found["critical-beats-all"].words
    assert found["weight-helps"].words == "there is no run of gcpo-no-daw"
    assert set(found) == {claim.name for claim in CLAIMS}


def test_the_knee_needs_a_gain_below_it_and_none_above(tmp_path: Path) -> None:
    def study(root: Path, skills: dict[float, float]) -> Finding:
        paths = [
            make_run(root, f"gcpo-{ratio}-{seed}", seed=seed, skill=skill, overrides=at(ratio), **SIZE).path  # type: ignore[arg-type]
            for ratio, skill in skills.items()
            for seed in range(3)
        ]
        return by_name(paths)["ten-percent-is-the-knee"]

    def at(ratio: float) -> dict[str, object]:
        names = ("initial", "structural", "diverse")
        return {"selection": {"selectors": [{"name": name, "ratio": ratio} for name in names]}}

    knee = study(tmp_path / "knee", {0.05: 0.4, 0.1: 0.7, 0.15: 0.55})
    assert knee.status == "supported"
    assert "gcpo (10 % a set) − gcpo (5 % a set)" in knee.words
    assert study(tmp_path / "slope", {0.05: 0.4, 0.1: 0.6, 0.15: 0.9}).status == "contradicted"


def test_settings_other_than_the_method_are_judged_apart(tmp_path: Path) -> None:
    better = runs_of(tmp_path / "a", {"grpo": 0.5, "gcpo": 0.8}, overrides={"loss": {"beta": 0.1}})
    worse = runs_of(tmp_path / "b", {"grpo": 0.8, "gcpo": 0.5})
    found = [f for f in judge_all(load([*better, *worse]), "scenes") if f.claim == "critical-beats-all"]
    assert {f.setting: f.status for f in found} == {"loss.beta=0.1": "supported", "loss.beta=0.01": "contradicted"}


def test_claims_that_hold_by_chance_are_rare_in_the_whole_ledger(tmp_path: Path) -> None:
    """With no difference anywhere the family-wise error is 5 %; 10 studies give at most 3 false ones (p < 0.002)."""
    generator = np.random.default_rng(0)
    false = 0
    for number in range(10):
        root = tmp_path / str(number)
        paths = []
        for method in ("grpo", "gcpo", "gcpo-no-daw", "remaining", "random", "grpo-daw"):
            for _ in range(3):
                seed = int(generator.integers(1_000_000))
                few = {**SIZE, "prompts_per_task": 10}
                run = make_run(root, f"{method}-{seed}", method=method, seed=seed, skill=0.6, **few)  # type: ignore[arg-type]
                config = run.config.model_copy(update={"seed": len(list(root.glob(f"{method}-*"))) - 1})
                run.replace_config(config)
                paths.append(run.path)
        outcome = judge_all(load(paths), "scenes")
        false += any(f.status in ("supported", "contradicted") for f in outcome if f.outcomes)
    assert false <= 3


def test_the_overhead_is_read_from_inside_the_runs(tmp_path: Path) -> None:
    paths = runs_of(tmp_path, {"gcpo": 0.5}, seeds=3)
    for path in paths:
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line |= {"time/selection_s": 0.05, "time/step_s": 1.05}
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = by_name(paths)["one-percent-overhead"]
    assert found.status == "contradicted"
    assert "5.00 % of the rest of a step" in found.words


@pytest.mark.parametrize(("first", "status"), [(0.5, "supported"), (0.01, "contradicted")])
def test_the_perturbation_study_decides_about_the_first_tokens(tmp_path: Path, first: float, status: str) -> None:
    run = make_run(tmp_path, "gcpo-0", **SIZE)  # type: ignore[arg-type]
    save_study(run, [first, 0.1, 0.1])
    assert by_name([run.path])["initial-tokens-are-global"].status == status


def save_study(run: runs.Run, coarse: list[float], prompts: int = 12) -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, (len(coarse), prompts))
    ranges = [
        {
            "first": 48 * index,
            "last": 48 * index + 47,
            "coarse_by_prompt": (value + noise[index]).tolist(),
            "fine_by_prompt": [value] * prompts,
            "later_by_prompt": [None if index == len(coarse) - 1 else 0.2] * prompts,
            "reward_by_prompt": [0.0] * prompts,
        }
        for index, value in enumerate(coarse)
    ]
    record = {
        "noise": "uniform",
        "step": 4,
        "grid": [12, 12],
        "prompts": ["<script>x</script>"] * prompts,
        "tags": [],
        "ranges": ranges,
    }
    run.save_analysis("perturb", record, {"images": np.zeros((len(coarse) + 1, 2, 48, 48, 3), np.uint8)})


def test_the_study_sections_show_what_was_found_in_every_format(tmp_path: Path) -> None:
    paths = runs_of(tmp_path, {"grpo": 0.5, "gcpo": 0.8})
    save_study(runs.open_run(paths[0]), [0.3, 0.1])
    files = build(load(paths))
    page = files["report.html"]
    assert "<script>x</script>" not in page
    assert "&lt;script&gt;x" in page
    assert 'class="badge supported"' in page
    assert "| **supported** |" in files["report.md"]
    record = json.loads(files["report.json"])
    assert [c["status"] for c in record["claims"]["claims"] if c["claim"] == "critical-beats-all"] == ["supported"]
    assert len(record["perturbation"]["studies"]) == 1
    assert record["components"]["variants"][1]["pareto"] is True
    assert r"Janus-Pro-7B & grpo & 87 & 71 & 94 & 92 \\" in files["report.tex"]
    assert "critical-beats-all,supported" in files["report-claims.csv"]


@pytest.mark.parametrize("damage", ['{"ranges": 1', "[]"])
def test_a_damaged_analysis_is_named(tmp_path: Path, damage: str) -> None:
    paths = runs_of(tmp_path, {"grpo": 0.5}, seeds=2)
    save_study(runs.open_run(paths[0]), [0.3, 0.1])
    (paths[0] / "analyses/perturb.json").write_text(damage)
    assert any("grpo-0 is left out: analyses/perturb.json is damaged" in note for note in load(paths).notes)


def test_measured_rows_say_where_they_leave_the_released_settings(tmp_path: Path) -> None:
    data = load(make_study(tmp_path, methods=("grpo", "gcpo"), steps=2, prompts_per_task=2, maps=False))
    fragment = paper_table(data)
    assert "model scenes-12 (janus-pro, llamagen)" in fragment.markdown
    assert "‡" in fragment.html

    gcpo = next(variant for variant in data.variants if variant.method == "gcpo")
    released = replace(gcpo, policy="janus-pro-1b", settings={**gcpo.settings, **RELEASED["janus-pro"]})
    assert unlike_released(released) == []
    bolder = replace(released, settings={**released.settings, "loss.beta": 0.1})
    assert unlike_released(bolder) == ["loss.beta 0.1 (0.01)"]
