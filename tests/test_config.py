"""Configuration: which layer wins, what is refused, and with which words."""

import math
import string

import pytest
import yaml
from helpers import fails
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_utils import config
from model_utils.errors import UserError
from model_utils.key import Key
from model_utils.keys import COMMON
from src.setup import settings as experiment
from src.train_cells import method_names


def refused(arguments, *parts):
    """`arguments` raise a UserError of one line with all `parts` in it."""
    return fails(lambda: experiment.load(arguments), *parts)


@pytest.fixture
def overlay(tmp_path):
    """A function: text -> --config option of a file that holds it."""

    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"--config={path}"

    return write


# Layers


def test_command_line_beats_overlay_beats_config_yaml_beats_default(overlay):
    base = config.read_yaml(config.ROOT / "config.yaml")
    file = overlay("lr: 0.5\nbatch_size: 7\n")
    resolved = experiment.load([file, "--batch_size", "9"])
    assert (resolved.lr, resolved.batch_size) == (0.5, 9)
    assert resolved.weight_decay == base["weight_decay"]
    assert experiment.load([]).lr == base["lr"]
    assert resolved.given == {"batch_size"}


def recipe(resolved):
    """{key: value} of what is not common to every experiment."""
    return {name: getattr(resolved, name) for name in resolved.keys if name not in COMMON}


def defaults(method, network=None):
    """{key: default} of a method's recipe on a network."""
    keys = experiment.schema(method, network)
    return {name: key.default for name, key in keys.items() if name not in COMMON}


@pytest.mark.parametrize("other", [name for name in method_names() if name != "dann"])
def test_recipe_of_config_yaml_does_not_leak_into_another_method(other):
    assert recipe(experiment.load([f"--method={other}"])) == defaults(other)


def test_recipe_of_config_yaml_holds_for_its_network_only():
    base = config.read_yaml(config.ROOT / "config.yaml")
    own = recipe(experiment.load([]))
    assert own == {name: base[name] for name in own} != defaults("dann")
    assert recipe(experiment.load(["--network=dann"])) == own
    on_another = recipe(experiment.load(["--network=lenet"]))
    assert on_another == {**defaults("dann", "lenet"), "network": "lenet"}


# Names with other values


@pytest.mark.parametrize(
    "arguments, key, value",
    [
        (["--joint_batch", "true"], "batch_norm", "joint"),
        (["--joint_batch=False"], "batch_norm", "per_domain"),
        (["--method=adda", "--solver=adam"], "optimizer", "adam"),
        (["--method=adda", "--solver=SGD"], "optimizer", "momentum"),
        (["--method=adda", "--model=lenet"], "network", "lenet"),
        (["--method=hardnet", "--variant=68ds"], "network", "hardnet68ds"),
        (["--method=hardnet", "--class_num=7"], "num_classes", 7),
    ],
)
def test_published_names_and_values_stand_for_keys(arguments, key, value):
    assert getattr(experiment.load(arguments), key) == value


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--joint_batch=maybe"], ["joint_batch: 'maybe'", "command line", "true"]),
        (["--method=adda", "--solver=lbfgs"], ["solver: 'lbfgs'", "adam | sgd"]),
        (["--method=hardnet", "--variant=12"], ["network: 'hardnet12' does not exist", "hardnet39ds"]),
        (["--joint_batch=true", "--batch_norm=joint"], ["joint_batch", "another name of batch_norm"]),
        (["--method=hardnet", "--variant=85", "--network=hardnet85"], ["variant", "network", "one of them"]),
    ],
)
def test_published_names_refused(arguments, parts):
    refused(arguments, *parts)


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--variant=85"], ["unknown key variant", "method hardnet", "--method hardnet"]),
        (["--meta_order=first"], ["unknown key meta_order", "method masf", "--method masf"]),
        (["--method=adda", "--lambda_max=1"], ["unknown key lambda_max", "method dann", "--method dann"]),
        (["--network=lenet", "--dropout_kind=channel"], ["dropout_kind", "network dann", "--network dann"]),
        (["--network=lenett"], ["network: 'lenett' does not exist", "did you mean lenet?"]),
    ],
)
def test_a_key_of_another_method_or_network_names_it(arguments, parts):
    refused(arguments, *parts)


def test_experiment_is_named_after_the_file_unless_named(overlay):
    assert experiment.load([]).experiment == "dann"
    assert experiment.load([overlay("", "wild.yaml")]).experiment == "wild"
    assert experiment.load([overlay("experiment: tame", "wild.yaml")]).experiment == "tame"
    assert experiment.load([overlay("", "wild.yaml"), "--experiment=mine"]).experiment == "mine"


def test_relative_overlay_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert experiment.load(["--config", "configs/demo.yaml"]).source_dataset_name == "demo_digits"


@pytest.mark.parametrize(
    "arguments",
    [["--batch_size", "9"], ["--batch_size=9"], ["--batch-size", "9"], ["--batch_size=1", "--batch_size=9"]],
)
def test_ways_to_write_an_option(arguments):
    assert experiment.load(arguments).batch_size == 9


