"""A configuration is called by its settings, shortly; what has no effect makes no other variant."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gcpo_bench.config import RunConfig
from gcpo_bench.methods import METHODS
from gcpo_bench.registry import SELECTORS
from gcpo_bench.resolve import resolve
from gcpo_bench.variants import (
    OPTIONS,
    READS,
    SIGNALS,
    acting,
    describe,
    name_of,
    ratio_text,
    run_prefix,
    signals_read,
)

from .reference.inputs import make_signals

INIT = '{"name": "initial", "ratio": 0.1}'
STRUCT = '{"name": "structural", "ratio": 0.1, "options": {"window": [0.1, 0.9]}}'
OWN = '{"name": "my_lab:Surprising", "ratio": 0.1}'


def config(method: str, *overrides: str, ratio: float | None = None) -> RunConfig:
    return resolve(None, flags={"method": method, "ratio": ratio}, shared=overrides).config


def with_clip(method: str, clip: float = 0.1) -> RunConfig:
    """As a run folder may hold it; where that does nothing it is refused today."""
    made = config(method)
    return made.model_copy(update={"weighting": made.weighting.model_copy(update={"clip": clip, "form": "linear"})})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("labelled", METHODS)
def test_a_method_is_known_by_its_settings_whatever_name_stands_beside_them(method: str, labelled: str) -> None:
    assert name_of(config(method).model_copy(update={"method": labelled})) == method


@pytest.mark.parametrize(
    ("method", "overrides", "name"),
    [
        ("gcpo", ["weighting.name=uniform"], "gcpo-no-daw"),
        ("gcpo-no-daw", ["weighting.name=confidence"], "gcpo"),
        ("gcpo", ["weighting.detached=false"], "gcpo-official"),
        ("gcpo-sim", ["selection.overlap=allow", "selection.similarity_embedding=codebook"], "gcpo-sim"),
        ("gcpo", [f"selection.selectors=[{INIT}, {STRUCT}]"], "gcpo[init+struct]"),
        ("gcpo-no-daw", [f"selection.selectors=[{INIT}, {STRUCT}]"], "gcpo-no-daw[init+struct]"),
        ("grpo", [f"selection.selectors=[{INIT}, {STRUCT}]"], "gcpo-no-daw[init+struct]"),
        ("gcpo", [f"selection.selectors=[{INIT}]"], "gcpo[init]"),
        ("gcpo", [f"selection.selectors=[{INIT}, {OWN}]"], "gcpo[init+Surprising]"),
        ("random", ["selection.selectors.random.options.sets=1"], "random[sets 1]"),
        ("gcpo", ["selection.complement=true"], "gcpo[complement]"),
        ("remaining", ["selection.complement=false"], "gcpo-no-daw"),
        ("grpo-daw", ["weighting.detached=false"], "grpo-daw[not detached]"),
        (
            "gcpo",
            [
                "selection.overlap=allow",
                "selection.selectors.structural.options.window=[0.0, 1.0]",
                "weighting.clip=0.3",
                "weighting.support=selected",
            ],
            "gcpo[window 0-1, overlap allow, clip 0.3, 1 more]",
        ),
        ("gcpo-paper", ["loss.normalizer=selected"], "gcpo-paper[normalizer selected]"),
        ("gcpo", ["loss.normalizer=all", "loss.beta=0.1"], "gcpo"),  # told as settings, not in the name
    ],
)
def test_other_settings_are_told_in_brackets(method: str, overrides: list[str], name: str) -> None:
    assert name_of(config(method, *overrides)) == name


def test_what_a_uniform_weight_does_not_have_tells_nothing() -> None:
    assert name_of(with_clip("grpo")) == "grpo"
    assert acting(with_clip("grpo")) == acting(config("grpo"))
    assert acting(with_clip("gcpo")) != acting(config("gcpo"))


@pytest.mark.parametrize(
    ("overrides", "ratio", "text"),
    [
        ([], None, "10 % a set"),
        ([], 0.05, "5 % a set"),
        (["selection.selectors.initial.ratio=0.2"], None, "init 20 %, struct 10 %, sim 10 %"),
    ],
)
def test_ratios_are_told_beside_the_name(overrides: list[str], ratio: float | None, text: str) -> None:
    assert (name_of(config("gcpo", *overrides, ratio=ratio)), ratio_text(config("gcpo", *overrides, ratio=ratio))) == (
        "gcpo",
        text,
    )


def test_lists_show_ratio_and_overrides_and_folders_what_a_file_system_takes() -> None:
    two = config("gcpo", f"selection.selectors=[{INIT}, {STRUCT}]", ratio=0.05)
    further = [f"selection.selectors=[{INIT}, {STRUCT}]", "optimizer.learning_rate=2e-4"]
    assert describe(two, further) == "gcpo[init+struct], 5 % a set, optimizer.learning_rate=2e-4"
    assert run_prefix(two, further) == "gcpo-init-struct-r0.05-learning_rate2e-4"
    assert (describe(config("gcpo")), run_prefix(config("gcpo"))) == ("gcpo", "gcpo")
    assert run_prefix(config("gcpo", "selection.selectors.initial.ratio=0.2")) == "gcpo-uneven"


@given(
    st.sampled_from(sorted(METHODS)),
    st.lists(st.text(min_size=1, max_size=60), max_size=4),
    st.dictionaries(st.text(min_size=1, max_size=60), st.floats(0, 1), max_size=4),
)
def test_names_stay_short_whatever_is_set(method: str, own: list[str], options: dict[str, float]) -> None:
    settings = METHODS[method].settings
    selectors = [*settings["selection"]["selectors"], *({"name": f"my:{n}", "options": options} for n in own)]
    chosen = RunConfig.model_validate({**settings, "selection": {**settings["selection"], "selectors": selectors}})
    assert len(name_of(chosen)) <= 80
    assert len(run_prefix(chosen)) <= 40
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in run_prefix(chosen))


# ---------------------------------------------------------------- what has an effect


@pytest.mark.parametrize("name", list(SELECTORS))
def test_options_are_those_of_the_selectors(name: str) -> None:
    fields = {f.name: f.default for f in dataclasses.fields(SELECTORS.load(name)) if f.name != "ratio"}
    assert {key: list(v) if isinstance(v, tuple) else v for key, v in fields.items()} == OPTIONS[name]


@pytest.mark.parametrize("name", list(SELECTORS))
def test_a_selector_reads_no_signal_but_those_that_are_told(name: str) -> None:
    """Each signal alone is NaN: what the selector chooses, or that it refuses, tells whether it looked."""
    make = SELECTORS.load(name)
    selector = make(**({"ratio": 0.2} if "ratio" in inspect.signature(make).parameters else {}))
    signals = make_signals(rows=4, grid=(5, 5), seed=1)
    nothing_BT = torch.zeros_like(signals.entropy_BT, dtype=torch.bool)
    plain_BT = selector(signals, nothing_BT)
    for signal in SIGNALS:
        missing: dict[str, Any] = {f"{signal}_BT": torch.full_like(signals.entropy_BT, torch.nan)}
        changed = dataclasses.replace(signals, **missing)
        try:
            same = bool(torch.equal(selector(changed, nothing_BT), plain_BT))
        except Exception:
            same = False
        assert same == (signal not in READS[name]), signal


def test_a_selector_of_ones_own_may_look_at_everything() -> None:
    assert signals_read(config("grpo").selection) == frozenset()
    assert signals_read(config("gcpo").selection) == {"entropy", "similarity"}
    assert signals_read(config("gcpo", f"selection.selectors=[{OWN}]").selection) == set(SIGNALS)


@pytest.mark.parametrize(
    ("method", "override", "acts"),
    [
        ("gcpo", "weighting.clip=0.1", True),
        ("grpo", "selection.similarity_embedding=codebook", False),
        ("gcpo-struct", "selection.similarity_embedding=codebook", False),
        ("gcpo-sim", "selection.similarity_embedding=codebook", True),
        ("gcpo-sim", "selection.entropy_source=conditional", False),
        ("top-entropy", "selection.entropy_source=conditional", True),
        ("gcpo-init", "selection.overlap=allow", False),
        ("gcpo", "selection.overlap=allow", True),
        ("random", "selection.selectors.random.options.sets=1", True),
    ],
)
def test_only_what_acts_makes_another_variant(method: str, override: str, acts: bool) -> None:
    assert (acting(config(method)) != acting(config(method, override))) == acts


def test_the_released_method_is_known_with_every_family_of_models() -> None:
    for model in ("llamagen-tiny", "janus-pro-tiny", "scenes-8"):
        settings = resolve(None, flags={"method": "gcpo-official", "model": model}).config
        assert name_of(settings) == "gcpo-official"
