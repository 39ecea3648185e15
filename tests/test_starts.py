"""What a run begins from: how it is put together, and what is recorded of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gcpo_bench import runs
from gcpo_bench.resolve import resolve
from gcpo_bench.training import starts

from .conftest import Cli


def started(model: str, *overrides: str) -> tuple[Any, Any]:
    """A policy of random weights, and its settings."""
    config = resolve(None, ["policy.random_init=true", *overrides], {"model": model}).config
    return starts.start_policy(config), config.policy


# ---------------------------------------------------------------- what is recorded


@pytest.mark.parametrize(
    ("model", "overrides", "template", "trained"),
    [
        ("scenes-8", (), None, "all"),
        ("janus-pro-tiny", (), "janus-pro", "language-model"),
        ("janus-pro-tiny", ("policy.template=janus", "policy.trained=transformer"), "janus", "transformer"),
        ("llamagen-tiny", (), "llamagen", "transformer"),
        ("llamagen-tiny", ("policy.template=gcpo", "policy.trained=layers"), "gcpo", "layers"),
    ],
)
def test_what_the_settings_leave_to_the_policy_is_written_out(
    model: str, overrides: tuple[str, ...], template: str | None, trained: str
) -> None:
    policy, config = started(model, *overrides)
    found = starts.text_and_parts(policy, config)
    prefixes = ("",) if trained == "all" else policy.parts[trained]
    learns = sum(parameter.numel() for name, parameter in policy.named_parameters() if name.startswith(prefixes))
    assert found == {"template": template, "trained": trained, "adapters": [], "trained_parameters": learns}
    assert template is None or policy.template == policy.templates[template]


def test_adapters_are_named_with_the_layers_that_have_one() -> None:
    policy, config = started("janus-pro-tiny", "policy.lora={rank: 2, targets: [q_proj, down_proj]}")
    assert starts.text_and_parts(policy, config) == {
        "template": "janus-pro",
        "trained": "adapters",
        "adapters": ["down_proj", "q_proj"],
        # two layers; q_proj is 64 x 64, down_proj 64 x 128
        "trained_parameters": 2 * 2 * ((64 + 64) + (128 + 64)),
    }


def test_every_start_of_a_run_records_them(cli: Cli, tmp_path: Path) -> None:
    options = ("policy.random_init=true", "rewards=[{name: redness}]", "sampling.prompts_per_step=1")
    given = [part for option in (*options, "sampling.group_size=2") for part in ("-o", option)]
    begun = cli("train", "--model", "janus-pro-tiny", *given, "--name", "a", "--num-steps", "1")
    assert begun.code == 0, begun.err
    assert cli("train", "--resume", "--name", "a", "--num-steps", "2").code == 0
    records = runs.open_run("a", tmp_path / "runs").environments()
    assert [(record["policy"]["template"], record["policy"]["trained"]) for record in records] == [
        ("janus-pro", "language-model")
    ] * 2