@pytest.mark.parametrize(
    "text, value",
    [("true", True), ("YES", True), ("1", True), ("off", False), ("False", False), ("0", False)],
)
def test_flags(text, value):
    assert experiment.load(["--download", text]).download is value
    assert experiment.load(["--download", "--lr", "0.1"]).download is True


@pytest.mark.parametrize("text", ["1e-3", "1E-3", ".001", "0.001"])
def test_numbers_in_yaml_without_a_dot_are_still_numbers(overlay, text):
    assert experiment.load([overlay(f"lr: {text}")]).lr == 0.001


# What is refused


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--batch_sise", "9"], ["unknown key batch_sise", "command line", "batch_size"]),
        (["--zzzzzzzzzz", "9"], ["unknown key zzzzzzzzzz", "--help"]),
        (["--batch_size", "0"], ["batch_size", "'0'", "a whole number >= 1"]),
        (["--batch_size", "2.5"], ["batch_size", "2.5"]),
        (["--batch_size", "x"], ["batch_size", "'x'", "whole number"]),
        (["--batch_size", "9" * 5000], ["batch_size"]),
        (["--lr", "-1"], ["lr", "'-1'", "a number > 0"]),
        (["--lr", "0"], ["lr", "> 0"]),
        (["--lr", "abc"], ["lr", "'abc'", "a number"]),
        (["--lr", "nan"], ["lr", "nan"]),
        (["--lr", "inf"], ["lr", "inf"]),
        (["--lr", "-inf"], ["lr", "-inf"]),
        (["--dropout", "1"], ["dropout", ">= 0 and < 1"]),
        (["--lr"], ["lr", "needs a value"]),
        (["--download", "maybe"], ["download", "true | false"]),
        (["--mode", "fast"], ["mode", "graph | pynative"]),
        (["--device_target", "TPU"], ["device_target", "auto | Ascend | GPU | CPU"]),
        (["--seed", "-1"], ["seed", ">= 0"]),
        (["--seed", "2147483648"], ["seed", "<= 2147483647"]),
        (["batch_size=3"], ["unexpected argument", "--key value"]),
        (["--", "x"], ["unexpected argument"]),
        (["--method", "dan"], ["method", "dann"]),
        (["--method", "../loop"], ["method", "does not exist"]),
        (["--method", "__init__"], ["method", "does not exist"]),
        (["--method", ""], ["method", "does not exist"]),
        (["--config"], ["--config needs a file"]),
        (["--config="], ["--config needs a file"]),
        (["--config", "missing.yaml"], ["missing.yaml", "No such file"]),
        (["--config", "/"], ["configuration /"]),
        (["--config", "x" * 400], ["configuration"]),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
def test_command_line_refused(arguments, parts):
    refused(arguments, *parts)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("lr: [1, 2]", ["lr", "a number"]),
        ("lr: {a: 1}", ["lr"]),
        ("lr: true", ["lr", "needs a value"]),
        ("lr:", ["lr", "None"]),
        ("batch_size: 2.5", ["batch_size", "2.5"]),
        ("batch_size: false", ["batch_size", "False"]),
        ("download: 3", ["download"]),
        ("experiment: [a]", ["experiment"]),
        ('output_dir: "a\\0b"', ["output_dir"]),
        ("learning_rate: 1", ["unknown key learning_rate", "mine.yaml"]),
        ("1: 2", ["unknown key 1"]),
        ("lr: 1\nseed: 2\nlr: 3", ["not valid YAML", "line 3", "lr is given twice"]),
        ("- a\n- b", ["key: value", "list"]),
        ("just text", ["key: value", "str"]),
        ("a: b: c", ["not valid YAML"]),
        ("lr: 2001-99-99", ["not valid YAML"]),
        ("[" * 500, ["not valid YAML"]),
        (b"lr: \xff\xfe", ["not valid YAML"]),
        ("lr: !!python/object/apply:os.system [true]", ["not valid YAML"]),
        ("method: [dann]", ["method"]),
    ],
)
def test_yaml_refused(overlay, text, parts):
    refused([overlay(text)], *parts)


def test_yaml_whose_aliases_stand_for_gigabytes_is_refused_in_few_words(overlay):
    lines = ["  - &a [x, x, x, x, x, x, x, x, x]"]
    for old, new in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"  - &{new} [{', '.join([f'*{old}'] * 9)}]")
    text = "\n".join(["lr:", *lines])
    assert len(refused([overlay(text)], "lr")) < 500


def test_configuration_is_read_only():
    with pytest.raises(AttributeError):
        experiment.load([]).lr = 1


def test_replace_checks_as_the_command_line_does():
    base = experiment.load([])
    assert base.replace(lr=0.25).lr == 0.25 and base.lr != 0.25
    for change in ({"lr": -1}, {"no_such_key": 1}):
        with pytest.raises(UserError):
            base.replace(**change)


NUMBERS = Key((1, 2), "", low=1)


