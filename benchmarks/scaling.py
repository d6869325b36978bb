"""What several processes would bring, by arithmetic from measured figures.

    python -m benchmarks.scaling [--measure] [--check]

`--measure` counts the bytes that a step of each method averages over the processes, at the place where
it would send them, and keeps them in benchmarks/results/devices/scaling.json. From these, and from the
times of a step on one process that `python -m benchmarks --save` keeps, docs/scaling.md is written, with what
`python -m benchmarks.links --save` measured between two hosts.
`--check` writes nothing and fails if the page is not what the figures give.
"""

import argparse
import json

from benchmarks import links, results
from model_utils import cli, generated_page
from model_utils.checkpoint import atomic
from model_utils.config import ROOT
from model_utils.errors import UserError

PAGE = ROOT / "docs" / "scaling.md"
KEPT = ROOT / "benchmarks" / "results" / "devices" / "scaling.json"
FLOAT = 4  # bytes
PROCESSES, GIGABITS = (2, 8, 64, 512), (1, 10, 25, 100)
NETWORKS = ("lenet", "digits", "photos", "dann", "alexnet", "efficientnet_lite0")
NETWORKS += ("hardnet39ds", "hardnet68ds", "hardnet68", "hardnet85")
CLASSES = 1000  # of the networks in the table
METHODS = {  # name in the table: (method of tests/tiny, changes, what is counted of it)
    "DANN": ("dann", {}, "adapt"),
    "ADDA": ("adda", {}, "adapt"),
    "MCC": ("mcc", {"bottleneck": 0, "adapt_batch_norm": False}, "adapt"),
    "AdaMatch": ("adamatch", {}, "adapt"),
    "SHOT": ("shot", {}, "adapt"),
    "DeepAll": ("deepall", {}, "train"),
    "supervised": ("supervised", {}, "train"),
    "HarDNet-39DS": ("hardnet", {}, "train"),
    "MASF, first order": ("masf", {"meta_order": "first"}, "meta"),
    "MASF, second order": ("masf", {"meta_order": "second"}, "meta"),
}
# Name in the table: (its bytes, the kept figure of its time, steps in that, images of a step and process).
TIMED = {
    "DANN": ("DANN", "DANN step, ours", 1, "64 + 64 of 28 x 28"),
    "ADDA": ("ADDA", "ADDA, 200 adversarial steps, ours", 200, "128 + 128 of 28 x 28"),
    "MASF, first order": (
        "MASF, first order",
        "MASF first order, digits, 30 images a domain, ours",
        1,
        "30 a domain, 28 x 28",
    ),
    "MASF, second order": (
        "MASF, second order",
        "MASF second order, digits, 30 images a domain, ours",
        1,
        "30 a domain, 28 x 28",
    ),
    "HarDNet-39DS": (
        "HarDNet-39DS",
        "HarDNet-39ds training step, 32 images of 128x128, ours",
        1,
        "32 of 128 x 128",
    ),
}


# Measuring


def sent_by(method, changes, phase):
    """(network, bytes, messages) of one step of a method's phase.

    In PyNative mode every average is a call of a Python function, which here counts in place of sending.
    """
    from unittest import mock

    from model_utils.device import Device
    from tests import helpers

    sent = []

    def counting(parameters, device):
        def average(gradients):
            sent.append(sum(gradient.size for gradient in gradients) * FLOAT)
            return gradients

        return average

    with (
        mock.patch("src.training.update.gradient_reducer", counting),
        mock.patch("src.train_cells.masf.gradient_reducer", counting),
    ):
        config = helpers.tiny_config(method, mode="pynative", **changes)
        cell = helpers.build(config, Device("CPU"))
        if changes.get("meta_order") == "second":
            cell._correct = cell._second_order  # compiled otherwise, where nothing can be counted
        cell.ready()
        (chosen,) = (one for one in cell.phases if one.name == phase)
        cell.start_phase(chosen)
        sent.clear()
        cell.train_step(chosen, chosen.batch(0))
    return config.network, sum(sent), len(sent)


def of_networks():
    """{network: bytes of the gradients of all its parameters that are trained}, with CLASSES classes."""
    from src import networks
    from src.setup import settings

    found = {}
    for name in NETWORKS:
        network = networks.build(settings.load([f"--network={name}", "--pretrained=none"]), CLASSES)
        found[name] = FLOAT * sum(parameter.size for parameter in network.trainable_params())
    return found


def measure():
    """Count everything and keep it."""
    from src.setup import settings
    from src.setup.place import set_up

    set_up(settings.load(["--device_target=CPU", "--cpu_operator=false"]))
    methods = {}
    for name, arguments in METHODS.items():
        network, count, messages = sent_by(*arguments)
        methods[name] = {"network": network, "bytes": count, "messages": messages}
        print(f"{name}, {network}: {count:,} bytes in {messages}", flush=True)
    content = {
        "command": "python -m benchmarks.scaling --measure",
        "methods": methods,
        "networks": of_networks(),
    }
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    with atomic(KEPT) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# Arithmetic


