"""The benchmarks run, on the smallest instances, and say what they measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from gcpo_bench.errors import ConfigError
from gcpo_bench.resolve import resolve
from gcpo_bench.training import bench, logprobs
from gcpo_bench.training.bench import VARIANTS, Rates, Spec, spec_for
from gcpo_bench.training.floors import rollout_bytes, rollout_flops, update_flops
from gcpo_bench.training.types import Work

from .conftest import Cli

RATES = Rates(copy_bytes_per_s=1e9, matmul_flops_per_s=1e9)


def spec(model: str, *overrides: str) -> Spec:
    return spec_for(resolve(None, overrides, {"model": model}).config, images=4, threads=1, repeats=1)


@pytest.mark.parametrize(("part", "variant"), [(part, name) for part, names in VARIANTS.items() for name in names])
def test_every_variant_is_measured_beside_its_floor(monkeypatch: pytest.MonkeyPatch, part: str, variant: str) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", logprobs.CHUNK_LOGITS)  # a variant may change it
    small = ("sampling.guidance_scale=3", "sampling.group_size=4")
    found = bench._measure(part, variant, spec("janus-pro-tiny", *small), RATES).to_json()
    assert found["variant"] == variant
    assert found["tokens"] == 4 * 36
    assert 0 < found["seconds_min"] <= found["seconds"] < 60
    assert found["tokens_per_s"] == pytest.approx(4 * 36 / found["seconds"])
    assert math.isclose(found["ratio_to_floor"], found["seconds"] / found["floor_s"])


def test_floors_are_bytes_and_arithmetic() -> None:
    work = Work(parameters=1000, cache_per_slot=8, width=4, layers=2)
    # each of 10 tokens: 1000 weights, and of 3 rows 8 numbers for each of 6 + 10 / 2 slots
    assert rollout_bytes(work, 3, 10, element_bytes=2, prompt=6) == 2 * 10 * (1000 + 3 * 8 * 11)
    assert rollout_flops(work, 3, 10) == 2 * 1000 * 3 * 10
    assert update_flops(work, 3, 10) == 8 * 1000 * 3 * 10


def test_the_command_prints_and_writes_what_was_measured(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "COPY_BYTES", 2**20)
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


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown part 'decode'"):
        bench.measure("decode", spec("scenes-8"))
