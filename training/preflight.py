"""What a run needs of this machine, looked at before there is a run: the cheapest first, and nothing large is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gcpo_bench import catalogue
from gcpo_bench.config import RunConfig
from gcpo_bench.errors import CorruptDataError, PrerequisiteError
from gcpo_bench.registry import BENCHMARKS, POLICIES, REWARDS

from . import starts
from .memory import check_memory
from .observation import require_prompts
from .selectors import build_selectors
from .weighting import build_weighting


def require(config: RunConfig, root: Path, processes: int = 1) -> None:
    """Raises the first thing that would keep a run in the folder `root` from its first step, one of `processes`."""
    for check in _checks(config, root, processes):
        check()


def missing(config: RunConfig, root: Path, processes: int = 1) -> list[PrerequisiteError | CorruptDataError]:
    """All that this machine lacks. Raises ConfigError and RunError for a configuration that runs nowhere."""
    found: list[PrerequisiteError | CorruptDataError] = []
    for check in _checks(config, root, processes):
        try:
            check()
        except (PrerequisiteError, CorruptDataError) as error:
            found.append(error)
    return found


def _checks(config: RunConfig, root: Path, processes: int) -> list[Callable[[], object]]:
    return [
        lambda: build_selectors(config.selection),
        lambda: build_weighting(config.weighting),
        lambda: starts.usable_device(config.policy.device),
        lambda: check_memory(config, processes),
        lambda: require_prompts(config),
        lambda: catalogue.require(term.name for term in config.rewards if _has_weights(term.name)),
        *(lambda name=term.name: _check_reward(name) for term in config.rewards),
        lambda: _check_start(config, root),
        lambda: _check_outside(config),
    ]


def _check_reward(name: str) -> None:
    """That a reward without published weights can be made, and what it asks is there; those with weights are large."""
    REWARDS.load(name)
    if name not in REWARDS.entries or _has_weights(name):
        return
    term = REWARDS.make(name)
    if check := getattr(term, "check", None):
        check()


def _has_weights(reward: str) -> bool:
    """The embedded world's verifier bears the name of a benchmark, and needs none."""
    return reward in catalogue.NEEDS and reward not in BENCHMARKS


def _check_start(config: RunConfig, root: Path) -> None:
    if config.policy.name in POLICIES.entries:
        starts.check_start(config, root)
    else:
        starts.start_weights(config, root)


def _check_outside(config: RunConfig) -> None:
    if config.policy.name in POLICIES.entries:
        starts.check_outside(config.policy)
