"""Looking at a run that is being trained: it is read once, and what is found is filed under what was read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gcpo_bench import runs
from gcpo_bench.cli.evaluate_runs import evaluate_run
from gcpo_bench.errors import CorruptDataError
from gcpo_bench.evaluators.runner import load_evaluation
from gcpo_bench.registry import POLICIES, Entry
from gcpo_bench.resolve import resolve
from gcpo_bench.runs import read_json
from gcpo_bench.training import checkpoints, starts
from gcpo_bench.training.distributed import World
from gcpo_bench.training.loop import train
from gcpo_bench.training.policies import scenes

SMALL = (
    *("sampling.prompts_per_step=2", "sampling.group_size=2", "logging.token_maps_every=0", "num_threads=1"),
    *("evaluation.prompts_per_task=1", "evaluation.images_per_prompt=1"),
)
FLAGS = {"model": "scenes-8", "num_steps": 0}


class Watched(scenes.ScenesPolicy):
    """The embedded world's policy. A move is made once, at the moment of its name, as if training went on just then."""

    moves: dict[str, Callable[[], None]] = {}  # noqa: RUF012

    @property
    def is_loaded(self) -> bool:
        """Whether it has the weights of a checkpoint, which `save` made larger."""
        begin = getattr(self, "begin_of_image", None)
        return begin is not None and not begin.is_meta and float(begin.detach().mean()) > 0.5

    def move(self, moment: str) -> None:
        self.moves.pop(moment, lambda: None)()

    @property
    def grid(self) -> Any:
        if self.is_loaded:
            self.move("evaluated")
        return self._grid

    @grid.setter
    def grid(self, value: Any) -> None:
        self._grid = value

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        self.move("weights are being loaded")
        return super().named_parameters(*args, **kwargs)


def build(name: str, *, template: str = "") -> Watched:
    return Watched(name)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[runs.Run]:
    """Has one checkpoint, of step 1."""
    monkeypatch.setitem(POLICIES.entries, "scenes-8", Entry("tests.test_moving:build", "for these tests"))
    made = runs.create(tmp_path, "a", resolve(None, SMALL, FLAGS).config)
    save(made, 1)
    yield made
    Watched.moves.clear()


def save(run: runs.Run, step: int) -> None:
    """A checkpoint with weights of its own."""
    policy = starts.start_policy(run.config)
    with torch.no_grad():
        policy.begin_of_image += step  # type: ignore[attr-defined]
    checkpoints.save(run, step, policy, None, keep=2)  # type: ignore[arg-type]


def digest(run: runs.Run, step: int) -> str:
    return str(read_json(run.checkpoint_path(step) / "state.json")["checksums"]["policy.safetensors"])


def test_scores_are_filed_under_the_checkpoint_that_was_loaded(run: runs.Run) -> None:
    """Another one comes between loading and drawing."""
    Watched.moves["evaluated"] = lambda: save(run, 2)
    evaluate_run(run)
    assert run.checkpoint_steps() == [1, 2]
    assert load_evaluation(run, "scenes").identity["weights_digest"] == digest(run, 1)


def test_a_checkpoint_that_training_removes_while_it_is_read_gives_way_to_the_newest(run: runs.Run) -> None:
    def move() -> None:
        save(run, 2)
        shutil.rmtree(run.checkpoint_path(1))

    policy: Any = starts.start_policy(run.config)
    Watched.moves["weights are being loaded"] = move
    found = checkpoints.load_newest(run, policy)
    assert (found.step, found.digest) == (2, digest(run, 2))
    assert policy.begin_of_image.mean().round() == 2


def test_a_damaged_checkpoint_is_not_waited_for(run: runs.Run) -> None:
    path = run.checkpoint_path(1) / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptDataError, match="checksum"):
        checkpoints.load_newest(run, starts.start_policy(run.config))  # type: ignore[arg-type]


def test_training_begins_from_the_weights_that_its_record_names(run: runs.Run) -> None:
    """The run that it starts from has another checkpoint between the look at it and the loading of weights."""

    class Later(World):
        def require_equal(self, what: str, value: str) -> None:
            if what == "start weights":
                save(run, 2)

    settings = resolve(None, [*SMALL, "policy.weights=a"], FLAGS).config
    second = runs.create(run.path.parent, "b", settings)
    train(settings, second, world=Later())
    assert second.environments()[0]["start_weights"] == digest(run, 1)
    assert digest(second, 0) == digest(run, 1) != digest(run, 2)
