"""Training prompts in GenEval's form: what they ask for can be judged, and none of them is an evaluation prompt."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from gcpo_bench.evaluators.geneval import clauses
from gcpo_bench.geneval_prompts import CLASSES, COLORS, is_evaluation_prompt, train_prompts

PUBLISHED = Path(os.environ.get("GCPO_BENCH_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "geneval"


def test_every_prompt_can_be_judged() -> None:
    prompts = train_prompts()
    assert len({prompt.id for prompt in prompts}) == len({prompt.text for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        include, exclude = clauses(prompt, CLASSES, COLORS)
        assert include
        assert bool(exclude) == (prompt.tag == "counting")
    assert Counter(prompt.tag for prompt in prompts) == {
        "two_object": 3000, "counting": 150, "colors": 600, "position": 3000, "color_attr": 3000
    }  # fmt: skip


def test_text_and_metadata_say_the_same() -> None:
    position = next(prompt for prompt in train_prompts() if prompt.tag == "position")
    reference, placed = position.metadata["include"]
    relation, index = placed["position"]
    assert index == 0
    assert (
        position.text.index(placed["class"]) < position.text.index(relation) < position.text.index(reference["class"])
    )
    counted = next(prompt for prompt in train_prompts() if "skis" in prompt.text and prompt.tag == "counting")
    assert "skises" in counted.text  # as GenEval makes plurals


@pytest.mark.skipif(not PUBLISHED.exists(), reason="GenEval's prompts are not here")
def test_evaluation_prompts_are_known_and_left_out() -> None:
    lines = (PUBLISHED / "evaluation_metadata.jsonl").read_text(encoding="utf-8").splitlines()
    evaluated = {json.loads(line)["prompt"] for line in lines}
    assert len(evaluated) == 553
    assert all(is_evaluation_prompt(text) for text in evaluated)
    assert not evaluated & {prompt.text for prompt in train_prompts()}
