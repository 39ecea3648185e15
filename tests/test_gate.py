"""The gate on itself: identical runs pass, a proven loss fails, too little data is inconclusive; in every format."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.methods import CRITICAL
from gcpo_bench.reports import baseline as baselines
from gcpo_bench.reports.baseline import Entry, entries
from gcpo_bench.reports.gate import Check, State, gate, overall
from gcpo_bench.reports.gate_formats import SUMMARY_BYTES, junit, markdown, record, words, workflow_commands
from gcpo_bench.reports.load import load
from gcpo_bench.reports.measures import Measure
from gcpo_bench.reports.statistics import Interval

from .conftest import Cli
from .run_factory import HOSTILE, TASKS, make_run, rewrite_metrics

BIG = {"prompts_per_task": 48, "images_per_prompt": 1, "maps": False, "steps": 40}


def study(root: Path, skill: float, seeds: int = 2, **more: object) -> list[Entry]:
    options = {**BIG, **more}
    paths = [make_run(root, f"gcpo-{seed}", seed=seed, skill=skill, **options).path for seed in range(seeds)]  # type: ignore[arg-type]
    return entries(load(paths))


def test_an_identical_run_passes(tmp_path: Path) -> None:
    old = study(tmp_path / "a", 0.7)
    new = study(tmp_path / "b", 0.7)
    checks = gate(old, new, margins={"scenes": 0.015}, performance=0.1)
    assert [check.state for check in checks] == ["pass", "pass", "pass"]
    assert overall(checks) == "pass"


def test_a_large_loss_is_a_proven_regression_with_the_prompts_that_lost_most(tmp_path: Path) -> None:
    checks = gate(study(tmp_path / "a", 0.8), study(tmp_path / "b", 0.4), margins={})
    assert overall(checks) == "regression"
    losses = [difference for _, difference in checks[0].worst]
    assert losses == sorted(losses)
    assert losses[0] < 0


def test_a_gain_is_no_regression(tmp_path: Path) -> None:
    assert overall(gate(study(tmp_path / "a", 0.4), study(tmp_path / "b", 0.8), margins={})) == "pass"


def test_three_prompts_are_inconclusive_even_if_nothing_changed(tmp_path: Path) -> None:
    old = study(tmp_path / "a", 0.7, prompts_per_task=1)
    thinned = [
        replace(entry, scores={seed: dict(list(table.items())[:3]) for seed, table in entry.scores.items()})
        for entry in old
    ]
    (check,) = gate(thinned, thinned, margins={"scenes": 0.015})
    assert check.state == "inconclusive"
    assert check.interval is not None
    assert check.interval.n == 3


def test_other_prompts_settings_versions_or_start_weights_are_not_comparable(tmp_path: Path) -> None:
    old = study(tmp_path / "a", 0.7, seeds=2)
    for key, value in (("prompts_digest", "other"), ("version", "9"), ("guidance_scale", 2.0)):
        changed = [replace(entry, identity={**entry.identity, key: value}) for entry in old]
        (check,) = gate(old, changed, margins={})
        assert check.state == "not comparable"
        assert key in check.reason
    changed = [replace(entry, settings={**entry.settings, "policy.start_weights": "xxh3:1"}) for entry in old]
    assert "policy.start_weights" in gate(old, changed, margins={})[0].reason
    assert "no such run" in gate(old, [], margins={})[0].reason
    assert overall([]) == "not comparable"


def test_an_option_that_is_newer_than_the_baseline_counts_as_its_default(tmp_path: Path) -> None:
    new = study(tmp_path / "a", 0.7, seeds=2)
    old = [replace(entry, settings={k: v for k, v in entry.settings.items() if k != "policy.dtype"}) for entry in new]
    assert gate(old, new, margins={})[0].state == "pass"
    changed = [replace(entry, settings={**entry.settings, "policy.dtype": "bfloat16"}) for entry in new]
    (check, *_) = gate(old, changed, margins={})
    assert check.state == "not comparable"
    assert "policy.dtype null / bfloat16" in check.reason


def test_a_slower_phase_is_found_and_a_faster_machine_is_not(tmp_path: Path) -> None:
    old = study(tmp_path / "a", 0.7)

    def scaled(update: float, machine: float, root: Path) -> list[Entry]:
        def change(row: dict[str, Any]) -> None:
            extra = row["time/update_s"] * (update - 1)
            row["time/update_s"] += extra
            row["time/step_s"] += extra
            for key in [key for key in row if key.startswith("time/")]:
                row[key] *= machine

        paths = [Path(shutil.copytree(source, root / source.name)) for source in (tmp_path / "a").glob("gcpo-*")]
        for path in paths:
            rewrite_metrics(path, change)
        return entries(load(paths))

    slower = {c.name: c.state for c in gate(old, scaled(1.5, 1.0, tmp_path / "s"), margins={}, performance=0.1)}
    assert slower["scenes-12 gcpo: update / rollout"] == "regression"
    machine = gate(old, scaled(1.0, 3.0, tmp_path / "m"), margins={}, performance=0.1)
    assert overall(machine) == "pass"


def version(generator: np.random.Generator, chance_SP: np.ndarray) -> Entry:
    """Four images a prompt, right with `chance_SP`."""
    hits_SP = generator.binomial(4, chance_SP.clip(0, 1)) / 4
    scores = {
        seed: {f"p{i:03d}": (TASKS[i % 6], float(value)) for i, value in enumerate(row)}
        for seed, row in enumerate(hits_SP)
    }
    return Entry(label="x", policy="p", method="m", benchmark="b", settings={}, identity={}, scores=scores, speed={})


def test_a_false_alarm_is_rarer_than_one_in_twenty_and_a_false_pass_too() -> None:
    """At no change, and at a loss of exactly the margin: 300 simulated releases of 3 seeds x 96 prompts."""
    generator = np.random.default_rng(1)
    alarms = passes = 0
    trials, margin = 300, 0.03
    for _ in range(trials):
        difficulty = generator.beta(2, 2, 96)
        seed_noise = generator.normal(0, 0.02, (2, 3))

        old = version(generator, difficulty + seed_noise[0][:, None])
        (same,) = gate([old], [version(generator, difficulty + seed_noise[1][:, None])], margins={"b": margin})
        lower = difficulty - margin + seed_noise[1][:, None]
        (worse,) = gate([old], [version(generator, lower)], margins={"b": margin})
        alarms += same.state == "regression"
        passes += worse.state == "pass"
    # nominal 2.5 % each; 24 of 300 is the 99.9 % point of a rate of 5 %
    assert alarms <= 15
    assert passes <= 24


def test_a_loss_that_would_count_alone_is_no_regression_among_five_checks() -> None:
    """One check of p = 3 % among four that changed nothing: 5 x 3 % is no proof."""
    prompts = 96
    zigzag = np.where(np.arange(prompts) % 2 == 0, 0.1, -0.1)  # standard error 0.1 / sqrt(95)
    loss = 0.03 + 2.2 * 0.1 / 95**0.5

    def entry(label: str, values: np.ndarray) -> Entry:
        scores = {0: {f"p{i:02d}": ("t", float(value)) for i, value in enumerate(values)}}
        return Entry(
            label=label, policy="p", method=label, benchmark="b", settings={}, identity={}, scores=scores, speed={}
        )

    level = np.full(prompts, 0.5)
    old = [entry(f"m{i}", level) for i in range(5)]
    new = [entry("m0", level - loss + zigzag), *old[1:]]
    alone = gate(old[:1], new[:1], margins={"b": 0.03})
    assert [check.state for check in alone] == ["regression"]
    among_five = {check.name: check.state for check in gate(old, new, margins={"b": 0.03})}
    assert among_five["p m0 on b"] == "inconclusive"


# --- the baseline file ----------------------------------------------------------------------------------------------


def test_the_baseline_survives_writing_and_reading(tmp_path: Path) -> None:
    old = study(tmp_path / "runs", 0.7, prompts_per_task=3)
    path = tmp_path / "b.json"
    baselines.write(path, old, "1.0")
    read = baselines.read(path)
    assert [e.scores for e in read] == [e.scores for e in old]
    assert [e.speed for e in read] == [e.speed for e in old]
    assert [(e.settings, e.identity) for e in read] == [(e.settings, e.identity) for e in old]
    again = tmp_path / "c.json"
    baselines.write(again, read, "1.0")
    assert again.read_bytes() == path.read_bytes()
    assert str(tmp_path) not in path.read_text()


def test_a_baseline_that_is_missing_newer_or_edited_says_so(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    with pytest.raises(ConfigError, match="there is no baseline"):
        baselines.read(path)
    baselines.write(path, study(tmp_path / "runs", 0.7, prompts_per_task=2), "1.0")
    text = path.read_text()
    path.write_text(text.replace('"seeds": [\n    0', '"seeds": [\n    7'))
    with pytest.raises(CorruptDataError, match="was changed after it was written"):
        baselines.read(path)
    path.write_text(text.replace('"format": 1', '"format": 3'))
    with pytest.raises(ConfigError, match="has format 3"):
        baselines.read(path)
    for damage in ("", "{", "[]", '{"format": "x"}', '{"format": 1}'):
        path.write_text(damage)
        with pytest.raises(CorruptDataError):
            baselines.read(path)


def test_a_run_is_found_by_its_settings_under_an_older_name_too(tmp_path: Path) -> None:
    """A baseline that was written when `gcpo` with two sets was called `gcpo`; and a method under another's name."""
    two = {"selection": {"selectors": CRITICAL[:2]}}
    (new,) = study(tmp_path / "two", 0.8, overrides=two)
    assert new.method == "gcpo[init+struct]"
    old = replace(new, method="gcpo")
    assert overall(gate([old], [new], margins={"scenes": 0.1})) == "pass"
    (plain,) = study(tmp_path / "plain", 0.8)
    assert overall(gate([old], [plain], margins={"scenes": 0.1})) == "not comparable"
    renamed = replace(plain, settings={**plain.settings, "method": "mine"})
    assert overall(gate([plain], [renamed], margins={"scenes": 0.1})) == "pass"


