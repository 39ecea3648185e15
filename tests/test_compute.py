"""How exactly networks compute: float32 is float32 wherever a number comes from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from gcpo_bench.evaluators import fidelity
from gcpo_bench.evaluators.detectors import depth, grounding_dino
from gcpo_bench.evaluators.detectors import random_weights as detectors
from gcpo_bench.evaluators.scorers import random_weights
from gcpo_bench.evaluators.scorers.compute import Compute, exactly, inference
from gcpo_bench.evaluators.scorers.tokens import bert_tokenizer

from . import miniatures
from .scorer_factory import pictures

CUDNN: Any = torch.backends.cudnn
MATMUL: Any = torch.backends.cuda.matmul
IS_NEW = hasattr(CUDNN, "conv")
"""torch 2.9 or newer."""


def switches() -> tuple[Any, ...]:
    """All that can be read of TF32."""
    old = (CUDNN.allow_tf32, MATMUL.allow_tf32, torch.get_float32_matmul_precision())
    if not IS_NEW:
        return old
    places = (CUDNN.conv, CUDNN.rnn, MATMUL)
    return (*old, *(place.fp32_precision for place in places))


@contextmanager
def restored() -> Iterator[None]:
    conv, matmul = CUDNN.allow_tf32, torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        CUDNN.allow_tf32 = conv
        torch.set_float32_matmul_precision(matmul)


@pytest.mark.parametrize("conv", [True, False])
@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
@pytest.mark.parametrize("fails", [True, False])
def test_float32_is_exact_within_and_as_before_afterwards(conv: bool, matmul: str, fails: bool) -> None:
    class Failed(Exception):
        pass

    @inference
    def look(fail: bool) -> tuple[bool, bool]:
        """As a scorer's method: docstring and name stay."""
        if fail:
            raise Failed
        assert torch.is_inference_mode_enabled()
        return CUDNN.allow_tf32, MATMUL.allow_tf32

    with restored():
        CUDNN.allow_tf32 = conv
        torch.set_float32_matmul_precision(matmul)
        before = switches()
        if fails:
            with pytest.raises(Failed):
                look(True)
        else:
            assert look(False) == (False, False)
            with exactly(), exactly():
                assert look(False) == (False, False)
        assert switches() == before
    assert look.__name__ == "look"


@pytest.mark.skipif(not IS_NEW, reason="this torch has no new switches")
def test_switches_that_torch_does_not_let_be_read_together_are_restored_too() -> None:
    places = (CUDNN.conv, CUDNN.rnn, MATMUL)
    start = [place.fp32_precision for place in places]
    try:
        for place, value in zip(places, ("tf32", "ieee", "tf32"), strict=True):
            place.fp32_precision = value
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        with exactly():
            assert [place.fp32_precision for place in places] == ["ieee"] * 3
        assert [place.fp32_precision for place in places] == ["tf32", "ieee", "tf32"]
    finally:
        for place, value in zip(places, start, strict=True):
            place.fp32_precision = value


def scorers(tmp_path: Path = Path()) -> dict[str, Callable[[], Any]]:
    images = pictures(2, sides=(30, 40))
    texts = ["a red cup", "a dog"]

    def scorer(name: str) -> Callable[[], Any]:
        return lambda: random_weights.scorer(name, small=True, compute=Compute()).score(images, texts)

    def geneval() -> None:
        vision, _ = detectors.build(fidelity.get("official"), small=True, device="cpu")
        list(vision(images, [["cup"], []]))
        (found, *_) = vision.detector.detect(images[:1])
        vision.classifier(images[0], found[:1])

    def boxes() -> None:
        tokenizer = bert_tokenizer(miniatures.bert_words(tmp_path))
        grounding_dino.GroundingDino(miniatures.grounding_dino(), tokenizer)(images[0], ["cat"])

    return {
        **{name: scorer(name) for name in random_weights.SCORERS},
        "blip-vqa": lambda: random_weights.blip_vqa(small=True, compute=Compute()).probabilities(images[0], ["a cup?"]),
        "geneval": geneval,
        "grounding-dino": boxes,
        "dpt": lambda: depth.Depth(miniatures.depth())(images[0]),
    }


@pytest.mark.parametrize("name", scorers())
def test_no_network_of_an_evaluator_runs_with_tf32(name: str, tmp_path: Path) -> None:
    seen: list[bool] = []

    def note(module: torch.nn.Module, _: Any) -> None:
        seen.append(CUDNN.allow_tf32 or MATMUL.allow_tf32)

    run = scorers(tmp_path)[name]
    with restored():
        CUDNN.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
        hook = register_module_forward_pre_hook(note)
        try:
            run()
        finally:
            hook.remove()
    assert len(seen) > 10
    assert not any(seen)


def test_scores_of_a_gpu_say_that_float32_was_exact() -> None:
    assert Compute().identity == {"device": "cpu", "precision": "float32"}
    assert Compute(device="cuda:1").identity == {"device": "cuda", "precision": "float32", "tf32": False}
    assert Compute(device="cuda", precision="autocast").identity["precision"] == "autocast"
