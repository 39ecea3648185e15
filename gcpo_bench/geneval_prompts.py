"""Training prompts in GenEval's form: five of its tasks, over COCO's classes, none of its 553 evaluation prompts.

GenEval's own evaluation prompts name every class once as a single object, so that task is left out. What the trainers
of Flow-GRPO and GCPO read was drawn with GenEval's generator too, but is another draw.

Source: GenEval (arXiv 2310.11513) for tasks, templates, colours and relations.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from gcpo_bench import streams
from gcpo_bench.datasets import Prompt

PROMPTS_PER_TASK = {"two_object": 3000, "counting": 150, "colors": 600, "position": 3000, "color_attr": 3000}
"""As many as there are, or enough that a run of some thousand steps repeats few."""
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
CLASSES = tuple(_NAMES.split(","))
"""By COCO's contiguous index, 0 to 79. GenEval writes computer mouse, tv remote and computer keyboard in full.

Source: GenEval, `object_names.txt`.
"""
OBJECTS = CLASSES[1:]
"""What training prompts are made of: no person, as in GenEval's prompts with colours and places."""
DIGEST_BYTES = 4
EVALUATION = base64.b64decode(
    "AFzcMACPO+ABR8CFAXLoAAIa7yMDEnzvBHe/jgSjhHIFVsVZBWy7ngXBuyoGHaFMBkqZEwadsNgGv+JbBz9vfgdovkMHkzqdB7IwdAfCnlgID/6m"
    "CNB+PwlolBUJgdCSCkn4kwplENUL0H7DC+uh7w3KKOMOB+nzDwxhLQ83CFoPe/3SD5hWqhAhSHcQIvqNEIqNexCeXUIRBO5lERyWMhGo6+cSC2Jr"
    "Ejl4QRLOZEkTSbtuE6eaAhR2hjIVchjMFYQU+xW2/kwWe6uFF1a6aRdc2UcXk+rAGBTMkRipA1gYr8yWGWeDkhlob14Zd0PnGsRj7Rrev0Uc9bgh"
    "HXPGax3fDlAfeGFqH6yhQyHiMV4jm+P5JIcbRyVv8fAlcHqEJa6znSXGxb8mEp6pJucwoiiI8FYomdFGKK6ilyk1f5MpO+QuKb0WwSnlOYsqGjml"
    "KtQ9uStETjcsPmDVLHcbICzuMXovVHJGMCfjizCeOa8xlq4OMe/N2zHzdtwyDOt7MrMpijLCO/QzPpPdM2BXVTNyUZEzxRvTNNqwJjVuLQU1sZw/"
    "Ny2KtTddPaU4NmLHOP5ZKzkv3Ns5rNmbOeqECjpFqns6oAElO3Rn6TuQ9Cs72aAZPQTQdD142cU9eQQUPhA2nD41XjI+PEN3Pt+0bT+P3Bs/y/Od"
    "QBnLI0BHLERAydmuQgepSUIZQ/1CbUEoQqJNH0LXfl5DY4B6Q7kyA0Qelb9EW/zERN/gi0VKLNxGAWX4RoGePkbTxQdHVFwCR4XKb0hGx3NIUAgI"
    "SXvCAknSu2BJ9aerSpY5ukrHOs9K3KwhSxVlU0uF+VxMwbUZTNTQyk45gZBOgnDMTtrn7U+RMDVQqBZAULu3VlGiVPJSF+LBUl0IbFMIBcdUoAla"
    "VNtCX1T+4qRVWn9NVV2Cr1XE/dlWEFxiVvfCc1djTKBXhVkjV6SZo1fKMYJYGvAPWIfmd1jC8hBYxheFWOwfK1kraxtbWydwW3iUQFubeK5cV3PU"
    "XK3HAl2LSG5dx/7SXhHWUV5LBTVeiL0lXwqi9GA3DQVgV3W4YXmtW2GSyT1iW/ngYmJYcmL7UStjNG35Y2mS6mOZ/z5kDIL0ZS3752VOh+9larAS"
    "ZbX22mX8Ex1mhMl3ZqSUpWb5dABnRNKsZ1afpmgEBFdodMO7aO9yEWotqxVrg6iTa6uTk2wuisBs0bmpbN1NJm0ZtPdt00CXbgsGaG49zoZurpjE"
    "b2VgrW+XH7dwmolzcLf7BHH8/LVyOtSxcmixc3MJcn9zqGq0dGG+I3VEep91rAyIdr9fCncFtqx3e8mHd7yy93g2HN94WqereaW1IHntCkh6zdXt"
    "evEKMnr62Al73KCUfFvC+Xyri8t9ltkqfbR6XX5SD8l+2t9hft0ZqX8fS1t/Ie4wf5Czdn/3dVSAspGMgLvUTIDcMoCA6v8igYdm7oH8ziKC8HTa"
    "gx5Tc4M2TqyEoItnhMll0IVkHVSG/WQUiDHGwolTMNmJ0aP4iefc5opSDKOKZk83iqzjMIr7bVuL7zdtjBjx5YxCDDWMZIjzjNOToozudYGNnUX6"
    "jbQ9nI4KDoiPanOnj5eYeY+8SQGP0Tv6j/ShS5B2fpOREozAkUYBAZFHY92R0xfnkiPI/JIvhCKTQL5hlA+/FZT8e4qVi2CTleKfq5azHuaXM1DL"
    "l0gJeZhbUyGY0VE5mcm575pGIqqa+TUFm3IbMJuJ7BWbl4bhm8P2SJwzSN6cPTKonGnfX5ztiDac/K4gnXVYmJ5JbByepMUlntx27p8+9GSfbhuF"
    "n6PYVZ/FKYCgXClHoLaeg6I9cv6igEHmovjRnaOOqbaju+BGpC5D2KWY97ul1h03pgHxXKYkchymmJsTp1m44KeI6n+npgMTqEeB6ahQQMaoc9oT"
    "qLPsfKkLJk2pOvO7qT2/nqm2RMOqXmr6qw3LX6s816WssgbRrcJXDK3O64Gt6DaPrsrq66+rDaWv17J8r/RKGLAFuEaxJbH8sW0MbLJn122yeZBg"
    "sqNKurK8F86zuHfPs+L8YrQAERy0ZiRntTrTzbVec0614DpLtlrahbaqha220wJnt3haBLfXQzu4B1Y2uIUTYblhWmu5cCkJuXCqQ7pNb4i6eSs/"
    "uvmJDru7pA68GouivBwIUbyT9bi86KqSvSxZ8r8rr8m/9r28wFb8fMBvYGDBAyFJwU+xzcJqvXvCjxx0xD0OacRzp4zE0q9CxNyPc8UshtrFlFQ9"
    "xfwnmcbmzzPHJbs+x0o038fkt+bJSG+MyaVa7cneWA3KI5zjyxz6lMspXejLrn9Py7myxcwaXJfMSBanzFkfrsy2/m3M4N3FzOPazs89kBjPr4Re"
    "0BhhFNBzFEnQczCP0OHYENEvz7DRg6bP0e+sc9JU9FDShIH00p1jMdLaZkPTKtb/04uUk9OU+yvTtLFu1LFSFdWJJZTVvEUJ1f6zQNcIynfXKm3L"
    "122hsteIOW/ZjLoY2dKMWtnX+e3Z4MKi2lsXudsGIbzbeFo82+rhZNwsW8Ddhj+Y3ah0hN2qHkTdwSVD3cI+ut7gtL/fXMA0368Mq9/H9YXgLs+K"
    "4MiW4eG9XSXiZ/df4m7GsuMtaPrjyhMl5BWx7eR+jvrkpzRR5mFGrObrjFnm/MoD5yn2nucwfDvnSoG451LvWuePB6voe1g36UwuB+nSGcbqWm0M"
    "6uJKDesZaiDrG2mA68RVz+wmp/XsJsiQ7IwvhOzC4sTtADv+7S2MxO6uHJnvbhCa75ErUe+nAR3vzXq78BBH7PAlRlbxYodY8Z4XPPPCoMPz4N1M"
    "8+xbPPShAGb1JYCR9U79X/Vs8G315i3b9e7yq/X+o2v2WQYm9sFza/b/dR/3d4eF96noFPht0rT4f+Wx+LPJvfjEozf4/aOu+VHrZvpiHnX7rF2B"
    "+9+bZPyhL4n8+13b/hPUCf5uNX//DZUb/yQKnw=="
)
"""Of each evaluation prompt the first bytes of the SHA-256 of its text in lower case."""


