"""Record what a release computes: the losses of the first training steps of every configuration.

losses.json beside this file is what release 1 gave, before methods, networks and domains were freed from one
another.

    PYTHONPATH=. python tests/records/record_losses.py --out losses.json
        [--data_root DIR --mnist_m DIR]   also the cases on real data; MNIST-M as create_mnistm.py makes it
        [--only PATTERN …]                cases whose name matches one of the patterns (fnmatch)
        [--reverse true]                  in the opposite order, to see that no case depends on another
        [--check losses.json]             compare instead of writing; status 1 if a number is off by 1e-6

DA_CPU_OPS=0 records MindSpore's own operators: the entries are called `<name>/plain` then.

The entry "about" holds versions, the line about the CPU operators, and the SHA-256 of the generated images.
Any other entry:
    config: the file given to --config ("" : config.yaml alone); overrides: [--key=value, …] after it, where
    {DATA_ROOT}, {MNIST_M} and {GENERATED} stand for folders; data: "demo" (nothing but what ships in
    dependencies and what `generate` draws) or "DATA_ROOT"; operators: whether the compiled ones were on;
    steps: {phase: steps recorded}; losses: of all steps in a row; scalars: {phase: {name: one value a step}}
    without "loss". float32 stands in the shortest form that gives the same float32 again, Python floats
    (lr, lambda) in that for float64.
"""

import argparse
import fnmatch
import gc
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FIRST, LATER = 20, 10  # steps recorded of the first phase that has steps, and of each one after it


# The release: everything this file knows of its modules.


def set_up():
    """The device, and the line that says which operators are in use."""
    from src.setup import place, settings

    device = place.set_up(settings.load(["--device_target=CPU", "--seed=0"]))
    return device, next(note for note in device.notes if note.startswith("CPU operator"))


def resolve(options):
    """['--config=…', '--key=value', …] -> the resolved configuration."""
    from src.setup import settings

    return settings.load(options)


def build(settings, place):
    """A new train cell, as in a new process."""
    import mindspore as ms

    from src.data.tasks import open_task
    from src.train_cells import find_method

    method = find_method(settings.method)
    task = open_task(settings, place, least_sources=method.LEAST_SOURCES)
    ms.set_seed(settings.seed)
    return method(settings, place, task)


def drive(cell, limits):
    """Train as the loop does; yields (phase's name, {scalar: value}) of each step.

    limits: function (index among the phases that have steps) -> steps to take of it. A phase is left early
    only where no other follows.
    """
    for index, phase in enumerate(phase for phase in cell.phases if phase.steps):
        for step in range(min(phase.steps, limits(index))):
            phase.step = step
            if step == 0:
                cell.start_phase(phase)
            yield phase.name, cell.train_step(phase, phase.batch(step))


def phase_lengths(cell):
    return [phase.steps for phase in cell.phases if phase.steps]


# Generated data


def generate(folder):
    """Draw the image folders and SVHN files of the cases without real data; returns the folders' SHA-256."""
    stripes = [f"class{number}" for number in range(6)]
    for split, count in (("train", 12), ("val", 5)):
        draw_classes(folder / "folders" / split, stripes, count, (40, 48), f"folders {split}")
    pacs = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    for domain in ("art_painting", "cartoon", "photo", "sketch"):
        draw_classes(folder / "pacs" / domain, pacs, 8, (72, 72), domain)
    draw_svhn(folder / "svhn")
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".mat"):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def numbers(purpose):
    return np.random.default_rng(list(purpose.encode()))


def draw_classes(folder, classes, count, shape, purpose):
    """`count` images of stripes for each class, which is their direction; every third a PNG, others JPEG."""
    import cv2

    rng = numbers(purpose)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        angle = np.pi * number / len(classes)
        for index in range(count):
            wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(0.4, 0.9) + rng.uniform(0, 6))
            image = 128 + wave[..., None] * rng.uniform(50, 110, 3) + rng.normal(0, 8, (*shape, 3))
            path = folder / name / f"{index:02d}{'.png' if index % 3 == 0 else '.jpg'}"
            if not cv2.imwrite(str(path), np.clip(np.rint(image), 0, 255).astype(np.uint8)):
                raise OSError(f"{path} could not be written")


