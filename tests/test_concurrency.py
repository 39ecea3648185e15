"""Several processes at one runs folder: work is done once, files belong together, and nobody loses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gcpo_bench import runs
from gcpo_bench.config import RunConfig
from gcpo_bench.evaluators.runner import load_evaluation, load_samples
from gcpo_bench.reports.evaluations import read_evaluation

from .conftest import Cli
from .processes import outputs, start, wait_for

EVALUATE = """
from gcpo_bench import runs
from tests.test_runner import Painter, go

limit, painter = int(sys.argv[1]), Painter(0.5)
class Logged(Painter):
    def __call__(self, texts_B, uniforms_BT):
        with open("drawn", "a") as file:
            file.write("x" * len(texts_B) + "\\n")
        if len(sys.argv) > 2:
            Path("draws").touch()
            wait_for(sys.argv[2])
        return super().__call__(texts_B, uniforms_BT)

def on_wait(owner):
    print("waits for", owner)
    Path("waits").touch()

Path(f"here-{limit}").touch()
go(runs.open_run(Path("one")), Logged(0.5), limit=limit, on_wait=on_wait)
"""


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    return runs.create(tmp_path, "one", RunConfig())


def manifest(run: runs.Run) -> list[str]:
    text = (run.images_dir("scenes-heldout") / "manifest.jsonl").read_text()
    return [json.loads(line)["file"] for line in text.splitlines()]


def test_processes_that_evaluate_the_same_draw_each_image_once(run: runs.Run, tmp_path: Path) -> None:
    first = start(EVALUATE, 2, "go", cwd=tmp_path)
    wait_for(tmp_path / "draws", first)
    others = [start(EVALUATE, 2, cwd=tmp_path) for _ in range(2)]
    wait_for(tmp_path / "waits", others[0])
    (tmp_path / "go").touch()
    assert outputs([first]) == [""]
    for text in outputs(others):
        assert text in ("", f"waits for process {first.pid} on {text.strip().rpartition(' ')[2]}\n")
    assert (tmp_path / "drawn").read_text().count("x") == 24  # 6 tasks x 2 prompts x 2 images
    assert len(manifest(run)) == len(set(manifest(run))) == 24


def test_evaluations_with_other_settings_do_not_mix(run: runs.Run, tmp_path: Path) -> None:
    """One is in the middle of its images when the other one comes: that waits, and both end whole."""
    first = start(EVALUATE, 1, "go", cwd=tmp_path)
    wait_for(tmp_path / "draws", first)
    second = start(EVALUATE, 3, cwd=tmp_path)
    wait_for(tmp_path / "waits", second)
    (tmp_path / "go").touch()
    outputs([first, second])
    evaluation = load_evaluation(run, "scenes")
    assert evaluation.identity["limited"] == {"prompts": 18, "of": 288}
    assert len(load_samples(run, "scenes")) == evaluation.metrics["images_correct"].n * 2 == 36
    assert len(manifest(run)) == len(set(manifest(run))) == 36


def test_a_killed_evaluation_is_no_obstacle(run: runs.Run, tmp_path: Path) -> None:
    first = start(EVALUATE, 2, "go", cwd=tmp_path)
    wait_for(tmp_path / "draws", first)
    first.kill()
    first.communicate()
    assert outputs([start(EVALUATE, 2, cwd=tmp_path)]) == [""]
    assert len(load_samples(run, "scenes")) == 24


def test_shards_draw_at_the_same_time_and_lose_nothing(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "one", RunConfig())
    code = """
    from gcpo_bench import outside, runs
    from gcpo_bench.evaluators.runner import ShardDone
    from tests.test_runner import Painter, go

    outside.allow(["tests.keeping_benchmark:Keeping"])
    meet(".", sys.argv[1], 3)
    try:
        go(runs.open_run(Path("one")), Painter(0.5), benchmark="tests.keeping_benchmark:Keeping", batch_rows=1,
           shard=(int(sys.argv[1]), 3))
        print("scores")
    except ShardDone:
        print("done")
    """
    said = outputs([start(code, number, cwd=tmp_path) for number in (1, 2, 3)])
    assert "scores\n" in said
    assert len(manifest(run)) == len(set(manifest(run))) == 24
    assert len(load_samples(run, "keeping")) == 24


def test_runs_that_nobody_named_get_names_of_their_own(tmp_path: Path) -> None:
    code = """
    from gcpo_bench import runs
    from gcpo_bench.config import RunConfig

    meet(".", sys.argv[1], 8)
    print(runs.create_unused(Path("runs"), "grpo", RunConfig(seed=int(sys.argv[1]))).name)
    """
    names = outputs([start(code, number, cwd=tmp_path) for number in range(8)])
    assert sorted(name.strip() for name in names) == ["grpo", *(f"grpo-{number}" for number in range(2, 9))]
    seeds = {runs.open_run(path).config.seed for path in runs.list_runs(tmp_path / "runs")}
    assert seeds == set(range(8))
    assert len(list((tmp_path / "runs").iterdir())) == 8  # nothing half-made is left


def test_a_start_that_several_need_is_made_once(tmp_path: Path) -> None:
    code = """
    from gcpo_bench.resolve import resolve
    from gcpo_bench.training.starts import start_run

    config = resolve(None, [], {"model": "scenes-8", "seed": int(sys.argv[1])}).config
    meet(".", sys.argv[1], 3)
    run = start_run(config, Path("runs"))
    print(run.name, run.checkpoint_steps(), run.status().state)
    """
    said = outputs([start(code, number, cwd=tmp_path) for number in range(3)])
    assert len(set(said)) == 1
    assert said[0].endswith("[0] finished\n")
    assert len(runs.list_runs(tmp_path / "runs")) == 1


def test_a_reader_never_puts_samples_beside_other_scores(run: runs.Run, tmp_path: Path) -> None:
    """A report reads while the run is evaluated with few prompts and with more, in turn."""
    code = """
    from gcpo_bench import runs
    from tests.test_runner import Painter, go

    for number in range(20):
        go(runs.open_run(Path("one")), Painter(0.5), limit=1 + number % 2)
        Path("writes").touch()
    Path("over").touch()
    """
    writer = start(code, cwd=tmp_path)
    wait_for(tmp_path / "writes", writer)
    while not (tmp_path / "over").exists():
        evaluation = read_evaluation(run.evaluation_dir("scenes"))
        if evaluation.identity:  # else it is being written
            assert len(evaluation.samples) == 2 * evaluation.identity["limited"]["prompts"]
    outputs([writer])


def test_tasks_of_srun_that_train_a_run_each_say_so(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    small = ["--model=scenes-8", "--num-steps=1", "-osampling.prompts_per_step=2", "-osampling.group_size=2"]
    for task, said in (("0", False), ("1", True)):
        monkeypatch.setenv("SLURM_PROCID", task)
        ended = cli("train", *small, "-ologging.token_maps_every=0")
        assert ended.code == 0
        assert ("task 1 of srun: each task trains a run of its own" in ended.err) == said
