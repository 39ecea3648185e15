"""`gcpo-bench evaluate` with lists and groups of benchmarks, and folders that are not what was meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gcpo_bench.datasets import Prompt
from gcpo_bench.errors import ConfigError, PrerequisiteError
from gcpo_bench.evaluators.drawbench import DrawBench
from gcpo_bench.evaluators.hps import HpsBenchmark
from gcpo_bench.evaluators.options import divided
from gcpo_bench.evaluators.panel import Panel
from gcpo_bench.evaluators.runner import evaluate_folder
from gcpo_bench.evaluators.types import SampleScore
from gcpo_bench.registry import BENCHMARK_GROUPS, BENCHMARKS, Entry

from .conftest import Cli
from .scorer_factory import pictures
from .test_hps_drawbench import Brightness

STYLES = ("anime", "photo")


def named(name: str, texts: int) -> Callable[..., HpsBenchmark]:
    """A benchmark of so many prompts, scored by brightness; photos of it are made for whoever asks."""

    def build(world: str = "", *, options: Any = None, device: str | None = None) -> HpsBenchmark:
        if (options or {}).get("lacking") == name:
            raise ConfigError("no such option", hint="none")
        return HpsBenchmark(name, Panel([Brightness()]), lambda: prompts(texts))

    return build


def prompts(count: int) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(id=f"{style}-{row:05d}", text=f"{style} {row}", metadata={"tag": style})
        for style in STYLES
        for row in range(count)
    )


hps_benchmark = named("hps-benchmark", 2)
hps_gcpo400 = named("hps-gcpo400", 3)


def lacking(world: str = "", *, options: Any = None, device: str | None = None) -> HpsBenchmark:
    def read() -> tuple[Prompt, ...]:
        raise PrerequisiteError("its prompts are missing", hint="gcpo-bench data fetch it")

    return HpsBenchmark("drawbench", Panel([Brightness()]), read)


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path / "home"))
    for name, target in (("hps-benchmark", "hps_benchmark"), ("hps-gcpo400", "hps_gcpo400"), ("drawbench", "lacking")):
        monkeypatch.setitem(BENCHMARKS.entries, name, Entry(f"tests.test_evaluate_lists:{target}", "for these tests"))


def draw(folder: Path, count: int, *, each: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{prompt.id}-{index}.png" for prompt in prompts(count) for index in range(each)]
    for name, image in zip(names, pictures(len(names)), strict=True):
        Image.fromarray(image).save(folder / name)
    return folder


# ---------------------------------------------------------------- names and options


def test_hps_stands_for_both_of_its_prompt_sets(cli: Cli, tmp_path: Path) -> None:
    assert BENCHMARK_GROUPS["hps"] == ("hps-benchmark", "hps-gcpo400")
    folder = draw(tmp_path / "theirs", 3)
    both = cli("evaluate", "--images", str(folder), "--bench", "hps", "--json")
    assert both.code == 0, both.err
    assert [each["benchmark"] for each in json.loads(both.out)] == ["hps-benchmark", "hps-gcpo400"]
    assert json.loads(both.out)[1]["metrics"]["overall"]["n"] == 6  # one image a prompt, without being told


def test_a_wrong_name_in_a_list_is_told_before_anything_a_right_one_lacks(cli: Cli, tmp_path: Path) -> None:
    wrong = cli("evaluate", "--images", str(tmp_path), "--bench", "geneval,t2i-compbench,drawbench,hsp")
    assert wrong.code == 2
    assert "unknown benchmark 'hsp'" in wrong.err
    assert "did you mean 'hps'?" in wrong.err


def test_a_fidelity_is_each_benchmarks_own_options() -> None:
    names = ["geneval", "hps-gcpo400", "t2i-compbench-3d-spatial", "drawbench"]
    options, without = divided(names, {"fidelity": "official", "device": "cpu"})
    assert options["geneval"] == {"fidelity": "official", "device": "cpu"}
    assert options["hps-gcpo400"]["options"] == {"antialias": "false", "precision": "autocast"}
    assert options["t2i-compbench-3d-spatial"]["options"] == {"fidelity": "official"}
    assert options["drawbench"] == {"device": "cpu"}
    assert without == {"fidelity": ["drawbench"]}
    options, without = divided(names[:2], {"fidelity": "reward-server"})
    assert (options["hps-gcpo400"], without) == ({}, {"fidelity": ["hps-gcpo400"]})
    own, _ = divided(["hps-gcpo400"], {"fidelity": "fixed", "options": {"antialias": "false"}})
    assert own["hps-gcpo400"]["options"] == {"antialias": "false", "precision": "float32"}


@pytest.mark.parametrize(
    ("names", "fidelity", "message"),
    [
        (["drawbench"], "official", "benchmark 'drawbench' has no option 'fidelity'"),
        (["drawbench", "hps-gcpo400"], "reward-server", "fidelity 'reward-server' has no meaning for hps-gcpo400"),
        (["hps-gcpo400"], "offical", "unknown fidelity 'offical'"),
    ],
)
def test_a_fidelity_without_meaning_for_all_is_refused(names: list[str], fidelity: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        divided(names, {"fidelity": fidelity})


def test_the_fidelities_options_are_ones_that_hps_has() -> None:
    from gcpo_bench.evaluators import hps
    from gcpo_bench.evaluators.options import FIDELITIES

    for options in FIDELITIES["hps-benchmark"].values():
        assert hps.hps_gcpo400(options=options).panel.names == ("hps-v2.1",)


def test_what_was_seen_on_a_cpu_can_be_judged_again_with_the_same_fidelity() -> None:
    """Half precision has no effect there, and the look says so."""
    from gcpo_bench.evaluators import hps

    official = divided(["hps-gcpo400"], {"fidelity": "official", "device": "cpu"})[0]["hps-gcpo400"]
    asked = hps.hps_gcpo400(**official).asked()
    parts = [part["scorers"]["hps-v2.1"] for part in asked.values()]
    assert parts == [{"preprocessing": {"antialias": False}}, {"precision": "float32"}]


# ---------------------------------------------------------------- tables


def two_scorers(world: str = "", *, options: Any = None, device: str | None = None) -> DrawBench:
    panel = Panel([Brightness(), Brightness(name="twice", factor=2.0)])
    return DrawBench(panel, lambda: prompts(3), {})


def test_a_panel_s_table_names_every_scorer_and_category(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS.entries, "drawbench", Entry("tests.test_evaluate_lists:two_scorers", "two"))
    folder = draw(tmp_path / "theirs", 3)
    metrics = json.loads(cli("evaluate", "--images", str(folder), "--bench", "drawbench", "--json").out)["metrics"]
    table = cli("evaluate", "--images", str(folder), "--bench", "drawbench").out.splitlines()
    assert table[0].split() == ["drawbench,", "theirs,", "each", "scorer", "on", "its", "own", "scale"]
    (head,) = (line.split() for line in table if "brightness" in line)
    assert head == ["brightness", "twice", "n"]
    for task, n in (("overall", "6"), ("anime", "3"), ("photo", "3")):
        (row,) = (line.split() for line in table if line.split()[:1] == [task])
        names = [f"{scorer}/{task}" if task != "overall" else scorer for scorer in ("brightness", "twice")]
        assert row[1::2][:2] == [f"{metrics[name]['value']:.3f}" for name in names]
        assert row[-1] == n


def test_a_limit_and_the_one_scorer_are_told_with_the_table(cli: Cli, tmp_path: Path) -> None:
    folder = draw(tmp_path / "theirs", 3)
    told = cli("evaluate", "--images", str(folder), "--bench", "hps-gcpo400", "--limit", "2").out
    assert told.startswith("hps-gcpo400, brightness x100")
    assert "LIMITED: 4 of 6 prompts" in told


# ---------------------------------------------------------------- what is lacking


def test_all_lacks_of_a_list_are_told_before_the_first_image(cli: Cli, tmp_path: Path) -> None:
    folder = draw(tmp_path / "theirs", 2)
    result = cli("evaluate", "--images", str(folder), "--bench", "hps-benchmark,hps-gcpo400,drawbench")
    assert result.code == 4
    assert "hps-gcpo400: " in result.err
    assert "2 of 6 images are missing, the first is anime-00002-0.png" in result.err
    assert "drawbench: its prompts are missing (gcpo-bench data fetch it)" in result.err
    assert "error: 2 benchmarks cannot be run: hps-gcpo400, drawbench\n" in result.err
    assert not (tmp_path / "evaluations").exists()


def test_what_is_finished_is_printed_before_what_stops_the_rest(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = draw(tmp_path / "theirs", 3)
    command = ("evaluate", "--images", str(folder), "--bench", "hps-benchmark,hps-gcpo400")
    summarize = HpsBenchmark.summarize

    def broken(self: HpsBenchmark, samples: list[SampleScore]) -> Any:
        return {} if self.name == "hps-gcpo400" else summarize(self, samples)

    monkeypatch.setattr(HpsBenchmark, "summarize", broken)
    stopped = cli(*command)
    assert stopped.code == 5
    assert "hps-benchmark" in stopped.out
    assert "overall" in stopped.out
    assert "error: hps-gcpo400: none of the 6 images could be scored" in stopped.err
    (as_json,) = json.loads(cli(*command, "--json").out)
    assert as_json["benchmark"] == "hps-benchmark"


# ---------------------------------------------------------------- folders


def test_folders_of_one_name_are_not_taken_for_one(cli: Cli, tmp_path: Path) -> None:
    a, b = (draw(tmp_path / model / "outputs", 3) for model in ("a", "b"))
    assert cli("evaluate", "--images", str(a), "--bench", "hps-benchmark").code == 0
    scores = (tmp_path / "evaluations/outputs/hps-benchmark/scores.json").read_bytes()
    for bench in ("hps-benchmark", "hps-gcpo400"):
        again = cli("evaluate", "--images", str(b), "--bench", bench)
        assert again.code == 2
        assert f"holds scores of other images: {a}" in again.err
        assert "--name" in again.err
    assert cli("evaluate", "--images", str(b), "--bench", "hps-benchmark", "--name", "b").code == 0
    replaced = cli("evaluate", "--images", str(b), "--bench", "hps-benchmark", "--name", "outputs")
    assert replaced.code == 2
    assert (tmp_path / "evaluations/outputs/hps-benchmark/scores.json").read_bytes() == scores
    assert cli("evaluate", "--images", str(a), "--bench", "hps-gcpo400").code == 0


def test_a_folder_without_any_layout_is_told_where_one_is(cli: Cli, tmp_path: Path) -> None:
    draw(tmp_path / "all" / "sdxl", 2)
    result = cli("evaluate", "--images", "all", "--bench", "hps-benchmark", "--allow-partial")
    assert result.code == 2
    assert "all holds no images of hps-benchmark; looked for anime-00000-0.png, anime/00000.jpg, " in result.err
    assert "hint: did you mean --images all/sdxl?" in result.err
    (tmp_path / "empty").mkdir()
    empty = cli("evaluate", "--images", "empty", "--bench", "hps-benchmark")
    assert "hint: name the folder in which such files lie" in empty.err
    assert "allow-partial" not in empty.err


def test_a_folder_may_hold_a_folder_for_each_prompt_set(cli: Cli, tmp_path: Path) -> None:
    draw(tmp_path / "all" / "hps-benchmark", 2)
    draw(tmp_path / "all" / "hps-gcpo400", 3)
    result = cli("evaluate", "--images", "all", "--bench", "hps", "--json")
    assert result.code == 0, result.err
    rows = (tmp_path / "evaluations/all/hps-gcpo400/samples.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["image"] == "hps-gcpo400/anime-00000-0.png"


def test_a_limit_says_nothing_of_other_prompts_images(tmp_path: Path) -> None:
    folder = draw(tmp_path / "theirs", 3, each=2)
    evaluation = evaluate_folder(folder, tmp_path / "out", "hps-gcpo400", limit=1)
    assert evaluation.metrics["overall"].n == 2
    assert evaluation.identity["limited"] == {"prompts": 2, "of": 6}
    assert evaluation.notes == (
        "6 images beyond 1 a prompt are left out, the first is 'anime-00000-1.png'; --images-per-prompt 2 takes them",
        "of 6 images no manifest.jsonl says the prompt; their names alone say whose they are",
    )


def test_a_refused_folder_does_not_promise_a_file(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gcpo_bench.cli.evaluate_results.MAX_NOTES", 2)
    folder = draw(tmp_path / "theirs", 2)
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    refused = cli("evaluate", "--images", str(folder), "--bench", "hps-benchmark")
    assert refused.code == 5
    assert "... and 2 more\n" in refused.err
    partial = cli("evaluate", "--images", str(folder), "--bench", "hps-benchmark", "--allow-partial")
    assert "... and 2 more; scores.json has every line\n" in partial.err
