"""The configuration of an experiment: config.yaml, then an overlay, then the command line.

The keys of an experiment are those of every experiment (model_utils/keys.py), of the data (src/data/keys.py),
of the network and its family (src/networks), of training (src/training/trainer.py), and of the method. `load`
is the only entry point of the commands.
"""

import dataclasses
import difflib
import warnings
from pathlib import Path

from model_utils import checkpoint, config
from model_utils.errors import UserError
from model_utils.keys import ALIASES, COMMON
from src import networks
from src.data import keys as data_keys
from src.train_cells import find_method, method_names
from src.training import trainer

SHARED_ALIASES = {"class_num": "num_classes", "pre_ckpt_path": "pretrained", "bvlc_path": "pretrained"}


def schema(method, network=None):
    """{name: Key} of a method, with its own defaults, on a network (the method's own, if not given)."""
    chosen = find_method(method)
    shared = {**data_keys.keys(), **networks.keys(), **trainer.keys()}
    defaults = {name: value for name, value in chosen.DEFAULTS.items() if name in shared}
    shared |= {name: dataclasses.replace(shared[name], default=value) for name, value in defaults.items()}
    family, _ = networks.find(network or chosen.DEFAULTS["network"])
    return {**COMMON, **shared, **family.keys, **chosen.KEYS}


def aliases(method):
    """{published name: key it stands for, or an Alias}: those of every experiment, and a method's own."""
    return {**ALIASES, **SHARED_ALIASES, **find_method(method).ALIASES}


def load(argv, program="train.py", checkpoint_key=None, stored=None):
    """Resolve the configuration of a command.

    Args:
        argv: the command line without the program's name, e.g. `sys.argv[1:]`.
        program: shown by --help.
        checkpoint_key: the key that names a checkpoint to evaluate or export; the recipe stored in it
            then takes the place of config.yaml's.
        stored: such a recipe, {key: value}, where it comes from elsewhere.

    Returns:
        Config, or None after --help was printed.

    Raises:
        UserError: unknown key, wrong type, value out of range, unreadable file.
    """
    given = config.read_arguments(argv)
    show_help = given.pop("help", False)
    overlay_path = given.pop("config", None)
    base_path = config.ROOT / "config.yaml"
    base = config.read_yaml(base_path)
    if overlay_path is True or overlay_path == "":
        raise UserError("--config needs a file, e.g. --config configs/demo.yaml")
    overlay = config.read_yaml(overlay_path) if overlay_path else {}
    stored = _stored(given, overlay, checkpoint_key) if stored is None else stored
    method = str(
        next((part["method"] for part in (given, overlay, stored) if "method" in part), base["method"])
    )
    names = aliases(method)
    layers = [
        (_own_names(stored, names, "stored with the checkpoint"), "stored with the checkpoint"),
        (_own_names(overlay, names, str(overlay_path)), str(overlay_path)),
        (_own_names(given, names, "command line"), "command line"),
    ]
    network = str(
        next(
            (part["network"] for part, _ in reversed(layers) if "network" in part),
            find_method(method).DEFAULTS["network"],
        )
    )
    keys = schema(method, network)
    if (method, network) != (base["method"], base["network"]):
        # config.yaml's common keys hold for every experiment, its recipe only for the method and network it
        # names.
        base = {name: value for name, value in base.items() if name in COMMON}
    layers[0] = ({name: value for name, value in layers[0][0].items() if name in keys}, layers[0][1])
    if "network" in layers[-1][0]:
        layers[1] = (_without_other_networks(layers[1][0], keys, layers[1][1]), layers[1][1])
    values = {name: key.default for name, key in keys.items()}
    for layer, where in [(base, base_path.name), *layers]:
        values.update(_parse_layer(layer, keys, where, method))
    values["method"], values["network"] = method, network
    if not values["experiment"]:
        values["experiment"] = Path(overlay_path).stem if overlay_path else method
    elif overlay_path and "experiment" not in overlay and "experiment" not in given:
        values["experiment"] = Path(overlay_path).stem
    settings = config.Config(values, keys, layers[-1][0])
    if show_help:
        print_help(settings, program)
        return None
    return settings


