"""The claims ledger says what the runs say: planted truths are found, planted falsehoods contradicted, silence kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gcpo_bench import runs
from gcpo_bench.methods import CRITICAL, METHODS
from gcpo_bench.reports.claims import CLAIMS, Finding, decided, judge_all
from gcpo_bench.reports.load import load
from gcpo_bench.reports.page import build
from gcpo_bench.reports.paper import RELEASED
from gcpo_bench.reports.paper_tables import paper_table, unlike_released
from gcpo_bench.reports.study import components

from .run_factory import make_run, make_study, rewrite_metrics

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


def test_a_variant_is_off_the_front_where_another_is_proven_better_not_where_it_scored_more(tmp_path: Path) -> None:
    """GRPO's steps are the shortest."""

    def front(root: Path, skills: dict[str, float]) -> dict[str, bool]:
        record = components(load(runs_of(root, skills))).data["variants"]
        return {row["variant"]: row["pareto"] for row in record}

    assert front(tmp_path / "far", {"grpo": 0.9, "gcpo": 0.4}) == {"grpo": True, "gcpo": False}
    close = front(tmp_path / "close", {"grpo": 0.62, "gcpo": 0.6})
    assert close == {"grpo": True, "gcpo": True}


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
        return {"selection": {"selectors": [{**item, "ratio": ratio} for item in CRITICAL]}}

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


@pytest.mark.parametrize(("longer", "status"), [(0.001, "supported"), (0.05, "contradicted"), (0.02, "not decided")])
def test_the_overhead_is_that_of_paired_steps(tmp_path: Path, longer: float, status: str) -> None:
    paths = runs_of(tmp_path, {"gcpo": 0.5}, seeds=3)
    for seed, path in enumerate(paths):
        save_pairs(runs.open_run(path), longer, seed)
    found = by_name(paths)["one-percent-overhead"]
    assert found.status == status
    assert "10 pairs of steps in each of 3 runs; the bound is 2 %" in found.words


def save_pairs(run: runs.Run, longer: float, seed: int = 0) -> None:
    """Steps that take a fifth more or less from pair to pair, as on a busy machine, and 0.1 % inside a pair."""
    generator = np.random.default_rng(seed)
    seconds = generator.uniform(0.8, 1.2, 10)
    noise = np.exp(generator.normal(0, 0.001, 10))
    pairs = [
        {"selecting_s": s * (1 + longer) * e, "all_tokens_s": s, "selection_s": 0.004 * s}
        for s, e in zip(seconds.tolist(), noise.tolist(), strict=True)
    ]
    run.save_analysis("overhead", {"model": "scenes-12", "pairs": pairs}, {})


def test_times_of_phases_alone_say_nothing_about_the_overhead(tmp_path: Path) -> None:
    found = by_name(runs_of(tmp_path, {"gcpo": 0.5}))["one-percent-overhead"]
    assert (found.status, found.words) == ("not tested", "no run has timed it (gcpo-bench analyze overhead RUN)")


def studies_of(root: Path, coarse: list[float], *, methods: tuple[str, ...] = ("gcpo",), seeds: int = 3) -> list[Path]:
    paths = runs_of(root, dict.fromkeys(methods, 0.6), seeds=seeds)
    for number, path in enumerate(paths):
        save_study(runs.open_run(path), coarse, seed=number)
    return paths


REACH = (144, 96, 48)
"""Tokens that can change after noise in each third of 144 tokens: its own and those that follow."""


@pytest.mark.parametrize(
    ("per_token", "status"),
    [((3e-3, 1e-3, 1e-3), "supported"), ((1e-3, 2e-3, 2e-3), "contradicted"), ((2e-3, 2e-3, 2e-3), "not decided")],
)
def test_the_first_tokens_must_change_more_than_their_many_successors_explain(
    tmp_path: Path, per_token: tuple[float, ...], status: str
) -> None:
    """The last case moves the image three times as far by the first third as by the last: as any causal model does."""
    found = by_name(studies_of(tmp_path, [each * reach for each, reach in zip(per_token, REACH, strict=True)]))
    assert found["initial-tokens-are-global"].status == status
    assert "for each 100 tokens that could change" in found["initial-tokens-are-global"].words


