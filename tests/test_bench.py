"""The benchmarks run, on the smallest instances, and say what they measured."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import DPTForDepthEstimation, GroundingDinoForObjectDetection, Mask2FormerForUniversalSegmentation

from gcpo_bench.catalogue import COMPBENCH_DEPTH, GROUNDING_DINO
from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.evaluators import bench as evaluate_bench
from gcpo_bench.evaluators.detectors import grounding_dino, mask2former
from gcpo_bench.evaluators.detectors.random_weights import depth_config, detector_config, grounding_dino_config
from gcpo_bench.evaluators.scorers import random_weights
from gcpo_bench.evaluators.scorers.clip_weights import ARCHITECTURES
from gcpo_bench.registry import BENCHMARK_GROUPS
from gcpo_bench.resolve import resolve
from gcpo_bench.training import bench, logprobs
from gcpo_bench.training.bench import VARIANTS, Rates, Spec, spec_for
from gcpo_bench.training.floors import rollout_bytes, rollout_flops
from gcpo_bench.training.types import Work

from .conftest import Cli
from .scorer_factory import GELU, clip_tokenizer_folder, open_clip_state, save

RATES = Rates(copy_bytes_per_s=1e9, matmul_flops_per_s=1e9)


def spec(model: str, *overrides: str) -> Spec:
    return spec_for(resolve(None, overrides, {"model": model}).config, images=4, threads=1, repeats=1)


@pytest.mark.parametrize(("part", "variant"), [(part, name) for part, names in VARIANTS.items() for name in names])
def test_every_variant_is_measured_beside_its_floor(part: str, variant: str) -> None:
    small = ("sampling.guidance_scale=3", "sampling.group_size=4")
    found = bench._measure(part, variant, spec("janus-pro-tiny", *small), RATES).to_json()
    assert found["variant"] == variant
    assert found["tokens"] == 4 * 36
    assert 0 < found["seconds_min"] <= found["seconds"] < 60
    assert found["tokens_per_s"] == pytest.approx(4 * 36 / found["seconds"])
    assert math.isclose(found["ratio_to_floor"], found["seconds"] / found["floor_s"])
    assert (found["kernels_per_token"] is None) == (part != "rollout")


def test_a_rollout_launches_far_fewer_kernels_than_that_of_transformers() -> None:
    launched = {}
    for variant, prepare in VARIANTS["rollout"].items():
        action, _ = prepare(spec("janus-pro-tiny"))
        action()
        launched[variant] = bench.kernels_per_token(action)
    assert launched[bench.GRAPHS] == launched["static cache"] < launched[bench.TRANSFORMERS] / 2


def test_variants_of_the_update_in_one_process_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 16 * 64)  # 16 positions of the codebook of 64
    found = {}
    for variant, prepare in VARIANTS["update"].items():
        action, learner = prepare(spec("janus-pro-tiny"))
        calls: list[tuple[int, bool]] = []
        learner.policy.generation_head.register_forward_hook(  # type: ignore[attr-defined]
            lambda module, given, made, calls=calls: calls.append((len(made), made.requires_grad))
        )
        action()
        differentiated = sum(rows for rows, has_gradient in calls if has_gradient)
        found[variant] = max(rows for rows, _ in calls), differentiated
    chosen = int((bench._drawn(learner, spec("janus-pro-tiny"))[1] < 0.3).sum())
    assert found == {
        "all positions, logits kept": (4 * 36, 4 * 36),
        "all positions, in chunks": (16, 2 * 4 * 36),  # and again in the backward pass
        "30 % of the positions": (16, 2 * chosen),
    }


def test_floors_are_bytes_and_arithmetic() -> None:
    work = Work(parameters=1000, head=200, cache_per_slot=8, width=4, mlp=16, layers=2)
    # each of 10 tokens: 1000 weights, and of 3 rows 8 numbers for each of 6 + 10 / 2 slots
    assert rollout_bytes(work, 3, 10, element_bytes=2, prompt=6) == 2 * 10 * (1000 + 3 * 8 * 11)
    assert rollout_flops(work, 3, 10) == 2 * 1000 * 3 * 10


def test_the_command_prints_and_writes_what_was_measured(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.COPY_BYTES, "cpu", 2**20)
    monkeypatch.setitem(bench.MATRIX_SIDE, "cpu", 64)
    threads = torch.get_num_threads()
    options = ("--model", "scenes-8", "--images", "8", "--repeats", "1", "--threads", "1")
    result = cli("bench", "select", *options, "--json", "--out", "select.json")
    torch.set_num_threads(threads)
    assert result.code == 0, result.err
    printed = json.loads(result.out)
    assert printed == json.loads((tmp_path / "select.json").read_text(encoding="utf-8"))
    assert (printed["part"], printed["model"], printed["images"]) == ("select", "scenes-8", 8)
    assert [row["variant"] for row in printed["variants"]] == list(VARIANTS["select"])


# ---------------------------------------------------------------- how fast images are looked at

LOOK = evaluate_bench.Spec(images=2, side=40, repeats=1, threads=1, device="cpu", random="small")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process of its own for each scorer, no published weights, a detector that sees less."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(evaluate_bench, "_apart", evaluate_bench._measure)
    monkeypatch.setattr(mask2former, "LONG_SIDE", 266)
    monkeypatch.setattr(mask2former, "SHORT_SIDE", 160)
    monkeypatch.setattr(grounding_dino, "LONG_SIDE", 400)
    monkeypatch.setattr(grounding_dino, "SHORT_SIDE", 240)  # smaller ones have less than 900 places
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", [*random_weights.SCORERS, *evaluate_bench.OTHERS])
def test_every_scorer_is_measured_with_random_weights(name: str) -> None:
    decode_s, (found,) = evaluate_bench.measure([name], LOOK)
    assert decode_s > 0
    assert (found.scorer, found.weights) == (name, "random, small")
    row = found.to_json(LOOK)
    assert all(0 < row[key] < 60 for key in ("load_s", "one_by_one_s", "together_s", "together_cpu_s"))
    assert row["images_per_s_together"] == pytest.approx(2 / row["together_s"])
    assert row["peak_bytes"] >= 0


@pytest.mark.usefixtures("in_this_process")
def test_published_weights_are_used_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCPO_BENCH_HOME", str(tmp_path))
    anything = replace(LOOK, random=None)
    assert evaluate_bench.measure(["hps-v2.1"], anything)[1][0].weights == "random, small"
    architecture = replace(GELU, pixels=224, patch=112)
    monkeypatch.setitem(ARCHITECTURES, "ViT-H-14", architecture)
    clip_tokenizer_folder(tmp_path / "weights" / "clip-vit-large-patch14")
    save(open_clip_state(architecture), tmp_path / "weights" / "HPS_v2.1_compressed.pt")
    assert evaluate_bench.measure(["hps-v2.1"], anything)[1][0].weights == "published"
    assert evaluate_bench.measure(["hps-v2.1"], LOOK)[1][0].weights == "random, small"


def test_random_weights_have_the_published_size_where_asked() -> None:
    with torch.device("meta"):
        detector = Mask2FormerForUniversalSegmentation(detector_config(small=False))
        finder = GroundingDinoForObjectDetection(grounding_dino_config(small=False))
        depth = DPTForDepthEstimation(depth_config(small=False))
        depth.dpt.embeddings.image_size = (480, 480)
        assert depth(pixel_values=torch.empty(1, 3, 480, 480)).predicted_depth.shape == (1, 480, 480)
    assert sum(parameter.numel() for parameter in detector.parameters()) == 68_741_083  # Swin-S: 68.7 million
    bytes_of = {each: 4 * sum(parameter.numel() for parameter in each.parameters()) for each in (finder, depth)}
    # the files hold a little more: names, numbers that are no parameters
    assert bytes_of[finder] == pytest.approx(GROUNDING_DINO["base"].bytes_about, rel=0.01)
    assert bytes_of[depth] == pytest.approx(COMPBENCH_DEPTH.bytes_about, rel=0.01)
    for name, architecture in ARCHITECTURES.items():
        assert random_weights.clip_architecture(name, small=False) == architecture
        small = random_weights.clip_architecture(name, small=True)
        assert (small.pixels, small.patch, small.words) == (architecture.pixels, architecture.patch, architecture.words)
    words = random_weights.tokenizer(begin=7, end=9)
    assert words("three short words")["input_ids"] == [7, 0, 0, 0, 9]
    assert words.encode("two words", add_special_tokens=False) == [0, 0]


@pytest.mark.usefixtures("in_this_process")
def test_scorers_are_measured_from_the_command_line(cli: Cli, tmp_path: Path) -> None:
    options = ("--images", "2", "--size", "40", "--repeats", "1", "--threads", "1", "--random", "small")
    result = cli("bench", "evaluate", "--scorers", "clip-score+aesthetic", *options, "--json", "--out", "e.json")
    assert result.code == 0, result.err
    printed = json.loads(result.out)
    assert printed == json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert [row["scorer"] for row in printed["scorers"]] == ["clip-score", "aesthetic"]
    assert (printed["part"], printed["images"], printed["side"]) == ("evaluate", 2, 40)
    assert printed["environment"]["cores"] >= 1
    table = cli("bench", "evaluate", "--benchmark", "t2i-compbench-non-spatial", *options)
    assert table.code == 0, table.err
    assert "clip-score-b32" in table.out
    measured = set(chain(*map(evaluate_bench.scorers_of, BENCHMARK_GROUPS["t2i-compbench"])))
    assert measured == {"blip-vqa", "clip-score-b32", *evaluate_bench.OBJECTS}
    assert "random, small" in table.out


def test_options_of_another_part_are_told(cli: Cli) -> None:
    result = cli("bench", "select", "--model", "scenes-8", "--scorers", "hps-v2.1")
    assert result.code == 2
    assert "--scorers has no meaning for `bench select`" in result.err


def test_an_error_comes_through_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(CorruptDataError("it is damaged", hint="mend it")))
    assert (type(error), str(error), error.hint) == (CorruptDataError, "it is damaged", "mend it")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scorers", "clip"), "unknown scorer 'clip'"),
        (("--scorers", "deqa", "--random", "small"), "scorer 'deqa' runs elsewhere"),
        (("--scorers", "hpsv2-package-v2.1", "--random", "small"), "'hpsv2-package-v2.1' has no random weights"),
        (("--benchmark", "scenes"), "what benchmark 'scenes' looks with is not measured here"),
        (("--benchmark", "geneval", "--scorers", "deqa"), "both --scorers and --benchmark"),
        (("--model", "scenes-8"), "--model has no meaning for `bench evaluate`"),
    ],
)
def test_scorers_that_cannot_be_measured_are_told(cli: Cli, options: tuple[str, ...], message: str) -> None:
    result = cli("bench", "evaluate", *options)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown part 'decode'"):
        bench.measure("decode", spec("scenes-8"))


def test_peak_memory_is_that_of_what_ran() -> None:
    cpu = torch.device("cpu")
    large = torch.ones(60_000_000)  # 240 MB that are gone before the measurement begins
    del large
    before = bench.memory_bytes(cpu, reset=True)
    held = torch.ones(20_000_000)
    assert bench.memory_bytes(cpu) - before == pytest.approx(held.numel() * 4, rel=0.2)
