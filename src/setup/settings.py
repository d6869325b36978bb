"""The configuration of an experiment: config.yaml, then an overlay, then the command line.

The keys of an experiment are those of every experiment (model_utils/keys.py), of the data (src/data/keys.py),
of the network and its family (src/networks), of training (src/training/keys.py), and of the method. `load`
is the only entry point of the commands.
"""

import dataclasses
import difflib
import warnings
from pathlib import Path

import model_utils
from model_utils import checkpoint, config
from model_utils.errors import UserError
from model_utils.key import Alias
from model_utils.keys import COMMON
from src import networks
from src.data import keys as data_keys
from src.setup import earlier_names
from src.train_cells import find_method, method_names
from src.training import keys as training_keys


def schema(method, network=None):
    """{name: Key} of a method, with its own defaults, on a network (the method's own, if not given)."""
    chosen = find_method(method)
    shared = {**data_keys.keys(), **networks.keys(), **training_keys.keys()}
    defaults = {name: value for name, value in chosen.DEFAULTS.items() if name in shared}
    shared |= {name: dataclasses.replace(shared[name], default=value) for name, value in defaults.items()}
    family, _ = networks.find(network or chosen.DEFAULTS["network"])
    return {**COMMON, **shared, **family.keys, **chosen.KEYS}


def aliases(method):
    """{published name: key it stands for, or an Alias}: those of every experiment, and a method's own."""
    return earlier_names.aliases(method, find_method(method).ALIASES)


def load(argv, program="train.py", checkpoint_key=None, stored=None):
    """Resolve the configuration of a command.

    Args:
        argv: the command line without the program's name, e.g. `sys.argv[1:]`.
        program: shown by --help.
        checkpoint_key: the key that names a checkpoint to evaluate or export; the recipe stored in it
            then takes the place of config.yaml's. If it is not given, the one of output_dir counts.
        stored: such a recipe, {key: value}, where it comes from elsewhere.

    Returns:
        Config, or None after --help or --version was printed.

    Raises:
        UserError: unknown key, wrong type, value out of range, unreadable file.
    """
    given = config.read_arguments(argv)
    if given.pop("version", False):
        print(model_utils.named_version())
        return None
    show_help = given.pop("help", False)
    overlay_path = given.pop("config", None)
    base_path = config.ROOT / "config.yaml"
    base = config.read_yaml(base_path)
    if overlay_path is True or overlay_path == "":
        raise UserError("--config needs a file, e.g. --config configs/demo.yaml")
    overlay = config.read_yaml(overlay_path) if overlay_path else {}
    stored = _stored(given, overlay, base, checkpoint_key) if stored is None else stored
    chosen = [part["method"] for part in (given, overlay, stored) if "method" in part]
    if not chosen:
        earlier_names.check_owner(given, base["method"])
    method = str(chosen[0] if chosen else base["method"])
    if program == "train.py" and find_method(method).GOES_ON_WITH:
        stored = _network_to_go_on_with(given, overlay, base, find_method(method).GOES_ON_WITH)
    places = ("stored with the checkpoint", str(overlay_path), "command line")
    layers = [
        (_own_names(layer, method, where, program), where)
        for layer, where in zip((stored, overlay, given), places, strict=True)
    ]
    default = base["network"] if method == base["method"] else find_method(method).DEFAULTS["network"]
    network = str(next((part["network"] for part, _ in reversed(layers) if "network" in part), default))
    keys = schema(method, network)
    if (method, network) != (base["method"], base["network"]):
        # config.yaml's common keys hold for every experiment, its recipe only for the method and network it
        # names.
        base = {name: value for name, value in base.items() if name in COMMON}
    layers[0] = ({name: value for name, value in layers[0][0].items() if name in keys}, layers[0][1])
    layers[1] = (_without_foreign(overlay, *layers[1], layers[-1][0], keys), layers[1][1])
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


def known_names(given):
    """Every name that a command line may have, aliases included, for the method and network that it chooses.

    given: {name: value} of the command line, as `config.read_arguments` reads it.
    """
    overlay = config.read_yaml(given["config"]) if isinstance(given.get("config"), str) else {}
    base = config.read_yaml(config.ROOT / "config.yaml")
    method = str(next(part["method"] for part in (given, overlay, base) if "method" in part))
    network = next((part["network"] for part in (given, overlay) if "network" in part), None)
    own = find_method(method).ALIASES
    return {*schema(method, network), *aliases(method), *earlier_names.gone(method, own)}


def _output_folder(given, overlay, base):
    """The output_dir of a command as its configuration will have it."""
    return COMMON["output_dir"].parse("output_dir", _output_dir(given, overlay, base), "configuration")


def _output_dir(given, overlay, base):
    """The output_dir of a command, under whichever of its names it was given."""
    for layer in (given, overlay, base):
        for name, alias in (("output_dir", "output_dir"), *earlier_names.COMMON.items()):
            if not isinstance(layer.get(name), str) or not layer[name]:
                continue
            if alias == "output_dir":
                return layer[name]
            if isinstance(alias, Alias) and alias.key == "output_dir":
                return alias.convert(name, layer[name], "command line")
    return COMMON["output_dir"].default