def draw_svhn(folder, count=200):
    """SVHN's two files with bars whose place is their class."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    for split in ("train", "test"):
        rng = numbers(f"svhn {split}")
        labels = np.arange(count) % 10
        images = rng.integers(0, 80, (32, 32, 3, count), np.uint8)
        for index, label in enumerate(labels):
            images[:, 3 * label : 3 * label + 3, :, index] += 120
        wrapped = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(folder / f"{split}_32x32.mat", {"X": images, "y": wrapped})


# Cases

# Configurations of published recipes were brought to the authors' form later. Their records are of the form
# that release 1 had, which these options give.
EARLIER_ADDA = {
    "input_norm": "none",
    "digit_resize": "area",
    "weight_decay_on": "all",
    "initial_weights": "default",
    "mapping_rows": "target",
}
EARLIER_MASF = {"initial_weights": "default", "image_means": "caffe", "inner_gradient": "mean"}

MNIST, USPS, PACS = "{DATA_ROOT}/mnist", "{DATA_ROOT}/usps", "{DATA_ROOT}/pacs"
ROOTS = {"mnist": MNIST, "mnist_m": "{MNIST_M}", "usps": USPS, "svhn": "{GENERATED}/svhn"}


def pair(source, target):
    return {"source_image_root": ROOTS[source], "target_image_root": ROOTS[target]}


DEMO_PAIR = {
    "source_dataset_name": "demo_digits",
    "source_image_root": "",
    "target_dataset_name": "demo_photos",
    "target_image_root": "",
}
DEMO_SVHN = {
    "source_dataset_name": "svhn",
    "source_image_root": "{GENERATED}/svhn",
    "target_dataset_name": "demo_digits",
    "target_image_root": "",
}
DIGIT_SETS = {f"{name}_image_root": ROOTS[name] for name in ("mnist", "mnist_m", "usps")}
DEMO_SET = {"domain_set": "demo", "target_domain": "50", "train_size_per_domain": 100}
DEMO_PACS = {"domains_image_root": "{GENERATED}/pacs"}
IMAGENETTE = {"dataset_path": "{DATA_ROOT}/imagenette160", "class_num": 10, "image_size": 64, "batch_size": 8}
DEMO_FOLDERS = {"dataset_path": "{GENERATED}/folders", "class_num": 6, "image_size": 32, "batch_size": 8}
GENTLE = {**DEMO_FOLDERS, "image_size": 64, "batch_size": 12, "lr_init": 0.0001, "lr_max": 0.0002}
# Phases of FIRST or LATER steps, so that each is entered.
DANN_PHASES = {"steps_per_epoch": 10, "n_pretrain_epochs": 2, "n_epoch": 1}
ADDA_PHASES = {"iterations": 20, "adversary_iterations": 10, "steps_per_epoch": 10}
DEMO_DANN = {**DEMO_PAIR, "validation_size": 100, "batch_size": 32}
DEMO_ADDA = {**DEMO_PAIR, "protocol": "full", "batch_size": 32}


def cases():
    """{name: (configuration file, overrides, data)}"""
    found = {}

    def add(name, overrides, data, path=None):
        path = f"configs/{name.split('/')[0]}.yaml" if path is None else path
        found[name] = (path, overrides, data)

    def real(name, overrides, phases=None, path=None):
        add(f"{name}/real", overrides, "DATA_ROOT", path)
        if phases:
            add(f"{name}/real-phases", {**overrides, **phases}, "DATA_ROOT", path)

    def demo(name, overrides, path=None):
        add(f"{name}/demo", overrides, "demo", path)

    dann = pair("mnist", "mnist_m")
    for name, path, refine in (
        ("config", "", {}),
        ("dann_published", None, {}),
        ("dann_best", None, {"n_refine_epochs": 1}),
    ):
        real(name, dann, {**DANN_PHASES, **refine}, path)
        demo(name, {**DEMO_DANN, **DANN_PHASES, **refine}, path)
    demo("demo", {})
    add("demo/demo-phases", DANN_PHASES, "demo")
    for source, target in (("mnist", "usps"), ("usps", "mnist")):
        for kind, warm_up in (
            ("", {"discriminator_iterations": 10}),
            ("_sampled", {"discriminator_iterations": 10}),
            ("_paper", {}),
        ):
            name = f"adda_{source}_{target}{kind}"
            earlier = EARLIER_ADDA if kind == "_paper" else {}
            real(name, {**pair(source, target), **earlier}, {**ADDA_PHASES, **warm_up})
            demo(name, {**DEMO_ADDA, **earlier, **ADDA_PHASES, **warm_up})
    phases = {**ADDA_PHASES, "discriminator_iterations": 10}
    real("adda_svhn_mnist", pair("svhn", "mnist"), phases)
    demo("adda_svhn_mnist", {**DEMO_SVHN, "batch_size": 32, **phases})
    for method in ("masf", "deepall"):
        real(f"{method}_digits", DIGIT_SETS)
        real(f"{method}_rotated_mnist", {"mnist_image_root": MNIST})
        for name in (f"{method}_digits", f"{method}_rotated_mnist"):
            # The demo set has three sources, among which the episode's images are shared out.
            demo(name, {**DEMO_SET, **({"meta_batch_size": 30} if name == "masf_digits" else {})})
        real(f"{method}_pacs_small", {"domains_image_root": PACS})
        demo(f"{method}_pacs_small", DEMO_PACS)
        size = "meta_batch_size" if method == "masf" else "batch_size"
        earlier = EARLIER_MASF if method == "masf" else {}
        real(f"{method}_pacs", {"domains_image_root": PACS, size: 6, **earlier})
        demo(f"{method}_pacs", {**DEMO_PACS, size: 3, **earlier})
    real("hardnet39ds_imagenette", {**IMAGENETTE, "batch_size": 16})
    demo("hardnet39ds_imagenette", DEMO_FOLDERS)
    for variant in ("39ds", "68ds", "68", "85"):
        real(f"hardnet{variant}_imagenet", IMAGENETTE)
        demo(f"hardnet{variant}_imagenet", DEMO_FOLDERS)
        # At the recipe's rates a rounding grows to half the loss within 20 steps, here to 5 %.
        add(f"hardnet{variant}_imagenet/demo-gentle", GENTLE, "demo")
    for method in ("adda", "dann", "deepall", "hardnet", "masf"):
        path = f"tests/tiny/{method}.yaml"
        demo(f"tiny_{method}", {"dataset_path": "{GENERATED}/folders"} if method == "hardnet" else {}, path)
    for name, (path, overrides) in options().items():
        demo(name, overrides, path)
    return found


def options():
    """Options no configuration uses, on demo data: {name: (configuration file, overrides)}."""
    dann = {**DEMO_DANN, **DANN_PHASES}
    refine = {"n_refine_epochs": 1, "pseudo_threshold": 0.3}
    hardnet, deepall = "configs/hardnet39ds_imagenet.yaml", "tests/tiny/deepall.yaml"
    small = {"train_iterations": 20}
    return {
        "option_dann_alternate": ("", {**dann, "adversary": "alternate"}),
        "option_dann_conditional_vat": ("", {**dann, "conditional": True, "vat_weight": 0.1}),
        "option_dann_joint_element": (
            "",
            {**dann, "joint_batch": True, "dropout_kind": "element", "input_norm": "none"},
        ),
        "option_dann_refine_soft": (
            "",
            {**dann, **refine, "pseudo_kind": "soft", "strong_augment": "invert+affine"},
        ),
        "option_dann_refine_balanced": ("", {**dann, **refine, "pseudo_portion": 0.5}),
        "option_adda_sgd": (
            "configs/adda_mnist_usps.yaml",
            {
                **DEMO_ADDA,
                **ADDA_PHASES,
                "discriminator_iterations": 10,
                "solver": "sgd",
                "momentum": 0.9,
                "confidence": 0.3,
            },
        ),
        "option_masf_second": ("tests/tiny/masf.yaml", small),
        "option_masf_photos_second": ("configs/masf_pacs_small.yaml", {**DEMO_PACS, "meta_order": "second"}),
        "option_deepall_clip_accumulate": (
            deepall,
            {**small, "gradient_accumulation": 2, "clip_grad_norm": 0.5},
        ),
        "option_deepall_o1": (deepall, {**small, "amp_level": "O1"}),
        "option_deepall_o3_dynamic": (
            deepall,
            {**small, "amp_level": "O3", "loss_scale_mode": "dynamic", "loss_scale": 2**24},
        ),
        "option_deepall_poly_warmup": (
            deepall,
            {**small, "optimizer": "momentum", "lr_decay_mode": "poly", "lr_max": 0.01},
        ),
        "option_hardnet_o2_dynamic": (
            hardnet,
            {**DEMO_FOLDERS, "amp_level": "O2", "loss_scale_mode": "dynamic"},
        ),
        "option_hardnet_ema_jitter": (hardnet, {**DEMO_FOLDERS, "ema_decay": 0.9, "color_jitter": 0.4}),
        "option_hardnet_frozen": (hardnet, {**DEMO_FOLDERS, "freeze_backbone": True}),
    }


# Recording


def as_options(path, overrides, folders):
    text = {
        key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in overrides.items()
    }
    given = [f"--{key}={value.format(**folders)}" for key, value in text.items()]
    return [*([f"--config={path}"] if path else []), "--seed=0", *given]


def exact(value):
    """A number that JSON keeps: float32 in its own shortest form, Python's floats as they are."""
    if isinstance(value, bool | int | float):
        return float(value)
    array = value.asnumpy() if hasattr(value, "asnumpy") else np.asarray(value)
    number = array.reshape(())[()]
    return float(str(number)) if number.dtype in (np.float16, np.float32) else float(number)


