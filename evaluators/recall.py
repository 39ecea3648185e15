"""The look that an evaluation is judged again by: that of its last scores, or a stored one with what is asked for.

An option that changes what is seen in an image (weights, preprocessing, precision) has no effect on what was seen
without it. So a benchmark says what such options mean in a look, and judging again needs a look that holds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gcpo_bench.errors import RunError

from .observations import looks
from .types import ANY, Asked, Evaluation


def recalled_look(out: Path, before: Evaluation, asked: Asked) -> dict[str, Any]:
    """Raises RunError where nothing is stored, or nothing with what is asked for."""
    last = before.identity.get("look")
    if not isinstance(last, dict):
        raise RunError(f"{out} holds no stored observations", hint="evaluate once without --rescore")
    lacking = [option for option, part in asked.items() if not _holds(last, part)]
    if not lacking:
        return last
    wanted: dict[str, Any] = {}
    for part in asked.values():
        wanted = _joined(wanted, part)
    if (found := _choose(last, looks(out / "observations"), wanted)) is not None:
        return dict(found)
    raise RunError(
        f"{out}: nothing is stored with {' and '.join(lacking)}",
        hint="evaluate once without --rescore, or leave out what changes what is seen in an image",
    )


def _choose(last: Mapping[str, Any], stored: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> Any:
    """`last` or one of `stored` that holds `wanted` and is else as `last`; of a look in parts, each part's own."""
    for look in (last, *stored):
        if _holds(look, wanted) and _agrees(look, last, wanted):
            return look
    found = {}
    for part, of_part in wanted.items():
        if not isinstance(of_part, Mapping) or not isinstance(last.get(part), Mapping):
            return None
        found[part] = _choose(last[part], stored, of_part)
    return None if None in found.values() else {**last, **found}


def _holds(look: Any, wanted: Any) -> bool:
    if not isinstance(wanted, Mapping):
        return wanted is ANY or bool(look == wanted)
    return isinstance(look, Mapping) and all(key in look and _holds(look[key], wanted[key]) for key in wanted)


def _agrees(look: Mapping[str, Any], last: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two looks are alike in all that both have, but for what is wanted."""
    for key in look.keys() & last.keys():
        part = wanted.get(key)
        if isinstance(part, Mapping) and isinstance(look[key], Mapping) and isinstance(last[key], Mapping):
            if not _agrees(look[key], last[key], part):
                return False
        elif key not in wanted and look[key] != last[key]:
            return False
    return True


def _joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    both = [key for key in first.keys() & second.keys() if isinstance(first[key], Mapping)]
    return {**first, **second, **{key: _joined(first[key], second[key]) for key in both}}