def _stored(given, overlay, base, checkpoint_key):
    """The recipe stored with the checkpoint that eval.py or export.py uses: nobody has to repeat it.

    That is the checkpoint given, else the newest one of output_dir, unless the parts of a network are given
    in files of their own (keys `…_ckpt_file`).
    """
    if not checkpoint_key:
        return {}
    path = given.get(checkpoint_key) or overlay.get(checkpoint_key)
    parts = any(name.endswith("_ckpt_file") for name in (*given, *overlay))
    if not path and not parts:
        path = checkpoint.of_run(_output_folder(given, overlay, base))
        return _recipe(given, overlay, checkpoint_key, str(path)) if path else {}
    if not path or not isinstance(path, str):
        return {}
    return _recipe(
        given, overlay, checkpoint_key, COMMON[checkpoint_key].parse(checkpoint_key, path, "command line")
    )


def _recipe(given, overlay, checkpoint_key, path):
    stored = checkpoint.stored_config(path)
    asked = given.get("method") or overlay.get("method")
    if stored and asked and asked != stored["method"]:
        raise UserError(f"{checkpoint_key}: {path} was trained with method {stored['method']}, not {asked}")
    kept = ("method", "experiment", "seed")
    return {name: value for name, value in stored.items() if name in kept or name not in COMMON}


def _network_to_go_on_with(given, overlay, base, key):
    """The keys that describe a network, and how its images are prepared, as stored with a checkpoint.

    key: the configuration key that names it; {} if it is not given, or is not a checkpoint of ours. A run
        that is resumed goes on with its own newest one.
    """
    path = given.get(key, overlay.get(key))
    resume = next((part["resume"] for part in (given, overlay, base) if "resume" in part), False)
    if COMMON["resume"].parse("resume", resume, "configuration"):
        folder = _output_folder(given, overlay, base)
        path = folder if checkpoint.listed(folder) else path
    if not isinstance(path, str) or path.lower() in ("", "auto", "none"):
        return {}
    stored = checkpoint.stored_config(path)
    if "network" not in stored:
        return {}
    how = ("pretrained", "num_classes", "freeze_backbone", "batch_norm")
    names = {*networks.keys(), *networks.find(stored["network"])[0].keys} - {*how}
    return {name: value for name, value in stored.items() if name in names}


def _own_names(layer, method, where, program):
    """`layer` with published names and their values replaced by the keys and values they stand for."""
    own, names = {}, aliases(method)
    gone = earlier_names.gone(method, find_method(method).ALIASES)
    for name, value in layer.items():
        if name in gone:
            gone[name].check(name, value, where, program)
            continue
        alias = names.get(name, name)
        key = alias if isinstance(alias, str) else alias.key
        if key in own or (key != name and key in layer):
            raise UserError(f"{name} ({where}) is another name of {key}; give one of them")
        own[key] = value if isinstance(alias, str) else alias.convert(name, value, where)
    return own


def _without_foreign(overlay, layer, where, given, keys):
    """A layer without the keys of the overlay's method or network where the command line names another.

    layer: the overlay under the names that `keys` has. given: the command line, likewise.
    """
    other = find_method(overlay["method"]).KEYS if "method" in given and "method" in overlay else {}
    left_out = [
        name
        for name in layer
        if name not in keys and (name in other or ("network" in given and _network_of(name)))
    ]
    if left_out:
        warnings.warn(
            f"{where}: {', '.join(left_out)} left out: the method or network asked for has no such key",
            stacklevel=2,
        )
    return {name: value for name, value in layer.items() if name not in left_out}


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


def _method_of(name, method):
    """A method other than `method` that has the key `name`, or None; a published method comes first."""
    others = [other for other in (*earlier_names.RECIPES, *method_names()) if other != method]
    has = (o for o in others if name in find_method(o).KEYS or name in find_method(o).ALIASES)
    return next(has, None) or earlier_names.method_of(name)


def _unknown(name, keys, where, method):
    """A UserError that names the nearest known key, or the method or network that has this one."""
    if other := _method_of(name, method):
        return UserError(
            f"unknown key {name} ({where}): it belongs to method {other}; {earlier_names.advice(other)}"
        )
    if module := _network_of(name):
        return UserError(
            f"unknown key {name} ({where}): it belongs to network {module}; add --network {module}"
        )
    from model_utils.launch import OWN_OPTIONS  # only here: no command needs the launcher to start

    if name in OWN_OPTIONS:
        return UserError(
            f"unknown key {name} ({where}): it is an option of the launcher; start the run by its script, "
            f"as bash scripts/run_train_cpu.sh --{name} …"
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
        also = [alias for alias in also if alias != name]
        also = "".join(f" (or --{alias})" for alias in also)
        print(f"  --{name} {shown}{also}\n        {key.help} [{key.allowed()}]")