def record(options, place):
    """Build a cell from options and train it: what an entry of the file says of losses and scalars."""
    cell = build(resolve(options), place)
    begun = phase_lengths(cell)
    # A later phase is entered only where all before it are short; otherwise the first one's beginning counts.
    short = all(length <= FIRST for length in begun[:-1])
    limits = (
        (lambda index: FIRST if index == 0 else LATER) if short else (lambda index: 0 if index else FIRST)
    )
    steps, losses, scalars = {}, [], {}
    for name, values in drive(cell, limits):
        steps[name] = steps.get(name, 0) + 1
        numbers_of = {key: exact(value) for key, value in values.items()}
        losses.append(numbers_of.pop("loss"))
        for key, value in numbers_of.items():
            scalars.setdefault(name, {}).setdefault(key, []).append(value)
    return {"steps": steps, "losses": losses, "scalars": scalars}


def flat(entry):
    """{what it is: its series} of an entry."""
    series = {"loss": entry["losses"]}
    for phase, named in entry["scalars"].items():
        series |= {f"{phase} {name}": values for name, values in named.items()}
    return series


def difference(entry, other):
    """(largest difference relative to the larger number, its place) of two entries; inf for other shapes."""
    left, right = flat(entry), flat(other)
    if entry["steps"] != other["steps"] or left.keys() != right.keys():
        return float("inf"), "steps or scalars"
    worst = (0.0, "")
    for name, series in left.items():
        if len(series) != len(right[name]):
            return float("inf"), name
        for step, (a, b) in enumerate(zip(series, right[name], strict=True)):
            if a != b:
                worst = max(worst, (abs(a - b) / max(abs(a), abs(b)), f"{name}, step {step}"))
    return worst