def test_a_pair_with_equally_many_successors_is_compared_as_it_is(tmp_path: Path) -> None:
    paths = studies_of(tmp_path, [0.05, 0.05, 0.05])
    for number, path in enumerate(paths):
        save_study(runs.open_run(path), [0.30, 0.10], name="perturb-pair", successors=20, seed=number)
    found = by_name(paths)["initial-tokens-are-global"]
    assert found.status == "supported"
    assert "noise in tokens 0 to 47 changes the coarse image by +20." in found.words
    assert "points more than noise in tokens 48 to 95, 12 prompts, 3 runs" in found.words


def test_the_same_study_again_makes_nothing_surer(tmp_path: Path) -> None:
    """Ten runs with one study between them show its 12 prompts, not 120."""

    def width(count: int) -> tuple[float, str]:
        paths = runs_of(tmp_path / str(count), {"gcpo": 0.6}, seeds=count)
        for path in paths:
            save_study(runs.open_run(path), [0.3, 0.2, 0.1], seed=7)
        found = by_name(paths)["initial-tokens-are-global"]
        low, high = map(float, found.words.split("[")[1].split("]")[0].replace("−", "-").split(", "))
        return high - low, found.words

    few, many = width(2), width(10)
    assert many[0] >= 0.9 * few[0]
    assert "12 prompts, 10 runs" in many[1]


def test_methods_are_judged_one_at_a_time_and_one_run_is_no_method(tmp_path: Path) -> None:
    paths = studies_of(tmp_path / "both", [0.6, 0.1, 0.1], methods=("gcpo", "grpo"), seeds=2)
    found = [f for f in judge_all(load(paths), "scenes") if f.claim == "initial-tokens-are-global"]
    assert {f.setting for f in found} == {"gcpo", "grpo"}
    alone = by_name(studies_of(tmp_path / "one", [0.6, 0.1, 0.1], seeds=1))["initial-tokens-are-global"]
    assert alone.status == "not tested"
    assert "one run of gcpo is about one checkpoint" in alone.words


def test_studies_that_were_made_otherwise_are_not_mixed(tmp_path: Path) -> None:
    paths = studies_of(tmp_path, [0.6, 0.1, 0.1])
    save_study(runs.open_run(paths[0]), [0.6, 0.1])
    found = by_name(paths)["initial-tokens-are-global"]
    assert (found.status, found.words) == (
        "not tested",
        "the studies of gcpo differ in their noise, ranges or what followed",
    )


def test_the_claims_on_studies_count_in_the_family(tmp_path: Path) -> None:
    paths = studies_of(tmp_path, [0.6, 0.1, 0.1])
    for seed, path in enumerate(paths):
        save_pairs(runs.open_run(path), 0.001, seed)
    found = by_name(paths)
    assert all(found[name].p_for < 0.05 for name in ("one-percent-overhead", "initial-tokens-are-global"))


def finding(p_for: float, p_against: float = 1.0) -> Finding:
    return Finding(claim="c", text="", status="not tested", p_for=p_for, p_against=p_against)


def test_the_smaller_p_is_doubled_and_adjusted_by_holm() -> None:
    """Doubled 0.016, 0.030, 0.040 and Holm: 3 x 0.016 = 0.048; 2 x 0.030 = 0.060, and then nothing more counts."""
    statuses = [f.status for f in decided([finding(0.020), finding(0.008), finding(0.5, 0.015)])]
    assert statuses == ["not decided", "supported", "not decided"]
    assert [f.status for f in decided([finding(0.030)])] == ["not decided"]  # 0.06, though 0.030 alone is below 0.05
    assert [f.status for f in decided([finding(0.9, 0.02), finding(math.nan)])] == ["contradicted", "not tested"]


