"""Every setting has a meaning and, where not every value will do, a range that is enforced."""

import dataclasses
import math

import pytest
from ml_collections import ConfigDict

from bags_jax.config import default_config, read_config
from bags_jax.errors import UserError
from bags_jax.settings import STEPS, Rule, Settings, in_steps, rows, to_steps

ROWS = rows()
RULES = {name: rule for name, _, rule in ROWS}
DEFAULTS = {name: default for name, default, _ in ROWS}
WITH_RANGE = [name for name, rule in RULES.items() if rule.low > -math.inf]
LISTS = [name for name, default in DEFAULTS.items() if isinstance(default, tuple)]


def in_group(*groups):
    return [name for name in DEFAULTS if name.partition(".")[0] in groups]


def with_values(**changes) -> dict:
    """The fields of the default configuration, changed; dots in names are written as two underscores."""
    return change({name.replace("__", "."): value for name, value in changes.items()})


def change(changes: dict) -> dict:
    fields = dataclasses.asdict(Settings())
    for name, value in changes.items():
        group, _, field = name.rpartition(".")
        (fields[group] if group else fields)[field] = value
    return fields


def assert_refused(fields, match):
    with pytest.raises(UserError, match=match) as caught:
        read_config(fields)
    assert "\n" not in str(caught.value)


# --- the rows ----------------------------------------------------------------------------------------------------------


def test_every_setting_has_a_meaning_in_one_line():
    assert len(RULES) == len(ROWS) > 90
    for name, rule in RULES.items():
        assert rule.meaning.endswith(".") and "\n" not in rule.meaning, name


def test_rows_are_the_fields_of_the_configuration():
    def names(config, prefix=""):
        for key, value in config.items():
            if isinstance(value, ConfigDict):
                yield from names(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}"

    assert sorted(names(default_config())) == sorted(DEFAULTS)


def test_defaults_come_back_as_the_settings():
    assert read_config(default_config()) == read_config(dataclasses.asdict(Settings())) == Settings()
    assert hash(read_config(default_config())) == hash(Settings())


# --- ranges ------------------------------------------------------------------------------------------------------------

COUNTS = ["init.num_random", "density.every"]
COUNTS += ["log_every", "checkpoint_every", "keep_checkpoints"]
COUNTS += ["blur.width", "blur.conv_width", "blur.feature_width", "blur.embedding_width"]
POSITIVE = ["optim.means", "optim.means_final", "optim.network", "optim.network_final"]
NOT_NEGATIVE = ["data.near_plane", "stages.restart", "blur.warmup", "blur.logit_bound", "sh_every", "sh_degree"]
NOT_NEGATIVE += [
    "minutes",
    "num_steps",
    "max_gaussians",
    "data.factor",
    "num_devices",
    "views_per_step",
    "seed",
    *in_group("loss", "density", "optim"),
]


def test_no_range_is_lost():
    assert all(RULES[name].low >= 1 for name in COUNTS)
    assert all(RULES[name].low == 0 and RULES[name].exclusive for name in POSITIVE)
    assert all(RULES[name].low >= 0 for name in NOT_NEGATIVE)
    assert all(rule.low == 0 for name, rule in RULES.items() if rule.unit == STEPS and name != "stages.stops")


def outside(name) -> list:
    """Values just outside the range of a setting; for lists of numbers, lists that contain one."""
    rule, default = RULES[name], DEFAULTS[name]
    values = [rule.low if rule.exclusive else rule.low - 1]
    if rule.high < math.inf:
        values.append(rule.high if rule.exclusive else rule.high + 1)
    if isinstance(default, float):
        return [*map(float, values), math.nan, math.inf]
    return [(value,) for value in map(int, values)] if isinstance(default, tuple) else list(map(int, values))


@pytest.mark.parametrize("name, value", [(name, value) for name in WITH_RANGE for value in outside(name)])
def test_value_out_of_range_is_refused(name, value):
    assert_refused(change({name: value}), rf"config\.{name} is .*, expected .*\d")


@pytest.mark.parametrize("name", WITH_RANGE)
def test_ends_of_a_range_are_allowed(name):
    rule, default = RULES[name], DEFAULTS[name]
    whole = isinstance(default, int) or default == ()
    shift = 0 if not rule.exclusive else 1e-3
    for end in (rule.low + shift, *([rule.high - shift] if rule.high < math.inf else [])):
        value = int(end) if whole else end
        read_config(change({name: (value,) if isinstance(default, tuple) else value}))


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_at_least_one(name):
    assert_refused(change({name: 0}), rf"config\.{name} is 0, expected at least 1: ")


@pytest.mark.parametrize("name", POSITIVE + NOT_NEGATIVE)
def test_rates_weights_and_steps_are_not_negative(name):
    assert_refused(change({name: type(DEFAULTS[name])(-1)}), rf"config\.{name} is -1")


RATES = ("optim.means", "optim.sh_rest", "optim.poses")
OUT_OF_RANGE = [(name, value) for name in RATES for value in (math.nan, math.inf)]
OUT_OF_RANGE += [("init.opacity", 1.0), ("init.opacity", 0.0), ("loss.ssim", 1.5)]