def is_evaluation_prompt(text: str) -> bool:
    """Whether `text` is one of GenEval's 553, whatever its case; wrong once in some ten million texts."""
    digest = hashlib.sha256(text.lower().encode()).digest()[:DIGEST_BYTES]
    return digest in _evaluation()


@cache
def _evaluation() -> frozenset[bytes]:
    return frozenset(EVALUATION[at : at + DIGEST_BYTES] for at in range(0, len(EVALUATION), DIGEST_BYTES))


@cache
def train_prompts() -> tuple[Prompt, ...]:
    """Always the same; ids `geneval-train-<task>-<number>`."""
    prompts: list[Prompt] = []
    for task, make in TASKS.items():
        rng = streams.generator(0, "geneval-train", task)
        seen: dict[str, Prompt] = {}
        tries = 0
        while len(seen) < PROMPTS_PER_TASK[task] and tries < 20 * PROMPTS_PER_TASK[task]:
            tries += 1
            text, include, exclude = make(rng)
            if text in seen or is_evaluation_prompt(text):
                continue
            metadata: dict[str, Any] = {"tag": task, "include": include}
            if exclude:
                metadata["exclude"] = exclude
            seen[text] = Prompt(id=f"geneval-train-{task}-{len(seen):04d}", text=text, metadata=metadata)
        prompts += seen.values()
    return tuple(prompts)