def test_a_claim_of_several_statements_pays_for_the_choice_of_the_one_against_it(tmp_path: Path) -> None:
    """Supported by the least certain of them; against it speaks the most certain one, times their number."""
    skills = {"gcpo-no-daw": 0.7, "gcpo-init": 0.5, "gcpo-struct": 0.6, "gcpo-sim": 0.78}
    found = by_name(runs_of(tmp_path, skills))["union-beats-parts"]
    assert len(found.outcomes) == 3
    assert found.p_for == max(outcome.p_for for outcome in found.outcomes)
    assert found.p_against == 3 * min(outcome.p_against for outcome in found.outcomes) < 1


# ---------------------------------------------------------------- who plays which part


def restricted(method: str) -> dict[str, object]:
    """What `ablate --components init,struct,daw` and presets with selectors of one's own leave in a run."""
    return {"selection": {"selectors": CRITICAL[:2]}, "weighting": METHODS[method].settings["weighting"]}


def test_a_run_that_selects_something_else_plays_no_part_whatever_it_is_called(tmp_path: Path) -> None:
    paths = runs_of(tmp_path, {"grpo": 0.5, "gcpo-init": 0.5, "gcpo-struct": 0.5})
    for method in ("gcpo", "gcpo-no-daw"):
        paths += runs_of(tmp_path, {method: 0.9}, overrides=restricted(method))
    data = load(paths)
    assert {v.label for v in data.variants} == {
        "grpo",
        "gcpo-init",
        "gcpo-struct",
        "gcpo-no-daw[init+struct]",
        "gcpo[init+struct]",
    }
    found = {f.claim: f for f in judge_all(data, "scenes")}
    assert found["critical-beats-all"].words == "there is no run of gcpo"
    assert found["weight-helps"].status == "not tested"
    fragment = paper_table(data)
    assert [row[-1] for row in fragment.data["ladder"]][2:] == ["–", "–", "–"]
    assert [row[1] for row in fragment.data["main"] if row[0].startswith("scenes")] == ["grpo†‡"]
    ladder = fragment.latex.split("label{tab:ladder}")[1]
    rows = [line for line in ladder.splitlines() if r"\checkmark" in line]
    assert [row.removesuffix(r" \\").endswith("--") for row in rows] == [False, False, True, True, True]


def test_a_run_plays_the_part_that_its_settings_say(tmp_path: Path) -> None:
    """`--method gcpo -o weighting.name=uniform` is the three sets without the weight."""
    paths = runs_of(tmp_path, {"gcpo": 0.9}, overrides={"weighting": {"name": "uniform", "clip": 0.1}})
    paths += runs_of(tmp_path, {"remaining": 0.4})
    found = by_name(paths)
    assert found["critical-beats-remaining"].status == "supported"
    assert found["critical-beats-remaining"].words.startswith("gcpo-no-daw − remaining")


def test_runs_that_train_alike_are_one_variant_whatever_they_are_called(tmp_path: Path) -> None:
    paths = runs_of(tmp_path, {"gcpo": 0.6}, seeds=1, overrides={"weighting": {"name": "uniform"}})
    paths += [make_run(tmp_path, "other", method="gcpo-no-daw", seed=1, **SIZE).path]  # type: ignore[arg-type]
    (variant,) = load(paths).variants
    assert (variant.label, variant.seeds) == ("gcpo-no-daw", (0, 1))


def test_fewer_random_tokens_are_not_as_many(tmp_path: Path) -> None:
    """28 % of critical tokens against 9 % at random: nothing about which tokens are chosen."""
    fewer = {"selection": {"selectors": [{"name": "random", "ratio": 0.1}]}}
    paths = runs_of(tmp_path, {"gcpo-no-daw": 0.9}) + runs_of(tmp_path, {"random": 0.4}, overrides=fewer)
    found = by_name(paths)["critical-beats-random"]
    assert (found.status, found.words) == ("not tested", "there is no run of random")


def test_shares_that_were_trained_on_must_agree_where_a_claim_is_about_as_many(tmp_path: Path) -> None:
    paths = runs_of(tmp_path, {"gcpo-no-daw": 0.9, "random": 0.4})
    for path in paths[3:]:
        rewrite_metrics(path, lambda row: row.update({"tokens/selected_fraction": 0.09}))
    found = by_name(paths)["critical-beats-random"]
    assert found.status == "not tested"
    assert found.words == "gcpo-no-daw trains on 29.0 % of the tokens, random on 9.0 %; the claim is about as many"