def about(drawn):
    """What the numbers depend on beside the program: versions, processor, the generated data."""
    import platform
    from importlib import metadata

    names = ("mindspore", "numpy", "opencv-python-headless", "scikit-learn", "scikit-image", "scipy")
    versions = {name: metadata.version(name) for name in names}
    return {"versions": {"python": platform.python_version(), **versions}, "generated_sha256": drawn}


def line_name(operators):
    return "operators" if operators else "plain"


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--check")
    parser.add_argument("--data_root", default="")
    parser.add_argument("--mnist_m", default="")
    parser.add_argument("--only", nargs="*", default=["*"])
    parser.add_argument("--reverse", default="false")
    return parser.parse_args()


def main():
    arguments = parse()
    os.environ.setdefault("GLOG_v", "3")
    place, line = set_up()
    operators = "oneDNN blocked layouts" in line
    print(line, file=sys.stderr)
    path = Path(arguments.check or arguments.out)
    known = json.loads(path.read_text()) if path.is_file() else {}
    chosen = {n: case for n, case in cases().items() if any(fnmatch.fnmatch(n, p) for p in arguments.only)}
    if not arguments.data_root:
        chosen = {name: case for name, case in chosen.items() if case[2] == "demo"}
    failed = 0
    with tempfile.TemporaryDirectory() as generated:
        drawn = generate(Path(generated))
        print("generated data:", drawn, file=sys.stderr)
        known.setdefault("about", about(drawn))[line_name(operators)] = line
        folders = {"DATA_ROOT": arguments.data_root, "MNIST_M": arguments.mnist_m, "GENERATED": generated}
        for name in sorted(chosen, reverse=arguments.reverse == "true"):
            config, overrides, data = chosen[name]
            begun = time.perf_counter()
            entry = record(as_options(config, overrides, folders), place)
            name = name if operators else f"{name}/plain"
            options_of = as_options("", overrides, {key: f"{{{key}}}" for key in folders})
            case = {"config": config, "overrides": options_of, "data": data, "operators": operators}
            print(
                f"{name}: {entry['steps']}, {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True
            )
            if arguments.check and name not in known:
                failed += 1
                print(f"{name}: not recorded", flush=True)
            elif arguments.check:
                share, where = difference(entry, known[name])
                failed += share >= 1e-6
                print(f"{name}: {share:.3g} {where}", flush=True)
            else:
                known[name] = {**case, **entry}
                dumped = ",\n".join(
                    f"{json.dumps(n)}: {json.dumps(known[n], separators=(',', ':'))}" for n in sorted(known)
                )
                path.write_text(f"{{\n{dumped}\n}}\n")
            gc.collect()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
