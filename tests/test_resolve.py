"""Presets, overrides and flags: what wins, where it came from, and what is said when it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from gcpo_bench.config import RunConfig
from gcpo_bench.errors import ConfigError
from gcpo_bench.files import dump_yaml, parse_yaml
from gcpo_bench.methods import METHODS
from gcpo_bench.resolve import ABSENT, config_diff, flatten, list_presets, resolve


def problem(preset: str | None = None, overrides: Sequence[str] = (), **flags: object) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        resolve(preset, overrides, flags)
    assert "\n" not in str(error.value)
    assert error.value.hint
    return error.value


# ---------------------------------------------------------------- what wins


def test_nothing_given_is_gcpo_on_the_larger_world() -> None:
    config = resolve().config
    assert (config.method, config.policy.name) == ("gcpo", "scenes-12")
    assert [item.name for item in config.selection.selectors] == ["initial", "structural", "diverse"]


@pytest.mark.parametrize("preset", [preset.name for preset in list_presets()])
def test_every_preset_loads_and_survives_a_dump(preset: str) -> None:
    config = resolve(preset).config
    assert RunConfig.model_validate(parse_yaml(dump_yaml(config.model_dump(mode="json")))) == config


def test_the_shipped_presets_say_what_they_are() -> None:
    presets = {preset.name: preset for preset in list_presets()}
    assert {"scenes-gcpo", "scenes-grpo", "scenes-tiny-gcpo", "scenes-tiny-grpo"} <= presets.keys()
    assert all(preset.description and "\n" not in preset.description for preset in presets.values())
    for name in ("scenes-tiny-gcpo", "scenes-tiny-grpo"):
        config = resolve(name).config
        assert (config.policy.name, config.num_steps) == ("scenes-8", 20)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_method_decides_the_same_wherever_it_is_given(tmp_path: Path, method: str) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(f"method: {method}\n")
    by_flag = resolve(flags={"method": method}).config
    assert resolve(str(preset)).config == by_flag
    assert resolve(None, [f"method={method}"]).config == by_flag
    assert by_flag.method == method


def test_a_method_leaves_nothing_of_the_presets_method_behind(tmp_path: Path) -> None:
    """gcpo-paper sets overlap and entropy source; choosing grpo instead must not keep them."""
    assert resolve("scenes-gcpo", flags={"method": "grpo"}).config == resolve("scenes-grpo").config
    preset = tmp_path / "mine.yaml"
    preset.write_text("method: gcpo-paper\n")
    config = resolve(str(preset), flags={"method": "grpo"}).config
    assert (config.selection.overlap, config.selection.entropy_source) == ("exclude", "sampling")


def test_later_layers_win_and_say_so(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("method: gcpo\nseed: 1\nloss: {beta: 0.5, clip_epsilon: 0.3}\nweighting: {clip: 0.7}\n")
    resolved = resolve(str(preset), ["loss.beta=0.25"], {"seed": 3})
    config = resolved.config
    assert (config.seed, config.loss.beta, config.loss.clip_epsilon, config.weighting.clip) == (3, 0.25, 0.3, 0.7)
    assert resolved.origin["seed"] == "--seed"
    assert resolved.origin["loss.beta"] == "-o"
    assert resolved.origin["loss.clip_epsilon"] == f"preset {preset}"
    assert resolved.origin["weighting.form"] == "method gcpo"
    assert resolved.origin["sampling.group_size"] == "default"


def test_every_value_has_an_origin() -> None:
    resolved = resolve("scenes-tiny-gcpo", ["rewards=[{name: scene-strict}]"], {"ratio": 0.2})
    assert resolved.origin.keys() == flatten(resolved.config).keys()
    assert resolved.origin["rewards.scene-strict.weight"] == "-o"
    assert [key for key, _, _ in resolved.rows()] == list(flatten(resolved.config))


def test_a_ratio_goes_to_every_selector_that_has_one() -> None:
    resolved = resolve(flags={"ratio": 0.25})
    assert [item.ratio for item in resolved.config.selection.selectors] == [0.25] * 3
    assert resolved.origin["selection.selectors.diverse.ratio"] == "--ratio"
    assert resolved.origin["selection.selectors.diverse.name"] == "method gcpo"


@pytest.mark.parametrize("key", ["selection.selectors.structural.ratio", "selection.selectors.1.ratio"])
def test_list_items_go_by_name_or_index(key: str) -> None:
    assert [item.ratio for item in resolve(None, [f"{key}=0.05"]).config.selection.selectors] == [0.1, 0.05, 0.1]


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("0.0001", 1e-4), ("1.e-4", 1e-4), ("'1e-4'", 1e-4)]
)
def test_learning_rates_can_be_written_as_people_do(text: str, value: float) -> None:
    assert resolve(None, [f"optimizer.learning_rate={text}"]).config.optimizer.learning_rate == value


def test_a_section_can_be_given_as_a_whole_and_is_merged() -> None:
    config = resolve(None, ["loss={beta: 0.5}", "selection.selectors.structural.options={window: [0, 1]}"]).config
    assert (config.loss.beta, config.loss.clip_epsilon) == (0.5, 0.2)
    assert config.selection.selectors[1].options == {"window": [0, 1]}


def test_a_base_gives_way_to_its_preset(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 5\nnum_steps: 7\n")
    (tmp_path / "top.yaml").write_text("base: base.yaml\nseed: 6\n")
    resolved = resolve(str(tmp_path / "top.yaml"))
    assert (resolved.config.seed, resolved.config.num_steps) == (6, 7)
    assert resolved.origin["num_steps"] == "preset base.yaml"


def test_a_resumed_configuration_changes_only_what_is_given() -> None:
    old = resolve("scenes-tiny-grpo", ["loss.beta=0.5"], {"seed": 4}).config
    new = resolve(None, [], {"num_steps": 50}, base=old)
    assert config_diff(old, new.config) == [("num_steps", 20, 50)]
    assert new.origin["seed"] == "run"
    assert resolve(base=old).config == old


def test_differences_name_selectors_that_only_one_side_has() -> None:
    differences = {
        key: (a, b) for key, a, b in config_diff(resolve("scenes-gcpo").config, resolve("scenes-grpo").config)
    }
    assert differences["method"] == ("gcpo", "grpo")
    assert differences["selection.selectors.initial.ratio"] == (0.1, ABSENT)
    assert differences["selection.selectors.all.name"] == (ABSENT, "all")


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize("ratio", [0.0, 1.5, -0.1, float("nan"), float("inf")])
def test_an_impossible_ratio_is_one_line_with_key_value_and_range(ratio: float) -> None:
    assert str(problem(ratio=ratio)) == f"--ratio is {ratio}: must be a finite number above 0 and at most 1"


def test_a_ratio_without_a_selector_for_it_is_refused() -> None:
    assert str(problem(method="grpo", ratio=0.1)) == "--ratio 0.1: no selector of method grpo has a ratio"


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("sampling.group_siz=4", "unknown key -o sampling.group_siz", "did you mean 'group_size'?"),
        ("samplng.group_size=4", "unknown key -o samplng.group_size", "did you mean 'sampling'?"),
        ("sampling.group_size=1", "-o sampling.group_size is 1: must be a whole number at least 2", "show"),
        ("sampling.group_size=2.5", "-o sampling.group_size is 2.5: must be a whole number at least 2", "show"),
        ("sampling.group_size=", "-o sampling.group_size is empty: must be a whole number at least 2", "show"),
        ("loss.beta=.nan", "-o loss.beta is nan: must be a finite number at least 0", "show"),
        ("loss.beta=inf", "-o loss.beta is 'inf': must be a finite number at least 0", "show"),
        ("selection.selectors.structural.options.window=[0, .inf]", "window is [0, inf]: must be finite", "number"),
        ("weighting.form=cubic", "-o weighting.form is 'cubic': must be 'exp' or 'linear'", "show"),
        ("weighting.name=confidnce", "unknown weighting 'confidnce' (-o weighting.name)", "'confidence'"),
        ("rewards.geneval.name=genevl", "unknown reward 'genevl' (-o rewards.0.name)", "'geneval'"),
        ("selection.selectors.0.name=initail", "unknown selector 'initail'", "'initial'"),
        ("selection.selectors.strctural.ratio=1", "selection.selectors has no item 'strctural'", "show"),
        ("evaluation.benchmark=geneval2", "unknown benchmark 'geneval2'", "did you mean 'geneval'"),
        ("data.prompts=scene-train", "unknown prompt set 'scene-train'", "'scenes-train'"),
        ("policy.name=scenes-13", "unknown model 'scenes-13' (-o policy.name)", "did you mean 'scenes-12'?"),
        ("method=gcp", "unknown method 'gcp' (-o)", "did you mean 'gcpo'?"),
        ("method=[1]", "unknown method '[1]' (-o)", "known:"),
        ("rewards=[]", "-o rewards is []: must be a list of at least 1", "show"),
        ("selection=3", "-o selection is 3: must be a mapping of keys to values", "show"),
        ("seed.x=1", "-o seed.x: seed is a single value and has no key 'x'", "show"),
        ("seed=[", "-o seed: '[' cannot be read", "quote it as YAML"),
        ("seed", "-o 'seed' is not key=value", "-o loss.beta=0.1"),
        ("=3", "-o '=3' is not key=value", "-o loss.beta=0.1"),
        ("optimizer.betas=[2, 3]", "-o optimizer.betas.0 is 2: must be a finite number at least 0 and below 1", "show"),
        (
            "optimizer.betas=[0.9, 1]",
            "-o optimizer.betas.1 is 1: must be a finite number at least 0 and below 1",
            "show",
        ),
        ("optimizer.betas=[true, 0.9]", "-o optimizer.betas is [true, 0.9]: must be a list", "show"),
        ("seed=true", "-o seed is true: must be a whole number", "show"),
        ("loss.beta=false", "-o loss.beta is false: must be a finite number", "show"),
        ("optimizer.betas=[0.9]", "-o optimizer.betas.1 is missing: must be a finite number", "show"),
    ],
)
def test_a_wrong_override_is_named_with_its_mend(override: str, message: str, hint: str) -> None:
    error = problem(None, [override])
    assert message in str(error)
    assert hint in error.hint


def test_all_problems_are_told_at_once() -> None:
    error = problem("scenes-gcpoo", ["loss.bta=1", "seed=x", "sampling.group_size=1"], method="gcp", ratio=2.0)
    assert str(error).startswith("6 problems: ")
    for part in ("'scenes-gcpoo'", "loss.bta", "seed is 'x'", "group_size is 1", "'gcp'", "--ratio is 2.0"):
        assert part in str(error)


def test_a_wrong_preset_value_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("sampling: {group_size: 1}\nloss: {betta: 3}\n")
    error = problem(str(path))
    assert f"sampling.group_size in preset {path} is 1" in str(error)
    assert f"unknown key loss.betta in preset {path}" in str(error)
    assert "did you mean 'beta'?" in error.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: &x [1]\nb: *x\n", "aliases are not allowed (line 2)"),
        (b"seed: 1\nseed: 2\n", "key 'seed' is given twice (line 2)"),
        (b"!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        (b"- 1\n- 2\n", "is no mapping of keys to values"),
        (b"1: 2\n", "is no mapping of keys to values"),
        (b"seed: [1\n", "line 2"),
        (b"\xff\xfe\x00", "utf-8"),
        (b"#" * 1_000_001, "it is larger than 1,000,000 bytes"),
        (b"base: scenes-grpo\n", "a base cannot have a base itself"),
        (b"base: nowhere\n", "unknown preset 'nowhere'"),
        (b"base: nowhere.yaml\n", "No such file"),
        (b"[" * 50_000, "recursion"),
    ],
)
def test_a_damaged_preset_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert message in str(problem(str(path)))


def test_swelling_yaml_is_refused_quickly(tmp_path: Path) -> None:
    path = tmp_path / "laughs.yaml"
    levels = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    path.write_text("\n".join(levels))
    assert yaml.safe_load("a: &a 1\nb: *a") == {"a": 1, "b": 1}  # the plain safe loader would follow them
    assert "aliases are not allowed" in str(problem(str(path)))


def test_a_missing_preset_file_is_named(tmp_path: Path) -> None:
    assert "No such file or directory" in str(problem(str(tmp_path / "none.yaml")))
    assert "did you mean 'scenes-gcpo'?" in problem("scenes-gcp").hint


# ---------------------------------------------------------------- what cannot act


@pytest.mark.parametrize(
    ("override", "flags", "message"),
    [
        ("policy.name=janus-pro-1b", {"model": "scenes-8"}, "-o policy.name=janus-pro-1b and --model contradict"),
        ("method=grpo", {"method": "gcpo"}, "-o method=grpo and --method contradict each other"),
        ("seed=2", {"seed": 3}, "-o seed=2 and --seed contradict each other"),
        ("num_steps=2", {"num_steps": 3}, "-o num_steps=2 and --num-steps contradict each other"),
        (
            "selection.selectors.initial.ratio=0.2",
            {"ratio": 0.1},
            "-o selection.selectors.initial.ratio=0.2 and --ratio contradict each other",
        ),
    ],
)
def test_an_override_and_a_flag_that_contradict_each_other_are_refused(
    override: str, flags: dict[str, object], message: str
) -> None:
    error = problem(None, [override], **flags)
    assert message in str(error)
    assert error.hint == "give one of the two"


def test_an_override_and_a_flag_may_agree() -> None:
    assert resolve(None, ["seed=3", "method=grpo"], {"seed": 3, "method": "grpo"}).notes == ()


@pytest.mark.parametrize(
    ("override", "flags", "reason"),
    [
        ("weighting.clip=0.5", {"method": "grpo"}, "weighting.clip does nothing: the weighting uniform has no clip"),
        ("weighting.form=linear", {"method": "init-reweighted"}, "the weighting prefix has no form"),
        ("optimizer.min_rate=0.5", {}, "optimizer.min_rate does nothing: the rate is constant"),
        ("optimizer.warmup_steps=60", {}, "so the rate never reaches learning_rate"),
        ("optimizer.minibatches=97", {}, "optimizer.minibatches does nothing: a step has 96 images"),
        ("policy.recompute=always", {}, "policy.recompute does nothing: scenes-12 always keeps its activations"),
        ("selection.selectors.initial.options={window: [0, 1]}", {}, "the selector initial does not take it"),
        ("selection.selectors.all.ratio=0.5", {"method": "grpo"}, "the selector all does not take it"),
    ],
)
def test_what_nothing_would_read_is_refused(override: str, flags: dict[str, object], reason: str) -> None:
    error = problem(None, [override], **flags)
    assert reason in str(error)
    assert "leave" in error.hint or "lower" in error.hint or "choose" in error.hint or "takes" in error.hint


@pytest.mark.parametrize(
    ("override", "method", "reason"),
    [
        ("loss.kl_tokens=all", "grpo", "every token is selected"),
        ("selection.overlap=allow", "gcpo-init", "there is one selector"),
        ("loss.clip_epsilon=0.1", "gcpo", "with one update a rollout every ratio is 1"),
        ("selection.entropy_source=conditional", "gcpo", "images are drawn without guidance at temperature 1"),
    ],
)
def test_what_changes_nothing_here_is_named(override: str, method: str, reason: str) -> None:
    (note,) = resolve(None, [override], {"method": method}).notes
    assert note.startswith(f"-o {override.partition('=')[0]} changes nothing: {reason}")


def test_an_override_that_a_later_one_replaces_is_named() -> None:
    resolved = resolve(None, ["loss.beta=1", "loss={beta: 2, clip_epsilon: 0.1}", "optimizer.epochs=2"])
    assert resolved.notes == ("-o loss.beta=1 is replaced by a later -o",)
    assert resolved.config.loss.beta == 2


def test_a_preset_may_hold_what_cannot_act_and_is_told_so(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("optimizer: {schedule: cosine, min_rate: 0.1}\n")
    assert resolve(str(preset)).notes == ()
    (note,) = resolve(str(preset), ["optimizer.schedule=constant"]).notes
    assert note == f"optimizer.min_rate in preset {preset} changes nothing: the rate is constant"


@pytest.mark.parametrize("preset", [preset.name for preset in list_presets()])
@pytest.mark.parametrize("method", [None, *METHODS])
def test_no_preset_and_no_method_sets_what_cannot_act(preset: str, method: str | None) -> None:
    assert resolve(preset, flags={"method": method}).notes == ()


def test_a_run_may_hold_what_cannot_act() -> None:
    """A stored configuration is no request: older versions took these values without a word."""
    values = {"method": "grpo", **METHODS["grpo"].settings, "policy": {"recompute": "always"}}
    old = RunConfig.model_validate({**values, "weighting": {"name": "uniform", "clip": 0.1}})
    resumed = resolve(base=old, overrides=["logging.checkpoint_every=3"])
    assert resumed.notes == ()
    assert resumed.config.weighting == old.weighting
    with pytest.raises(ConfigError, match=r"weighting\.clip does nothing"):
        resolve(base=old, overrides=["weighting.clip=0.2"])


def test_overrides_of_several_configurations_may_be_of_no_use_to_some() -> None:
    shared = ["weighting.clip=0.3", "loss.beta=0.5"]
    without, within = (resolve(None, shared=shared, flags={"method": method}) for method in ("grpo", "gcpo"))
    assert [item.key for item in without.idle] == ["weighting.clip"]
    assert without.notes == ("-o weighting.clip changes nothing: the weighting uniform has no clip",)
    assert (within.idle, within.config.weighting.clip, within.config.loss.beta) == ((), 0.3, 0.5)
    with pytest.raises(ConfigError, match="-o seed=1 and --seed contradict each other"):
        resolve(None, shared=["seed=1"], flags={"seed": 2})


def test_a_caller_refuses_what_it_does_not_read() -> None:
    with pytest.raises(ConfigError, match=r"-o loss\.beta does nothing here") as caught:
        resolve(None, ["loss.beta=1", "policy.dtype=bfloat16"], reads=("policy.", "seed"))
    assert caught.value.hint == "of use are: policy, seed"


def test_the_released_method_looks_at_what_its_family_s_code_looks_at() -> None:
    """Janus: guided logits, projected tokens. LlamaGen: the conditional distribution, code vectors."""
    by_flag = resolve(None, flags={"method": "gcpo-official", "model": "llamagen-tiny"})
    assert by_flag.config.selection.entropy_source == "conditional"
    assert by_flag.config.selection.similarity_embedding == "codebook"
    assert by_flag.origin["selection.entropy_source"] == "method gcpo-official"
    assert by_flag.origin["selection.overlap"] == "default"
    assert resolve(None, ["method=gcpo-official", "policy.name=llamagen-tiny"]).config == by_flag.config
    released = resolve("llamagen-official-hps").config.selection
    assert released == by_flag.config.selection
    for model in ("janus-pro-tiny", "scenes-8"):
        janus = resolve(None, flags={"method": "gcpo-official", "model": model}).config.selection
        assert (janus.entropy_source, janus.similarity_embedding) == ("sampling", "projected")
    other = resolve(None, flags={"method": "gcpo", "model": "llamagen-tiny"}).config.selection
    assert (other.entropy_source, other.similarity_embedding) == ("sampling", "projected")
