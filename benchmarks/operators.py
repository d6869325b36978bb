"""Every MindSpore operator that the project uses, with the platforms that MindSpore states for it.

    python -m benchmarks.operators [--check] [--compile]

Reads the source of src/ and model_utils/ for what is taken from mindspore (ops, nn, mint, …), and the lists
of primitives in the compiled steps of every method and several networks, kept in benchmarks/results/devices.
For each it reads the line "Supported Platforms" of MindSpore's own docstring, and writes docs/operators.md.
`--compile` makes the lists anew first, which takes minutes. `--check` writes nothing and fails if the page is
not what the source and the lists give. Either fails if something that is used supports neither Ascend and GPU
nor stands in OTHER_PATHS.
"""

import argparse
import ast
import functools
import importlib
import json
import re
from importlib import metadata
from pathlib import Path

from benchmarks import compiled
from model_utils import cli, generated_page
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError

PAGE = ROOT / "docs" / "operators.md"
KEPT = ROOT / "benchmarks" / "results" / "devices" / "primitives.json"
FOLDERS = ("src", "model_utils")
PLATFORMS = ("Ascend", "GPU", "CPU")
NETWORKS = ("lenet", "digits", "photos", "alexnet", "hardnet68", "efficientnet_lite0")
STATED = re.compile(r"Supported Platforms:?\s*\n\s*(.*)")
REFERS = re.compile(r"(?:[Aa]lias for|[Rr]efer to) :(?:func|class|meth):`(mindspore\.[\w.]+)(?:\(\))?`")

# What runs on a CPU alone: {first word of a compiled operator, or full name of MindSpore's: what Ascend and
# GPU use in its place}.
OTHER_PATHS = {
    "conv": "`nn.Conv2d`",
    "pool": "`MaxPool2d` of `src/ops/twice_differentiable.py`",
    "response": "`LocalResponseNorm` of `src/ops/twice_differentiable.py`",
    "separable": "`nn.Conv2d`, `nn.BatchNorm2d`, `nn.ReLU6`, one after the other",
    "stage": "`nn.Conv2d`, `nn.BatchNorm2d`, `nn.MaxPool2d`, `nn.ReLU`, one after the other",
}

# Parts of MindSpore for which it states no platform: they compute nothing on a device.
ON_THE_HOST = {
    "mindspore.Parameter": "a tensor that is trained",
    "mindspore.ParameterTuple": "a tuple of them",
    "mindspore.Tensor": "a tensor",
    "mindspore.Tensor.from_numpy": "copies an array",
    "mindspore.__version__": "text",
    "mindspore.amp.auto_mixed_precision": "exchanges cells",
    "mindspore.common.initializer.Normal": "draws initial weights",
    "mindspore.device_context.ascend.op_precision.conv_allow_hf32": "a setting of Ascend",
    "mindspore.device_context.gpu.op_precision.conv_allow_tf32": "a setting of GPU",
    "mindspore.export": "writes a file; AIR on Ascend only, which src/exported refuses elsewhere",
    "mindspore.float16": "a type",
    "mindspore.float32": "a type",
    "mindspore.int32": "a type",
    "mindspore.int64": "a type",
    "mindspore.get_context": "reads a setting",
    "mindspore.load": "reads a file",
    "mindspore.load_checkpoint": "reads a file",
    "mindspore.save_checkpoint": "writes a file",
    "mindspore.ops.composite.multitype_ops.add_impl.augassign_add.register": "for ONNX files, on any device",
    "mindspore.runtime.launch_blocking": "a setting",
    "mindspore.set_device": "a setting",
    "mindspore.set_seed": "a setting",
    "mindspore.train.mind_ir_pb2.ModelProto": "reads a file",
}


# What the source uses