def test_the_papers_rows_are_those_of_its_ratio(tmp_path: Path) -> None:
    few = {"selection": {"selectors": [{**item, "ratio": 0.05} for item in CRITICAL]}}
    uneven = {"selection": {"selectors": [{**CRITICAL[0], "ratio": 0.2}, *CRITICAL[1:]]}}
    paths = runs_of(tmp_path / "a", {"gcpo": 0.9}, overrides=few)
    paths += runs_of(tmp_path / "b", {"gcpo": 0.9}, overrides=uneven)
    data = load(paths)
    assert {v.label for v in data.variants} == {"gcpo (5 % a set)", "gcpo (init 20 %, struct 10 %, sim 10 %)"}
    assert [row[-1] for row in paper_table(data).data["ladder"]] == ["–"] * 5


def test_two_runs_for_one_row_are_both_told(tmp_path: Path) -> None:
    bold = {"loss": {"beta": 0.1}}
    paths = runs_of(tmp_path / "a", {"gcpo": 0.9}) + runs_of(tmp_path / "b", {"gcpo": 0.5}, overrides=bold)
    cell = paper_table(load(paths)).data["ladder"][-1][-1]
    assert cell.count("gcpo (loss.beta=0.01): ") == cell.count("; gcpo (loss.beta=0.1): ") == 1


def test_a_line_over_the_ratio_is_of_variants_that_differ_in_it_alone(tmp_path: Path) -> None:
    few = {**SIZE, "prompts_per_task": 4}
    for beta in (0.01, 0.1):
        for ratio in (0.05, 0.1):
            sets = {"selectors": [{**item, "ratio": ratio} for item in CRITICAL]}
            changed = {"selection": sets, "loss": {"beta": beta}}
            make_run(tmp_path, f"gcpo-{beta}-{ratio}", overrides=changed, **few)  # type: ignore[arg-type]
        make_run(tmp_path, f"grpo-{beta}", method="grpo", overrides={"loss": {"beta": beta}}, **few)  # type: ignore[arg-type]
    html = components(load(sorted(tmp_path.iterdir()))).html
    assert "Lines: gcpo (loss.beta=0.01), gcpo (loss.beta=0.1)." in html
    assert "the dashed line is GRPO" not in html  # there are two


def test_how_signals_are_made_is_a_setting_of_the_group(tmp_path: Path) -> None:
    """Sets chosen by code vectors are compared with each other; GRPO looks at no signal and stands beside both."""
    paths = runs_of(tmp_path / "a", {"grpo": 0.5, "gcpo": 0.8, "gcpo-no-daw": 0.8})
    for method, skill in {"gcpo": 0.3, "gcpo-no-daw": 0.3}.items():
        changed = {"selection": {**METHODS[method].settings["selection"], "similarity_embedding": "codebook"}}
        paths += runs_of(tmp_path / "b", {method: skill}, overrides=changed)
    found = {(f.claim, f.setting): f for f in judge_all(load(paths), "scenes")}
    projected, codebook = (f"selection.similarity_embedding={name}" for name in ("projected", "codebook"))
    assert found["critical-beats-all", projected].status == "supported"
    assert found["critical-beats-all", codebook].status == "contradicted"
    assert "projected" not in found["weight-helps", codebook].words


def save_study(
    run: runs.Run,
    coarse: list[float],
    prompts: int = 12,
    *,
    name: str = "perturb",
    successors: int | None = None,
    seed: int = 0,
) -> None:
    """Ranges of 48 tokens of 144; without `successors` as studies were written that drew anew all that follow."""
    noise = np.random.default_rng(seed).normal(0, 0.01, (len(coarse), prompts))
    ranges = [
        {
            "first": 48 * index,
            "last": 48 * index + 47,
            **({} if successors is None else {"successors": successors}),
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
        "prompts": [f"<script>x</script>{number}" for number in range(prompts)],
        "tags": [],
        "ranges": ranges,
    }
    run.save_analysis(name, record, {"images": np.zeros((len(coarse) + 1, 2, 48, 48, 3), np.uint8)})


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
