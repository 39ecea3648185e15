"""`--generator-option KEY=VALUE` of a diffusers pipeline: some say how it is loaded, the others go to its call.

What a call takes is read from the pipeline itself: every parameter of its `__call__` whose type is made of numbers,
texts and truth values, save those that say what is drawn or how it is handed back.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gcpo_bench.config import is_truth_for_number
from gcpo_bench.errors import ConfigError, did_you_mean
from gcpo_bench.files import parse_yaml

DTYPES = ("bfloat16", "float16", "float32")
OFFLOADS = ("none", "model", "sequential")
LOADING = ("dtype", "offload", "revision", "safety_checker", "variant")
SHORT = {"steps": "num_inference_steps"}
OURS = re.compile(r"prompt.*|num_images_per_prompt|output_type|return_dict|_.*|.*callback.*|.*_embeds")
"""What the program sets itself, or leaves alone."""
SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How a pipeline is loaded."""

    dtype: str = ""
    """Of the weights; empty for the device's own."""
    offload: str = "none"
    """Weights that wait in main memory until they are needed: `model` by whole networks, `sequential` by layers."""
    revision: str | None = None
    safety_checker: bool = False
    variant: str | None = None


def split(options: Mapping[str, str]) -> tuple[Loading, dict[str, str]]:
    """How to load, and what is left for the call. Raises ConfigError for a value that cannot be used."""
    given: dict[str, Any] = {key: value for key, value in options.items() if key in LOADING}
    for key, known in (("dtype", DTYPES), ("offload", OFFLOADS), ("safety_checker", ("true", "false"))):
        if key in given and given[key] not in known:
            raise ConfigError(f"generator option {key} cannot be {given[key]!r}", hint=did_you_mean(given[key], known))
    if "safety_checker" in given:
        given["safety_checker"] = given["safety_checker"] == "true"
    call: dict[str, str] = {}
    for key, value in options.items():
        if key not in LOADING:
            name = SHORT.get(key, key)
            if name in call:
                raise ConfigError(f"generator option {name} is given twice", hint=f"{key} is short for {name}")
            call[name] = value
    return Loading(**given), call


def call_settings(pipeline: type, given: Mapping[str, str]) -> dict[str, Any]:
    """Every setting of a pipeline's call that has a value: those given, and its own for the others.

    Raises ConfigError for one that it does not take, or a value of another type.
    """
    parameters = inspect.signature(pipeline.__call__, eval_str=True).parameters
    accepted = {
        name: each for name, each in parameters.items() if _is_plain(each.annotation) and not OURS.fullmatch(name)
    }
    own = {name: parameter.default for name, parameter in accepted.items() if _has_value(parameter.default)}
    for name in given:
        if name not in accepted:
            known = [*(key for key, full in SHORT.items() if full in accepted), *accepted, *LOADING]
            raise ConfigError(f"{pipeline.__name__} has no option {name!r}", hint=did_you_mean(name, known))
    return own | {name: _value(pipeline, accepted[name], text) for name, text in given.items()}


def _is_plain(annotation: Any) -> bool:
    if annotation in SCALARS or annotation is None:
        return True
    origin = typing.get_origin(annotation)
    plain = origin in (list, tuple, typing.Union, types.UnionType)
    return plain and all(part is ... or _is_plain(part) for part in typing.get_args(annotation))


def _has_value(default: Any) -> bool:
    return isinstance(default, (bool, int, float, str, list, tuple)) and default not in ("", [], ())


def _value(pipeline: type, parameter: inspect.Parameter, text: str) -> Any:
    kind = parameter.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
    try:
        value = text if str in (kind, *typing.get_args(kind)) else parse_yaml(text)
        if is_truth_for_number(kind, value):
            raise ValueError("true and false are no numbers")
        return adapter.validate_python(value)
    except (ValidationError, ValueError) as error:
        shown = kind.__name__ if isinstance(kind, type) else str(kind)
        raise ConfigError(
            f"generator option {parameter.name} cannot be {text!r}", hint=f"{pipeline.__name__} takes {shown}"
        ) from error