# --- formats --------------------------------------------------------------------------------------------------------


def hostile_check(text: str, state: State = "regression") -> Check:
    interval = Interval(value=-0.1, low=-0.2, high=-0.05, n=10, seeds=2, method="t", stderr=0.01, df=9.0)
    return Check(
        name=text,
        state=state,
        unit="score",
        margin=0.02,
        interval=interval,
        worst=((text, -0.5),),
        reason=text,
    )


@pytest.mark.parametrize("text", [*HOSTILE, "::error::x\n::set-output name=a::b", "a%0A::error::b"])
def test_no_text_leaves_its_place_in_any_format(text: str) -> None:
    checks = [hostile_check(text), hostile_check(text, "inconclusive"), hostile_check(text, "not comparable")]
    root = ElementTree.fromstring(junit(checks))
    assert (root.get("failures"), root.get("skipped"), root.get("errors")) == ("1", "1", "1")
    for line in workflow_commands(checks):
        assert line.count("\n") == 0
        command, _, message = line[2:].partition("::")
        assert command.split(" ")[0] in ("error", "warning")
        assert "\x1b" not in message
    table = [line for line in markdown(checks).splitlines() if line.startswith("|")]
    assert all("<script" not in line and "<img" not in line for line in table)


def test_data_have_the_unit_that_they_say() -> None:
    """Raw numbers: a share is no point, and a log of a ratio no percent."""
    of_share = record(hostile_check("x"))
    assert [of_share[key] for key in ("unit", "difference", "low", "high", "margin")] == [
        "share",
        -0.1,
        -0.2,
        -0.05,
        0.02,
    ]
    slower = Interval(value=math.log(0.8), low=math.log(0.7), high=math.log(0.9), n=20, seeds=1, method="t")
    speed = record(Check(name="s", state="regression", unit="%", margin=0.05, interval=slower))
    assert speed["unit"] == "share of the speed"
    assert [speed[key] for key in ("difference", "low", "high", "margin")] == pytest.approx([-0.2, -0.3, -0.1, 0.05])
    scale = Measure(name="hps-v2.1", unit="x100", by_prompt=True)
    assert record(Check(name="h", state="not comparable", unit="score", margin=None, measure=scale))["unit"] == "x100"


