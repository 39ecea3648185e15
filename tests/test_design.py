"""What a design is said to find, it finds: printed power and detectable effects against simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gcpo_bench.reports.design import Design, Spread, estimate_spread, measured_spread, pooled, seeds_to_detect
from gcpo_bench.reports.load import load
from gcpo_bench.reports.statistics import Floats, two_way_difference

from .conftest import Cli
from .run_factory import make_study

TAGS = [f"t{i % 6}" for i in range(288)]


def draw(generator: np.random.Generator, design: Design, spread: Spread, effect: float = 0.0) -> Floats:
    """Differences as the model of the design has them: seed + prompt + image noise."""
    shape = (design.seeds, design.prompts)
    seeds = generator.normal(0, spread.seed, (design.seeds, 1))
    prompts = generator.normal(0, spread.prompt, (1, design.prompts))
    noise = generator.normal(0, spread.image / design.images**0.5, shape)
    return np.asarray(effect + seeds + prompts + noise)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [Spread(seed=0.01, prompt=0.2, image=0.5), Spread(seed=0.02, prompt=0.1, image=0.4)])
def test_the_printed_power_is_within_5_points_of_the_simulated(seeds: int, spread: Spread) -> None:
    design = Design(seeds=seeds, prompts=len(TAGS), images=4)
    generator = np.random.default_rng(seeds)
    for effect in (0.03, design.detectable(spread)):
        found = 0
        trials = 1200
        for _ in range(trials):
            differences = draw(generator, design, spread, effect)
            interval = two_way_difference(differences, np.zeros_like(differences), TAGS)
            found += interval.low > 0 or interval.high < 0
        assert found / trials == pytest.approx(design.power(spread, effect), abs=0.05)
    assert design.power(spread, design.detectable(spread)) == pytest.approx(0.8, abs=0.01)


def test_the_spread_is_found_again_in_data_that_have_it() -> None:
    true = Spread(seed=0.03, prompt=0.15, image=0.6)
    generator = np.random.default_rng(0)
    design = Design(seeds=5, prompts=288, images=4)
    found = pooled([estimate_spread(draw(generator, design, true), TAGS, 4) for _ in range(60)])
    assert found.prompt == pytest.approx(true.prompt, rel=0.1)
    assert found.image == pytest.approx(true.image, rel=0.05)
    assert found.seed == pytest.approx(true.seed, rel=0.2)
    assert found.pilot_seeds == 5


def test_more_seeds_find_less_and_no_number_of_seeds_beats_the_prompts() -> None:
    spread = Spread(seed=0.02, prompt=0.2, image=0.5)
    detectable = [Design(seeds=s, prompts=288, images=4).detectable(spread) for s in (2, 3, 5, 10, 50)]
    assert detectable == sorted(detectable, reverse=True)
    assert detectable[-1] > Design(seeds=50, prompts=288, images=4).floor(spread)
    seeds = seeds_to_detect(0.04, 288, 4, spread)
    assert seeds is not None
    assert Design(seeds=seeds, prompts=288, images=4).detectable(spread) <= 0.04
    assert Design(seeds=seeds - 1, prompts=288, images=4).detectable(spread) > 0.04
    assert seeds_to_detect(0.03, 288, 4, Spread(seed=0.02, prompt=0.3, image=0.5)) is None


def test_of_ten_comparisons_each_is_harder_to_find_but_seeds_are_lent() -> None:
    spread = Spread(seed=0.03, prompt=0.04, image=0.5)

    def found(comparisons: int, seeds: int) -> float:
        return Design(seeds=seeds, prompts=288, images=4, comparisons=comparisons).detectable(spread)

    assert found(10, 2) < found(1, 2)  # one pair of two seeds knows next to nothing about seeds
    assert found(10, 20) > found(1, 20)
    assert found(10, 20) == pytest.approx(3.65 / 2.8 * found(1, 20), rel=0.05)


def test_too_little_shows_no_spread(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too few"):
        estimate_spread(np.zeros((1, 5)), ["t"] * 5, 4)
    assert measured_spread(load(make_study(tmp_path / "one", seeds=1, steps=2, maps=False))) is None
    found = measured_spread(load(make_study(tmp_path / "two", seeds=2, steps=2, maps=False)))
    assert found is not None
    assert found.pilot_seeds == 2


def test_detect_chooses_the_seeds_or_says_that_none_suffice(cli: Cli) -> None:
    few = ("-o", "sampling.prompts_per_step=2", "-o", "sampling.group_size=2")
    grid = ("ablate", "--methods", "grpo,gcpo", "--model", "scenes-8", "--num-steps", "1", "--dry-run", *few)
    planned = cli(*grid, "--detect", "6pt")
    assert planned.code == 0
    assert "to find 6 points: " in planned.err
    assert "detectable: a true difference of " in planned.err
    impossible = cli(*grid, "--detect", "0.01pt")
    assert impossible.code == 2
    assert "0.01 points cannot be found with 288 prompts of 4 images: however many seeds" in impossible.err
    assert "so few prompts leave 0.59 points" in impossible.err
    too_many = cli(*grid, "--detect", "1pt")
    assert too_many.code == 2
    # (0.027^2 + 0.504^2 / 1152) / ((0.01 / 2.802)^2 - 0.036^2 / 288) = 115.2
    assert "it takes about 116 seeds, and a grid has at most 50" in too_many.err
    assert "50 seeds find 1.4 points; ask for that, or evaluate on more prompts" in too_many.err
    assert "leave --seeds out" in cli(*grid, "--detect", "1pt", "--seeds", "0..2").err
    assert "is no number of points" in cli(*grid, "--detect", "much").err
