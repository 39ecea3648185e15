"""What a number must be quoted with: read from the identity that an evaluation records, for tables of every kind.

Everything that moves a score and is not as published stands here: whose program, which weights, settings that are not
the defaults, a part of the prompts or images only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

DEFAULTS: Mapping[str, float] = {
    "threshold": 0.3,
    "counting_threshold": 0.9,
    "max_objects": 16,
    "max_overlap": 1.0,
    "position_threshold": 0.1,
    "box_threshold": 0.35,
    "text_threshold": 0.25,
    "nms_threshold": 0.8,
}
"""Of the settings in an identity, GenEval's and Grounding DINO's; tests compare them with the options' own."""
OWN_QUESTION = "sha256:81b87f5149adf1fdad0ef0669a58b935c2258fcadca493bba3523331377ca0f3"
"""UnifiedReward's question as built in; tests compare it with the question."""


def label(identity: Mapping[str, Any]) -> str:
    """In one line; empty where there is nothing to say. An identity that is damaged says less, and raises nothing."""
    return "; ".join(part for part in _parts(identity) if part)


def _parts(identity: Mapping[str, Any]) -> Iterator[str]:
    look, settings = _mapping(identity.get("look")), _mapping(identity.get("settings"))
    fidelity = _mapping(look.get("fidelity")).get("name") or settings.get("fidelity")
    yield f"fidelity {fidelity}" if fidelity else ""
    for name in ("detector", "classifier"):
        yield f"{name} is not the published one" if look.get(name) == "other" else ""
    yield f"detector run by mmdet {look.get('mmdet')}" if look.get("backend") == "mmdet" else ""
    yield str(look.get("label") or "")
    for scorer, of_scorer in _mapping(look.get("scorers")).items():
        yield _scorer(scorer, _mapping(of_scorer))
    for name, default in DEFAULTS.items():
        if name in settings and settings[name] != default:
            yield f"{name} {settings[name]} (default {default:g})"
    if limited := _mapping(identity.get("limited")):
        yield f"LIMITED: {limited.get('prompts')} of {limited.get('of')} prompts"
    if missing := identity.get("missing"):
        yield f"PARTIAL: {missing} images are missing"


def _scorer(name: str, look: Mapping[str, Any]) -> str:
    """What of a scorer's settings its name does not say; empty where there is one way only."""
    if name == "unified-reward":
        question = str(look.get("question"))
        which = "gcpo-bench's own" if question == OWN_QUESTION else f"a given one ({question[:15]})"
        return f"{name}: the question is {which}"
    if not name.startswith("hps"):
        return ""
    if "torchvision" in look:  # the package itself, whose resize depends on it
        return f"{name}: torchvision {look['torchvision']}"
    pixels = _mapping(look.get("preprocessing"))
    said = ["antialiased" if pixels["antialias"] else "not antialiased"] if "antialias" in pixels else []
    said += [f"fit {pixels['fit']}"] if pixels.get("fit", "pad") != "pad" else []
    said += ["half precision"] if look.get("precision") == "autocast" else []
    return f"{name}: {', '.join(said)}" if said else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
