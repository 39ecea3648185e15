"""What is told with a number: everything that moved it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import pytest

from gcpo_bench.evaluators.geneval import Options
from gcpo_bench.evaluators.grounding import Thresholds
from gcpo_bench.evaluators.scorers.unified_reward import QUESTION
from gcpo_bench.labels import DEFAULTS, OWN_QUESTION, label


def test_the_defaults_are_those_of_the_options() -> None:
    assert asdict(Options()) | asdict(Thresholds()) == DEFAULTS


def test_the_built_in_question_is_known() -> None:
    assert f"sha256:{hashlib.sha256(QUESTION.encode()).hexdigest()}" == OWN_QUESTION


def panel(name: str, **look: Any) -> dict[str, Any]:
    return {"look": {"scorers": {name: look}}}


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ({}, ""),
        ({"look": "damaged", "settings": 3, "limited": []}, ""),
        (
            {"look": {"fidelity": {"name": "official"}}, "settings": {**asdict(Options()), "threshold": 0.11}},
            "fidelity official; threshold 0.11 (default 0.3)",
        ),
        ({"limited": {"prompts": 12, "of": 553}}, "LIMITED: 12 of 553 prompts"),
        ({"missing": 3}, "PARTIAL: 3 images are missing"),
        ({"settings": {"fidelity": "fixed", "nms_threshold": 1.0}}, "fidelity fixed; nms_threshold 1.0 (default 0.8)"),
        (panel("hps-v2.0", preprocessing={"antialias": True, "fit": "pad"}), "hps-v2.0: antialiased"),
        (
            panel("hps-v2.1", preprocessing={"antialias": False, "fit": "crop"}, precision="autocast"),
            "hps-v2.1: not antialiased, fit crop, half precision",
        ),
        (
            panel("hpsv2-package-v2.1", torchvision="0.15.2"),
            "hpsv2-package-v2.1: torchvision 0.15.2",
        ),
        (panel("unified-reward", question=OWN_QUESTION), "unified-reward: the question is gcpo-bench's own"),
        (
            panel("unified-reward", question="sha256:0123456789abcdef"),
            "unified-reward: the question is a given one (sha256:01234567)",
        ),
        (panel("pickscore", preprocessing={"antialias": True}), ""),
    ],
)
def test_a_label_says_what_is_not_as_published(identity: dict[str, Any], expected: str) -> None:
    assert label(identity) == expected