@pytest.mark.parametrize(
    "value, expected", [("3,4", (3, 4)), ("[3, 4]", (3, 4)), ([5], (5,)), ((1, 2.0), (1, 2)), (" 7 ", (7,))]
)
def test_lists_of_numbers(value, expected):
    assert NUMBERS.parse("k", value, "test") == expected


@pytest.mark.parametrize("value", ["0,1", "1.5", [1.5], [True], [None], [[1]], "a", {"a": 1}, ["nan"]])
def test_lists_of_numbers_refused(value):
    with pytest.raises(UserError):
        NUMBERS.parse("k", value, "test")


@pytest.mark.parametrize("value", [[math.nan], [math.inf], "1,nan"])
def test_lists_of_floats_refuse_what_is_no_number(value):
    with pytest.raises(UserError):
        Key((0.5,), "").parse("k", value, "test")


# --help


def test_an_overlay_of_another_method_gives_what_both_have(recwarn):
    loaded = experiment.load(["--config=configs/dann_photos.yaml", "--method=adda"])
    assert (loaded.method, loaded.bottleneck, loaded.steps_per_epoch) == ("adda", 256, 100)
    (line,) = [str(warning.message) for warning in recwarn]
    assert "n_epoch, lr_backbone_s left out" in line and "configs/dann_photos.yaml" in line


@pytest.mark.parametrize("method", method_names())
def test_help_lists_every_key_with_default_and_meaning(method, capsys):
    assert experiment.load(["--help", f"--method={method}", "--seed=7"]) is None
    text = capsys.readouterr().out
    for name, key in experiment.schema(method).items():
        assert f"\n  --{name} " in text
        assert f"{key.help} [{key.allowed()}]" in text
    assert "--seed 7" in text
    assert all(key.help for key in experiment.schema(method).values())


def test_help_on_another_network_lists_its_keys(capsys):
    assert experiment.load(["--help", "--network=lenet"]) is None
    text = capsys.readouterr().out
    assert "Keys of method dann on network lenet" in text and "\n  --network lenet" in text
    assert "\n  --input_norm none" in text and "--dropout_kind" not in text
    assert experiment.load(["--help"]) is None
    assert "\n  --dropout_kind channel" in capsys.readouterr().out


# Properties


@st.composite
def changed(draw):
    """Allowed values of some keys, as text."""
    keys = experiment.schema("dann")
    free = sorted(set(keys) - {"method", "network"})  # these choose which keys there are
    names = draw(st.lists(st.sampled_from(free), unique=True, max_size=6))
    return {name: draw(allowed(keys[name])) for name in names}


def allowed(key):
    if key.choices:
        return st.sampled_from(key.choices)
    if isinstance(key.default, bool):
        return st.booleans()
    low = key.low if key.low is not None else key.above
    high = key.high if key.high is not None else key.below
    if isinstance(key.default, int):
        return st.integers(-(2**31) if low is None else int(low), 2**31 - 1 if high is None else int(high))
    if isinstance(key.default, float):
        bounds = {"exclude_min": key.above is not None, "exclude_max": key.below is not None}
        return st.floats(low, high if high is not None else 1e300, **bounds)
    texts = st.text(string.printable + "äλ漢🙂", max_size=20).filter(lambda text: "\0" not in text)
    return texts.filter(lambda text: not text.startswith("~")) if key.path else texts


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed())
def test_written_configuration_reads_back_the_same(tmp_path, changes):
    before = experiment.load([f"--{name}={value}" for name, value in changes.items()])
    for name, value in changes.items():
        assert getattr(before, name) == value or name == "experiment" and not value
    before.write(tmp_path / "written.yaml")
    after = experiment.load([f"--config={tmp_path / 'written.yaml'}"])
    assert after.as_dict() == before.as_dict()


TEXT = st.text(max_size=30) | st.from_regex(r"-?[0-9]{0,4}\.?[0-9]{0,4}(e-?[0-9]{1,3})?", fullmatch=True)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(experiment.schema("dann"))), TEXT)
def test_any_text_is_a_valid_value_or_a_user_error(name, text):
    try:
        value = getattr(experiment.load([f"--{name}={text}"]), name)
    except UserError as error:
        assert "\n" not in str(error)
        return
    key = experiment.schema("dann")[name]
    assert type(value) is type(key.default)
    assert key.parse(name, value, "again") == value


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: f"lr: {text}".encode(errors="replace")))
def test_any_file_is_a_configuration_or_a_user_error(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    try:
        resolved = experiment.load([f"--config={path}"])
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert math.isfinite(resolved.lr) and resolved.lr > 0


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), st.lists, max_leaves=5))
def test_any_yaml_value_is_valid_or_a_user_error(value):
    for name, key in experiment.schema("dann").items():
        try:
            parsed = key.parse(name, value, "test")
        except UserError:
            continue
        assert type(parsed) is type(key.default)
        assert yaml.safe_load(yaml.safe_dump(parsed)) == parsed