def _stored(given, overlay, checkpoint_key):
    """The recipe stored with the checkpoint given to eval.py or export.py: nobody has to repeat it."""
    path = given.get(checkpoint_key) or overlay.get(checkpoint_key) if checkpoint_key else None
    if not path or not isinstance(path, str):
        return {}
    path = COMMON[checkpoint_key].parse(checkpoint_key, path, "command line")
    stored = checkpoint.stored_config(path)
    asked = given.get("method") or overlay.get("method")
    if stored and asked and asked != stored["method"]:
        raise UserError(f"{checkpoint_key}: {path} was trained with method {stored['method']}, not {asked}")
    kept = ("method", "experiment", "seed")
    return {name: value for name, value in stored.items() if name in kept or name not in COMMON}


def _own_names(layer, names, where):
    """`layer` with published names and their values replaced by the keys and values they stand for."""
    own = {}
    for name, value in layer.items():
        alias = names.get(name, name)
        key = alias if isinstance(alias, str) else alias.key
        if key in own or (key != name and key in layer):
            raise UserError(f"{name} ({where}) is another name of {key}; give one of them")
        own[key] = value if isinstance(alias, str) else alias.convert(name, value, where)
    return own


def _without_other_networks(layer, keys, where):
    """An overlay without the keys of its own network, where the command line names another."""
    foreign = [name for name in layer if name not in keys and _network_of(name)]
    if foreign:
        warnings.warn(
            f"{where}: {', '.join(foreign)} left out, which the network asked for does not have", stacklevel=2
        )
    return {name: value for name, value in layer.items() if name not in foreign}


def _network_of(name):
    """The family that has the key `name`, or None."""
    return next((module for module in networks.modules() if name in networks.family(module).keys), None)


def _parse_layer(layer, keys, where, method):
    values = {}
    for name, value in layer.items():
        if name not in keys:
            raise _unknown(name, keys, where, method)
        if value is True and not isinstance(keys[name].default, bool):
            raise UserError(f"{name} ({where}) needs a value: {keys[name].allowed()}")
        values[name] = keys[name].parse(name, value, where)
    return values


def _unknown(name, keys, where, method):
    """A UserError that names the nearest known key, or the method or network that has this one."""
    for other in method_names():
        if other != method and (name in find_method(other).KEYS or name in find_method(other).ALIASES):
            return UserError(
                f"unknown key {name} ({where}): it belongs to method {other}; add --method {other}"
            )
    if module := _network_of(name):
        return UserError(
            f"unknown key {name} ({where}): it belongs to network {module}; add --network {module}"
        )
    nearest = difflib.get_close_matches(name, [*keys, *aliases(method)], n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}?" if nearest else "--help lists the keys"
    return UserError(f"unknown key {name} ({where}): {hint}")


def print_help(settings, program):
    """List every key of the chosen experiment with its default, meaning and allowed values."""
    print(f"usage: python {program} [--config configs/X.yaml] [--key value …]\n")
    print(
        f"Keys of method {settings.method} on network {settings.network}, with the defaults of this "
        "experiment "
        f"({settings.experiment}):\n"
    )
    names = aliases(settings.method)
    for name, key in settings.keys.items():
        value = settings.as_dict()[name]
        shown = ",".join(map(str, value)) if isinstance(value, list) else value
        shown = str(shown).lower() if isinstance(value, bool) else shown
        also = [alias for alias, own in names.items() if name == (own if isinstance(own, str) else own.key)]
        also = "".join(f" (or --{alias})" for alias in also)
        print(f"  --{name} {shown}{also}\n        {key.help} [{key.allowed()}]")