def _imported(tree):
    """{name in the file: its full name} of everything that a file takes from mindspore."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "mindspore":
                    names[alias.asname or "mindspore"] = alias.name if alias.asname else "mindspore"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mindspore":
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def _full_name(node, names):
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        before = _full_name(node.value, names)
        return before and f"{before}.{node.attr}"
    return None


def in_source(text):
    """The full names of everything of mindspore that a source text uses, e.g. {"mindspore.ops.relu"}."""
    tree = ast.parse(text)
    names = _imported(tree)
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)]
    return {name for node in nodes if id(node) not in inner and (name := _full_name(node, names))}


def used(folders=FOLDERS, root=ROOT):
    """{full name: sorted files that use it} of all Python files in folders; modules themselves left out."""
    found = {}
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            for name in in_source(path.read_text(encoding="utf-8")):
                found.setdefault(name, []).append(path.relative_to(root).as_posix())
    return {name: files for name, files in sorted(found.items()) if not _is_module(name)}


def own_operators(root=ROOT):
    """{name of a compiled CPU operator: files} of src/ops, the functions given to `operator`."""
    found = {}
    for path in sorted((root / "src" / "ops").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "operator"
            if called and node.args and isinstance(node.args[0], ast.Constant):
                found.setdefault(node.args[0].value, set()).add(path.relative_to(root).as_posix())
    return {name: sorted(files) for name, files in sorted(found.items())}


# What MindSpore states


def _object(name):
    """The object of a full name; None if there is none."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return None


def _is_module(name):
    return isinstance(_object(name), type(ast))


@functools.cache
def platforms(name):
    """The platforms that MindSpore's docstring of `mindspore.….name` states, a tuple; None if it states none.

    Of an alias, and of a primitive that refers to a function, it is what the function states.
    """
    text = getattr(_object(name), "__doc__", None) or ""
    refers = REFERS.search(text)
    if refers and refers.group(1) != name and (found := platforms(refers.group(1))):
        return found
    stated = STATED.search(text)
    found = tuple(re.findall("|".join(PLATFORMS), stated.group(1))) if stated else ()
    return found or None


def of_primitive(name):
    """`platforms` of a primitive of a compiled graph by its bare name."""
    rooms = "mindspore.ops.operations", "mindspore.ops.auto_generate", "mindspore.ops"
    return next((found for room in rooms if (found := platforms(f"{room}.{name}"))), None)


# The page


def kept():
    """{method or network: [primitive, …]} of the kept lists."""
    return json.loads(KEPT.read_text(encoding="utf-8"))["primitives"]


def primitives(lists):
    """{primitive: [method or network, …]} of {method or network: [primitive, …]}."""
    found = {}
    for user, names in lists.items():
        for name in names:
            found.setdefault(name, []).append(user)
    return dict(sorted(found.items()))


def without_a_path(names=None):
    """Lines about names in the source that state too few platforms, and have no other path.

    names: as `used` gives them, by default of this repository.
    """
    found = []
    for name, files in (used() if names is None else names).items():
        stated = platforms(name)
        if stated is None and name not in ON_THE_HOST:
            found.append(f"{name} ({files[0]}): MindSpore states no platform for it")
        missing = [place for place in ("Ascend", "GPU") if place not in (stated or PLATFORMS)]
        if missing and name not in OTHER_PATHS:
            found.append(f"{name} ({files[0]}): MindSpore does not state {' and '.join(missing)} for it")
    for name, files in own_operators().items():
        if name.split("_")[0] not in OTHER_PATHS:
            found.append(f"{name} ({files[0]}): it is a CPU's")
    return found


def primitives_without_a_path(lists):
    """The same of the primitives in compiled steps; those that state nothing are gradients' own."""
    found = []
    for name, users in primitives(lists).items():
        stated = of_primitive(name) or PLATFORMS
        missing = [place for place in ("Ascend", "GPU") if place not in stated]
        if missing:
            found.append(f"{name} ({users[0]}): MindSpore does not state {' and '.join(missing)} for it")
    return found


def _marks(stated):
    return " | ".join("yes" if place in stated else "–" for place in PLATFORMS)


def _places(files):
    shown = ", ".join(f"`{Path(path)}`" for path in files[:3])
    return shown + (f" and {len(files) - 3} more" if len(files) > 3 else "")


HEAD = "| {} | Ascend | GPU | CPU | used in |\n|---|---|---|---|---|"