def test_a_summary_is_cut_at_a_line_below_the_limit() -> None:
    text = markdown([hostile_check("x" * 150) for _ in range(5000)])
    assert len(text.encode()) <= SUMMARY_BYTES
    assert text.endswith("(cut here: the rest is in the JUnit file)\n")


def test_the_words_give_difference_interval_and_verdict() -> None:
    assert (
        words(hostile_check(""))
        == "−10.0 [−20.0, −5.0] points, 10 prompts, 2 seeds: a loss of more than 2 points is proven"
    )


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_passes_fails_and_says_inconclusive_by_its_exit_code(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, skill in (("good", 0.8), ("bad", 0.4)):
        for seed in range(2):
            make_run(tmp_path / name, f"gcpo-{seed}", seed=seed, skill=skill, **BIG)  # type: ignore[arg-type]
    file, report = str(tmp_path / "b.json"), tmp_path / "junit.xml"
    assert cli("baseline", "update", "--runs-dir", str(tmp_path / "good"), "--out", file).code == 0
    same = cli("gate", "--baseline", file, "--runs-dir", str(tmp_path / "good"), "--junit", str(report))
    assert (same.code, "gate: pass" in same.err) == (0, True)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    worse = cli("gate", "--baseline", file, "--runs-dir", str(tmp_path / "bad"), "--margin", "scenes=1.5pt")
    assert worse.code == 1
    assert worse.out.startswith("::error title=gate%3A scenes-12 gcpo on scenes::")
    assert "**regression**" in (tmp_path / "summary.md").read_text()
    monkeypatch.delenv("GITHUB_ACTIONS")
    record = json.loads(cli("gate", "--baseline", file, "--runs-dir", str(tmp_path / "bad"), "--json").out)
    assert record["verdict"] == "regression"
    check = record["checks"][0]
    assert (check["unit"], check["metric"], check["margin"]) == ("share", "correct", 0.02)
    assert -1 < check["low"] < check["difference"] < check["high"] < 0
    assert f"{100 * check['difference']:.1f}".replace("-", "−") in check["words"]
    narrow = ("gate", "--baseline", file, "--runs-dir", str(tmp_path / "good"), "--margin", "scenes=0.1pt")
    undecided = cli(*narrow, "--junit", str(report))
    assert undecided.code == 3
    assert "`skipped` there, and readers of JUnit show that as green" in undecided.err
    assert cli(*narrow, "--inconclusive", "pass").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--margin", "nope=1pt"], "--margin names 'nope'"),
        (["--margin", "scenes"], "is not BENCHMARK=NUMBER"),
        (["--margin", "scenes=-1"], "is no number of points"),
        (["--perf", "fast"], "is no percentage"),
        (["--inconclusive", "maybe"], "unknown --inconclusive"),
    ],
)
def test_bad_options_are_one_line(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    make_run(tmp_path / "runs", "gcpo-0", maps=False, steps=4)
    file = str(tmp_path / "b.json")
    cli("baseline", "update", "--runs-dir", str(tmp_path / "runs"), "--out", file)
    result = cli("gate", "--baseline", file, "--runs-dir", str(tmp_path / "runs"), *arguments)
    assert result.code == 2
    assert message in result.err
