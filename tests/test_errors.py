"""What is said to a name that nobody knows."""

from __future__ import annotations

import pytest

from gcpo_bench.errors import did_you_mean
from gcpo_bench.methods import METHODS
from gcpo_bench.registry import POLICIES, REWARDS, SELECTORS

COMPONENTS = ("init", "struct", "sim", "daw")
KEYS = ("policy", "loss", "method", "optimizer", "min_rate", "weighting", "learning_rate", "beta", "group_size")


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("gcp", METHODS, "gcpo"),
        ("gpro", METHODS, "grpo"),
        ("GRPO", METHODS, "grpo"),
        ("gcpo_no_daw", METHODS, "gcpo-no-daw"),
        ("initail", SELECTORS, "initial"),
        ("genevl", REWARDS, "geneval"),
        ("janus-1b", POLICIES, "janus-pro-1b"),
        ("dwa", COMPONENTS, "daw"),
        ("bta", KEYS, "beta"),
        ("groupsize", KEYS, "group_size"),
    ],
)
def test_a_slip_of_the_hand_is_understood(typed: str, known: tuple[str, ...], meant: str) -> None:
    assert did_you_mean(typed, known).startswith(f"did you mean {meant!r}? known: ")


@pytest.mark.parametrize(
    ("typed", "known"),
    [
        ("ppo", METHODS),
        ("dpo", METHODS),
        ("flow-grpo", METHODS),
        ("report", METHODS),
        ("clip", REWARDS),
        ("epochs", KEYS),
        ("model", KEYS),
        ("temperature", KEYS),
        ("lora", KEYS),
    ],
)
def test_another_word_is_not_taken_for_a_slip(typed: str, known: tuple[str, ...]) -> None:
    assert did_you_mean(typed, known).startswith("known: ")