@pytest.mark.parametrize("name, value", OUT_OF_RANGE)
def test_rates_are_finite_and_shares_are_shares(name, value):
    """Parameters are checked once a dispatch, so a rate must not make the updated ones infinite."""
    assert_refused(change({name: value}), rf"config\.{name} is {value}, expected")


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seeds_are_of_31_bits(seed):
    assert_refused(with_values(seed=seed), rf"config\.seed is {seed}, expected 0 to 2147483647")


@pytest.mark.parametrize("degree", [-1, 4])
def test_degree_of_spherical_harmonics(degree):
    assert_refused(with_values(sh_degree=degree), rf"config\.sh_degree is {degree}, expected 0 to 3")


def test_range_is_written_in_words():
    assert Rule("").expected == "" and Rule("", low=1).expected == "at least 1"
    assert Rule("", low=0, exclusive=True).expected == "more than 0"
    assert Rule("", low=0, high=1, exclusive=True).expected == "between 0 and 1"
    assert Rule("", low=0, high=3).expected == "0 to 3"


def test_without_a_range_any_value_is_allowed():
    assert all(Rule("").allows(value) for value in (-1, 0.0, math.inf, "text"))


# --- types -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value",
    [
        ("data.background", ("white",)),
        ("data.mixed_factors", ("a", "b")),
        ("stages.stops", ("half", 0.5, 1)),
        ("stages.scales", (0.5, float("nan"), 1.0)),
        ("blur.kernel_sizes", (3, 5.5, 7)),
        ("blur.strides", (1.5, 1, 1)),
    ],
)
def test_lists_are_of_numbers(name, value):
    """Flags do not check this: the items of a list have no type there."""
    assert_refused(change({name: value}), rf"config\.{name} is \(.*expected (whole )?numbers, with commas")


@pytest.mark.parametrize("name", LISTS)
def test_every_list_refuses_text_booleans_and_infinity(name):
    for value in (("a",), (True,), (math.inf,), "abc"):
        assert_refused(change({name: value}), rf"config\.{name} is \(.*expected (whole )?numbers, with commas")


def test_lists_become_tuples_and_whole_numbers_floats():
    """JSON has lists only, and writes 1.0 as 1 if a flag gave it so."""
    settings = read_config(with_values(stages__scales=[1, 1, 1], blur__strides=[2, 2, 2], data__background=1))
    assert settings.stages.scales == (1.0, 1.0, 1.0) and settings.blur.strides == (2, 2, 2)
    assert all(isinstance(x, float) for x in settings.stages.scales) and settings.data.background == (1.0,)


@pytest.mark.parametrize("name", [name for name in DEFAULTS if name not in LISTS])
def test_value_of_another_type_is_refused(name):
    default = DEFAULTS[name]
    others = [None, (), {}, 3 if isinstance(default, str | bool) else "3"]
    others += [True] if isinstance(default, int | float) and not isinstance(default, bool) else []
    others += [0.5] if isinstance(default, int) and not isinstance(default, bool) else []
    expected = {bool: "True or False", str: "text", int: "a whole number", float: "a number"}[type(default)]
    for value in others:
        assert_refused(change({name: value}), rf"config\.{name} is .*, expected {expected}")


# --- fields ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss.width", "los", "data.blur", "optim.lr"])
def test_unknown_fields_are_refused(name):
    config = default_config()
    with config.unlocked():
        config.update_from_flattened_dict({name: 0.1})
    assert_refused(config, rf"the configuration has no field {name}: .*--help")


@pytest.mark.parametrize("name", ["num_steps", "optim.means_steps", "loss.sharp", "density"])
def test_missing_fields_are_refused(name):
    config = default_config()
    group, _, field = name.rpartition(".")
    with config.unlocked():
        del (config[group] if group else config)[field]
    assert_refused(config, rf"config\.{name} is missing")


@pytest.mark.parametrize("value", [3, None, (1, 2), "loss"])
def test_a_group_is_a_group(value):
    assert_refused(with_values(loss=value), r"config\.loss is .*, expected a group of settings")


# --- steps and shares --------------------------------------------------------------------------------------------------


def test_steps_of_a_share():
    assert [to_steps(value, 1000) for value in (0.0, 0.25, 1.0, 2, 300)] == [0, 250, 1000, 2, 300]


def test_every_setting_in_steps_becomes_a_number_of_steps():
    shares = {name: (0.5,) if name in LISTS else 0.5 for name, rule in RULES.items() if rule.unit == STEPS}
    assert {"sh_every", "stages.stops", "stages.restart", "blur.warmup", "loss.sharp_start"} <= shares.keys()
    assert {"loss.sharp_view_start", "optim.poses_start", "density.start", "density.stop"} <= shares.keys()
    assert {"density.max_radius_after", "density.reset_every"} <= shares.keys()
    before = read_config(change(shares))
    after = in_steps(before, 1000)
    for name in DEFAULTS:
        group, _, field = name.rpartition(".")
        value, old = (vars(vars(s)[group] if group else s)[field] for s in (after, before))
        if name in shares:
            assert value == ((500,) if name in LISTS else 500)
            assert isinstance(value[0] if name in LISTS else value, int), name
        else:
            assert value == old, name
