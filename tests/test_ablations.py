"""From a plan to cells: the same question gives the same cells, another question other ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gcpo_bench import ablations, addresses
from gcpo_bench.ablations import Cell, Plan, VariantSpec, expand
from gcpo_bench.config import RunConfig
from gcpo_bench.errors import ConfigError, CorruptDataError
from gcpo_bench.ledger import Ledger, run_names
from gcpo_bench.methods import METHODS

from .conftest import Cli

METHOD = st.sampled_from(sorted(METHODS))


def cells_of(*methods: str, seeds: tuple[int, ...] = (0,), ratio: float | None = None, **fields: object) -> list[Cell]:
    variants = ablations.with_ratios(methods, () if ratio is None else (ratio,))
    return expand(Plan(variants=tuple(variants), seeds=seeds, **fields), lambda config: "xxh3:weights", "code")


def ids(cells: list[Cell]) -> set[str]:
    return {cell.id for cell in cells}


@settings(max_examples=15, deadline=None)
@given(st.sets(METHOD, min_size=1, max_size=4), METHOD, st.sets(st.integers(0, 99), min_size=1, max_size=3))
def test_more_variants_and_other_orders_keep_the_cells_that_were_there(
    methods: set[str], another: str, seeds: set[int]
) -> None:
    before = cells_of(*sorted(methods), seeds=tuple(sorted(seeds)))
    shuffled = cells_of(*sorted(methods, reverse=True), seeds=tuple(sorted(seeds, reverse=True)))
    assert ids(before) == ids(shuffled)
    assert ids(before) <= ids(cells_of(*sorted(methods | {another}), seeds=tuple(sorted(seeds))))
    assert len(ids(before)) == len(before) == len(methods) * len(seeds) + 1  # and one start for all


@pytest.mark.parametrize(
    "override", ["loss.beta=0.2", "optimizer.learning_rate=1e-4", "evaluation.seed=1", "rewards.0.name=scene-strict"]
)
def test_whatever_decides_numbers_makes_another_cell(override: str) -> None:
    plain, changed = cells_of("gcpo")[-1], cells_of("gcpo", overrides=(override,))[-1]
    assert plain.id != changed.id


@pytest.mark.parametrize("override", ["logging.token_maps_every=0", "num_threads=7"])
def test_what_decides_no_number_does_not(override: str) -> None:
    assert ids(cells_of("gcpo")) == ids(cells_of("gcpo", overrides=(override,)))


def test_other_weights_or_code_make_other_cells() -> None:
    plan = Plan(variants=(VariantSpec(method="grpo"),), seeds=(0,))
    first = expand(plan, lambda config: "a", "code")
    assert not ids(first) & ids(expand(plan, lambda config: "b", "code"))
    assert not ids(first) & ids(expand(plan, lambda config: "a", "changed code"))


def test_the_code_digest_follows_what_decides_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in addresses.CODE:
        path = tmp_path / part
        (path if path.suffix else path / "inner.py").parent.mkdir(parents=True, exist_ok=True)
        (path if path.suffix else path / "inner.py").write_text("x = 1\n")
    monkeypatch.setattr(addresses, "__file__", str(tmp_path / "addresses.py"))
    before = addresses.code_digest()
    (tmp_path / "reports.py").write_text("y = 2\n")
    assert addresses.code_digest() == before
    (tmp_path / "training/inner.py").write_text("x = 2\n")
    assert addresses.code_digest() != before


def test_the_start_comes_first_and_is_shared() -> None:
    cells = cells_of("grpo", "gcpo", seeds=(0, 1))
    assert [cell.config.num_steps == 0 for cell in cells] == [True, False, False, False, False]
    assert [(cell.config.seed, cell.config.method) for cell in cells[1:]] == [
        (0, "grpo"),
        (0, "gcpo"),
        (1, "grpo"),
        (1, "gcpo"),
    ]


def test_a_cell_survives_being_written_down() -> None:
    for cell in cells_of("gcpo", ratio=0.05):
        assert Cell.from_json(cell.to_json(), Path("cell.json")) == cell
    with pytest.raises(CorruptDataError, match="damaged"):
        Cell.from_json({"id": 1}, Path("cell.json"))


def test_components_give_each_part_their_union_and_the_weighted_union() -> None:
    def methods(*components: str) -> list[str]:
        return [variant.method for variant in ablations.component_variants(components, ())]

    assert methods("init", "struct", "sim", "daw") == list(ablations.STUDY)
    assert methods("init", "struct") == ["gcpo-init", "gcpo-struct", "gcpo-no-daw"]
    union = ablations.component_variants(["init", "struct"], (0.05,))[-1]
    cell = expand(Plan(variants=(union,), seeds=(0,)), lambda config: "w", "c")[-1]
    assert [(item.name, item.ratio) for item in cell.config.selection.selectors] == [
        ("initial", 0.05),
        ("structural", 0.05),
    ]
    for wrong in (["daw"], ["initial"]):
        with pytest.raises(ConfigError):
            ablations.component_variants(wrong, ())


@pytest.mark.parametrize("name", [name for name, _ in ablations.list_plans()])
def test_shipped_plans_expand(name: str) -> None:
    plan = ablations.load_plan(name)
    assert plan.description
    cells = expand(plan, lambda config: "w", "c")
    assert len(cells) == 1 + len(plan.variants) * len(plan.seeds)
    assert "grpo" in {cell.config.method for cell in cells}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("variants: [{method: gppo}]", "unknown method"),
        ("variants: [{metod: grpo}]", "metod"),
        ("variants: []", "variants"),
        ("seeds: [0]", "variants"),
        ("variants: [{method: gcpo, ratio: 1.5}]", "ratio"),
        ("variants: [{method: gcpo, ratio: .nan}]", "ratio"),
        ("variants: [{method: grpo}, {method: grpo}]", "there twice"),
        ("variants: [{method: gcpo, ratio: 0.001}]", "selects none"),
        ("variants: [{method: grpo, ratio: 0.1}]", "ratio"),
        ("- 1", "no mapping"),
        ("a: [", "line 1"),
        ("overrides: ['loss.bta=1']\nvariants: [{method: grpo}]", "bta"),
    ],
)
def test_a_plan_that_cannot_be_says_why(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        expand(ablations.load_plan(str(path)), lambda config: "w", "c")
    assert caught.value.hint


def test_a_plan_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown plan") as caught:
        ablations.load_plan("ratio")
    assert "ratios" in caught.value.hint
    with pytest.raises(ConfigError, match="No such file"):
        ablations.load_plan(str(tmp_path / "none.yaml"))
    (tmp_path / "huge.yaml").write_text("#" * 10_000_000)
    with pytest.raises(ConfigError, match="larger than"):
        ablations.load_plan(str(tmp_path / "huge.yaml"))


@pytest.mark.parametrize(("text", "seeds"), [("0..2", (0, 1, 2)), ("5", (5,)), ("0,2,7..8", (0, 2, 7, 8))])
def test_seeds_are_lists_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert ablations.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["a..b", "", "3..1", "-1", "0,0", "1.5", "0..99999999", "0...3"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        ablations.parse_seeds(text)


@pytest.mark.parametrize("text", ["0", "1.5", "nan", "inf", "-0.1", "a", "", "0.1,0.1", "0.1,,0.2"])
def test_ratios_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--ratio"):
        ablations.parse_ratios(text)


def test_configurations_are_those_that_train_would_resolve() -> None:
    cell = cells_of("gcpo", ratio=0.05)[-1]
    assert isinstance(cell.config, RunConfig)
    assert {item.ratio for item in cell.config.selection.selectors} == {0.05}
    assert cell.name == f"gcpo-r0.05-s0-{cell.id[:8]}"


def test_true_is_no_seed_and_a_seed_may_have_leading_zeros(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("variants: [{method: grpo}]\nseeds: [010, 08]\n")
    assert ablations.load_plan(str(path)).seeds == (10, 8)
    path.write_text("variants: [{method: grpo}]\nseeds: [true]\n")
    with pytest.raises(ConfigError, match="seeds: Value error, true and false are no numbers"):
        ablations.load_plan(str(path))


# ---------------------------------------------------------------- what variants are called

NAMED = """
seeds: [0]
variants:
  - method: grpo
  - {name: early and late, method: gcpo, overrides: [selection.selectors.initial.ratio=0.2]}
  - {method: random, overrides: [selection.selectors.random.options.sets=1]}
  - {method: gcpo, ratio: 0.05, overrides: [optimizer.learning_rate=2e-4]}