def seconds_of_ring(count, processes, gigabits):
    """Time of a ring all-reduce of `count` bytes: each process sends 2 (p - 1) / p of them."""
    return 2 * (processes - 1) / processes * 8 * count / (gigabits * 1e9)


def speed_up(step, count, processes, gigabits):
    """How many times the samples of one process a second, at one batch for each process."""
    return processes * step / (step + seconds_of_ring(count, processes, gigabits))


def step_of(name, kept=None):
    """(seconds of a step on one process, the command that measured them) of a row of TIMED."""
    _, figure, steps, _ = TIMED[name]
    rows = {row["name"]: row for row in (kept or results.figures())["figures"]}
    if figure not in rows:
        raise UserError(f"{results.FIGURES} holds no figure {figure!r}; run python -m benchmarks --save")
    row = rows[figure]
    scale = {"ms": 1e-3, "s": 1.0}[row["unit"]]
    return float(row["text"].replace(",", "")) * scale / steps, row["command"]


# The page


def _megabytes(count):
    return f"{count / 1e6:,.2f}"


def page(content, between_hosts):
    """The text of docs/scaling.md. content: of KEPT. between_hosts: of links.KEPT."""
    methods = content["methods"]
    lines = [INTRODUCTION.strip(), "", "## Bytes a step", "", BYTES.strip(), ""]
    lines += ["| method | network | MB a step | messages |", "|---|---|---|---|"]
    lines += [
        f"| {name} | `{row['network']}` | {_megabytes(row['bytes'])} | {row['messages']} |"
        for name, row in methods.items()
    ]
    lines += ["", OF_NETWORKS.strip(), "", "| network | MB |", "|---|---|"]
    lines += [f"| `{name}` | {_megabytes(count)} |" for name, count in content["networks"].items()]
    lines += ["", "## Speed-up", "", FORMULA.strip()]
    for name, (counted, _, _, images) in TIMED.items():
        step, command = step_of(name)
        count = methods[counted]["bytes"]
        lines += ["", f"### {name}, `{methods[counted]['network']}`", ""]
        lines += [
            f"{images} on each process: {step * 1000:.1f} ms a step on one process, "
            f"{1 / step:.1f} steps a second (`{command}`); {_megabytes(count)} MB a step.",
            "",
            f"| processes | {' | '.join(f'{gigabits} Gbit/s' for gigabits in GIGABITS)} |",
            "|---" * (len(GIGABITS) + 1) + "|",
        ]
        for processes in PROCESSES:
            cells = [f"{speed_up(step, count, processes, gigabits):.1f}" for gigabits in GIGABITS]
            lines.append(f"| {processes} | {' | '.join(cells)} |")
    lines += links.section(between_hosts, methods)
    return "\n".join([*lines, "", LEFT_OUT.strip()]) + "\n"


INTRODUCTION = """
# What several processes would bring

Written by `python -m benchmarks.scaling`. The bytes and the times of a step are measured; the speed-ups
are arithmetic from them and were not measured, because no cluster was at hand. What the link adds to a step
was measured between two hosts over slow links ([below](#checked-on-two-hosts-over-limited-links)). On one
CPU a second process brings nothing ([distributed.md](distributed.md#measured)), because one process already
uses all its cores.
"""
BYTES = """
A step averages the gradients of each optimizer's parameters over the processes, as float32, joined into one
message. The bytes are counted where they are sent. Each method has the network of its configuration in
`tests/tiny`, and its data's number of classes; ADDA and DANN are in the adversarial phase. After each
step the processes exchange one more message, of 8 bytes and 4 for each process.
"""
OF_NETWORKS = """
Another network changes these figures by the size of its gradients. The table has 1,000 classes and nothing
frozen. MASF averages the network's gradients twice a step, in second order three times.
"""
FORMULA = """
A ring all-reduce of B bytes over p processes takes 2 (p - 1) / p · 8 B / R seconds at R bits a second.
With t the time of a step on one process, and the same batch on each process, p processes then take in

    p · t / (t + 2 (p - 1) / p · 8 B / R)

times the samples of one process. The times of a step are those of two cores of a CPU, as in
[results.md](results.md). A faster device has a smaller t, and gains less from the same network.
"""
LEFT_OUT = """
## What is left out

A ring of p processes passes 2 (p - 1) messages on, one after the other. At 20 µs each that would be 20
ms a step for 512 processes, more than half of a step of DANN. Uneven steps, the reading of data from
one shared disk, and evaluation, which is shared out among the processes, are left out as well. Gradients are
sent after the backward pass, not during it.
"""


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.measure:
        measure()
    text = page(*(json.loads(kept.read_text(encoding="utf-8")) for kept in (KEPT, links.KEPT)))
    generated_page.write(PAGE, text, arguments.check, "benchmarks.scaling")
    print(f"{PAGE.relative_to(ROOT)}: {len(TIMED)} tables")


if __name__ == "__main__":
    cli.run(main)
