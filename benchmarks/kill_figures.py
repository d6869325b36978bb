"""What benchmarks/kill_drill.py has found, as tables and files."""

import dataclasses
import json
import shlex

from model_utils.checkpoint import atomic
from model_utils.config import ROOT

KEPT = ROOT / "benchmarks" / "results" / "devices"
NAME = "kill_drill"
NO_LIMIT = 1e9  # minutes


@dataclasses.dataclass
class Figures:
    """What was done to one scenario."""

    kills: int = 0
    half_written: int = 0  # kills that left a checkpoint half written
    one_worker: int = 0  # kills of one worker of several
    cut_short: int = 0  # checkpoints cut short besides
    starts: int = 0
    runs: int = 0
    identical: int = 0
    failures: list = dataclasses.field(default_factory=list)  # what went wrong, in words


NUMBERS = [field.name for field in dataclasses.fields(Figures) if field.type is int]


def sums(rows):
    """{number's name: its sum} over rows of such numbers."""
    return {name: sum(row[name] for row in rows) for name in NUMBERS}


def table(found):
    """The figures as lines of a Markdown table, with their sums."""
    rows = {name: dataclasses.asdict(figures) for name, figures in found.items() if figures.starts}
    rows["all"] = sums(rows.values())
    heads = ["scenario", *(name.replace("_", " ") for name in NUMBERS)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return lines + [f"| {name} | {' | '.join(str(row[n]) for n in NUMBERS)} |" for name, row in rows.items()]


def save(name, found, command, seconds):
    """Keep the figures under a name."""
    rows = {name: dataclasses.asdict(figures) for name, figures in found.items()}
    KEPT.mkdir(parents=True, exist_ok=True)
    with atomic(KEPT / f"{name}.json") as temporary:
        text = json.dumps({"command": command, "seconds": round(seconds), "scenarios": rows}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


def kept_table():
    """Lines of a Markdown table: what the drills made whose figures are kept, and their sums."""
    rows = {}
    for path in sorted(KEPT.glob(f"{NAME}*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows[f"`{path.name}`"] = sums(content["scenarios"].values()), f"`{content['command']}`"
    rows["all"] = sums([row for row, _ in rows.values()]), ""
    heads = ["kept in", *(name.replace("_", " ") for name in NUMBERS), "command"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, (row, command_line) in rows.items():
        lines.append(f"| {' | '.join((name, *map(str, row.values()), command_line))} |")
    return lines


def command(arguments):
    """The command that these arguments came from."""
    words = ["python -m benchmarks.kill_drill", f"--kills {arguments.kills}"]
    words.append(f"--kills_of_a_run {arguments.kills_of_a_run}")
    if arguments.minutes < NO_LIMIT:
        words.append(f"--minutes {arguments.minutes:g}")
    if arguments.only:
        words.append(f"--only {shlex.join(arguments.only)}")
    return " ".join([*words, f"--mode {arguments.mode}", f"--seed {arguments.seed}"])