"""


def cells_of_plan(path: Path, text: str) -> list[Cell]:
    path.write_text(text)
    return expand(ablations.load_plan(str(path)), lambda config: "xxh3:weights", "code")


def test_a_plan_names_its_variants_and_others_are_called_by_their_settings(tmp_path: Path) -> None:
    start, *cells = cells_of_plan(tmp_path / "plan.yaml", NAMED)
    assert [cell.variant for cell in (start, *cells)] == [
        "start",
        "grpo",
        "early and late, init 20 %, struct 10 %, sim 10 %",
        "random[sets 1]",
        "gcpo, 5 % a set, optimizer.learning_rate=2e-4",
    ]
    assert [cell.name.removesuffix(f"-s0-{cell.id[:8]}") for cell in cells] == [
        "grpo",
        "early-and-late-uneven",
        "random-sets-1",
        "gcpo-r0.05-learning_rate2e-4",
    ]
    assert [cell.config.logging.variant for cell in (start, *cells)] == ["", "", "early and late", "", ""]


def test_a_name_makes_no_other_cell(tmp_path: Path) -> None:
    unnamed = NAMED.replace("name: early and late, ", "")
    assert ids(cells_of_plan(tmp_path / "a.yaml", NAMED)) == ids(cells_of_plan(tmp_path / "b.yaml", unnamed))


def test_one_cell_has_one_name_however_it_was_asked_for() -> None:
    """`--ratio 0.1` is what the methods have: the same cells, under the same names."""
    assert [c.name for c in cells_of("gcpo", "random", ratio=0.1)] == [c.name for c in cells_of("gcpo", "random")]


@pytest.mark.parametrize(
    ("variant", "problem"),
    [
        ("{name: grpo, method: gcpo}", "is called 'grpo' and is gcpo"),
        ("{name: start, method: gcpo}", "is called 'start' and is gcpo"),
        ("{name: x, method: gcpo}\n  - {name: x, method: random}", "two variants are called 'x'"),
        ("{name: '', method: gcpo}", "name"),
        (f"{{name: {'x' * 41}, method: gcpo}}", "name"),
        ("{name: ../up, method: gcpo}", "name"),
    ],
)
def test_a_name_that_misleads_is_refused(tmp_path: Path, variant: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        cells_of_plan(tmp_path / "plan.yaml", f"variants:\n  - {variant}\n")
    assert caught.value.hint


def test_a_cell_that_was_planned_before_keeps_the_name_of_its_run(tmp_path: Path) -> None:
    cell = cells_of("gcpo")[-1]
    Ledger(tmp_path).plan([dataclasses.replace(cell, name="gcpo-r0.1-s0-earlier")])
    assert run_names(tmp_path, [cell.id, "0" * 16]) == {cell.id: "gcpo-r0.1-s0-earlier"}
    assert run_names(tmp_path / "nowhere", [cell.id]) == {}


def test_components_of_the_documentation_are_listed_as_what_they_select(cli: Cli) -> None:
    options = ("--model", "scenes-8", "--seeds", "0", "--dry-run", "--json")
    result = cli("ablate", "--components", "init,struct,daw", *options)
    variants = [cell["variant"] for cell in json.loads(result.out)["cells"]]
    assert variants == ["start", "grpo", "gcpo-init", "gcpo-struct", "gcpo-no-daw[init+struct]", "gcpo[init+struct]"]


def test_an_override_of_no_use_to_some_variants_is_named_and_one_of_no_use_to_any_is_refused() -> None:
    variants = tuple(VariantSpec(method=method) for method in ("grpo", "gcpo", "random"))
    plan = Plan(variants=variants, overrides=("weighting.clip=0.3", "loss.beta=0.1"))
    assert ablations.of_no_use(plan) == [
        "-o weighting.clip changes nothing: the weighting uniform has no clip (grpo, random)"
    ]
    assert [cell.config.weighting.clip for cell in expand(plan, lambda config: "w", "c")[-3:]] == [0.3, 0.3, 0.3]
    without = plan.model_copy(update={"variants": (variants[0], variants[2])})
    with pytest.raises(ConfigError, match=r"-o weighting\.clip does nothing in any variant"):
        ablations.of_no_use(without)
    own = VariantSpec(method="grpo", overrides=("weighting.clip=0.3",))
    with pytest.raises(ConfigError, match=r"-o weighting\.clip does nothing: the weighting uniform has no clip"):
        expand(Plan(variants=(own,)), lambda config: "w", "c")