def page(lists):
    """The text of docs/operators.md."""
    rows = {name: (platforms(name), files) for name, files in used().items()}
    stated = [(name, *row) for name, row in rows.items() if row[0]]
    lines = [INTRODUCTION.strip(), "", "## In the source", "", HEAD.format("operator")]
    lines += [
        f"| `{name.removeprefix('mindspore.')}` | {_marks(found)} | {_places(files)} |"
        for name, found, files in stated
    ]
    lines += ["", "## CPU only", "", CPU_ONLY.strip(), "", "| operator | Ascend and GPU use | used in |"]
    lines += ["|---|---|---|"]
    lines += [
        f"| `{name}` | {OTHER_PATHS[name.split('_')[0]]} | {_places(files)} |"
        for name, files in own_operators().items()
    ]
    lines += ["", "## In compiled steps", "", COMPILED.strip(), "", HEAD.format("primitive")]
    silent = []
    for name, users in primitives(lists).items():
        found = of_primitive(name)
        if found is None:
            silent.append(name)
        else:
            shown = "all" if len(users) == len(lists) else ", ".join(users)
            lines.append(f"| `{name}` | {_marks(found)} | {shown} |")
    lines += ["", SILENT.strip(), "", ", ".join(f"`{name}`" for name in silent) + "."]
    lines += ["", "## Names that are no operators", ""]
    lines += ["For these MindSpore states no platform. They compute nothing.", ""]
    lines += ["| name | is |", "|---|---|"]
    lines += [
        f"| `{name.removeprefix('mindspore.')}` | {ON_THE_HOST[name]} |" for name in rows if not rows[name][0]
    ]
    return "\n".join(lines) + "\n"


INTRODUCTION = """
# Operators and the platforms they support

Written by `python -m benchmarks.operators` from the source, MindSpore's docstrings ("Supported Platforms")
and lists of the primitives in compiled steps. `tests/test_operators.py` fails if something is used that
MindSpore does not state for both Ascend and GPU, and that has no other path there. What is stated is not what
was run: [distributed.md](distributed.md#what-was-run-and-what-was-not) says that. `ops.AllGather` and
`ops.Broadcast` are stated for Ascend and GPU alone, and work on a CPU, where the tests with two processes use
them.
"""
CPU_ONLY = """
The compiled operators of `src/ops` are x86 code, given to MindSpore through `ops.Custom`. Only `accelerate`
puts them into a network, and it changes nothing unless the device is a CPU on which they passed their
self-check. `tests/test_device_paths.py` trains on a stand-in for a GPU and an Ascend that refuses them.
"""
COMPILED = """
These are the primitives in the graphs of the training steps, after MindSpore's compiler has validated them
and before a device changes them. Each method has its smallest configuration, and each network is trained
supervised. All steps use MindSpore's own operators, as on Ascend and GPU.
"""
SILENT = """
MindSpore's docstrings state no platform for the following. They are gradients that its compiler takes from
the operators above, and forms that it gives to arithmetic with numbers.
"""


def save_lists():
    """Compile every method and the networks anew and keep their primitives."""
    from src.train_cells import method_names

    lists = {}
    for name in (*method_names(), *NETWORKS):
        lists[name] = compiled.listed(name)
        print(f"{name}: {len(lists[name])} primitives", flush=True)
    command = "python -m benchmarks.operators --compile"
    content = {"command": command, "mindspore": metadata.version("mindspore")}
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    with atomic(KEPT) as temporary:
        temporary.write_text(json.dumps({**content, "primitives": lists}, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    if arguments.compile:
        save_lists()
    lists = kept()
    missing = [*without_a_path(), *primitives_without_a_path(lists)]
    if missing:
        raise UserError(f"operators: {missing[0]}; give it another path there, and name it in OTHER_PATHS")
    text = page(lists)
    generated_page.write(PAGE, text, arguments.check, "benchmarks.operators")
    print(text if not arguments.check else f"{PAGE.relative_to(ROOT)}: up to date")


if __name__ == "__main__":
    cli.run(main)