Made = tuple[str, list[dict[str, Any]], list[dict[str, Any]]]
"""Text, what must be there, what must not."""


def _two_object(rng: np.random.Generator) -> Made:
    a, b = _pick(rng, OBJECTS, 2)
    return f"a photo of {_article(a)} and {_article(b)}", [_one(a), _one(b)], []


def _counting(rng: np.random.Generator) -> Made:
    (name,) = _pick(rng, OBJECTS, 1)
    count = int(rng.integers(2, 5))
    plural = f"{name}{'es' if name.endswith('s') else 's'}"
    exclude = [{"class": name, "count": count + 1}]
    return f"a photo of {NUMBERS[count]} {plural}", [{"class": name, "count": count}], exclude


def _colors(rng: np.random.Generator) -> Made:
    (name,), (color,) = _pick(rng, OBJECTS, 1), _pick(rng, COLORS, 1)
    return f"a photo of {_article(f'{color} {name}')}", [_one(name, color=color)], []


def _position(rng: np.random.Generator) -> Made:
    (a, b), (relation,) = _pick(rng, OBJECTS, 2), _pick(rng, RELATIONS, 1)
    return f"a photo of {_article(a)} {relation} {_article(b)}", [_one(b), _one(a, position=[relation, 0])], []


def _color_attr(rng: np.random.Generator) -> Made:
    (a, b), (first, second) = _pick(rng, OBJECTS, 2), _pick(rng, COLORS, 2)
    text = f"a photo of {_article(f'{first} {a}')} and {_article(f'{second} {b}')}"
    return text, [_one(a, color=first), _one(b, color=second)], []


TASKS: dict[str, Callable[[np.random.Generator], Made]] = {
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}


def _pick(rng: np.random.Generator, names: tuple[str, ...], count: int) -> Iterator[str]:
    """Different ones."""
    return (names[index] for index in rng.choice(len(names), size=count, replace=False))


def _one(name: str, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": 1, **more}


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
