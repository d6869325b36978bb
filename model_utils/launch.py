"""The launcher behind scripts/*.sh: a script's arguments become one process, or `msrun` with several.

    python -m model_utils.launch --program train.py --target CPU --form "" --form "N=@processes" -- 2 --seed 1

A form lists the arguments a script may be called with, as NAME=key; they become `--key value` of the program.
Three keys are the launcher's own: @processes (how many), @devices (their ids, comma-separated), @rank_table.
After a form's arguments come options: the launcher's (`--help` lists them), the others are the program's.
"""

from model_utils import interrupts

if __name__ == "__main__":
    interrupts.guard()

import argparse
import dataclasses
import datetime
import os
import re
import shlex
import socket
import sys
from pathlib import Path

from model_utils import cli, config, paths, rank_table
from model_utils.errors import UserError
from model_utils.keys import COMMON
from model_utils.meeting import Meeting

ROOT = config.ROOT
OWN_OPTIONS = {
    "dry_run": "print the command and the environment of each host, run nothing",
    "master_addr": "several hosts: address of the first one; default: its server_id",
    "master_port": "port the processes meet at, 1024 to 65535; default: a free one, with several hosts 8118",
    "node_rank": "several hosts: which one this is, 0 for the first; default: found by server_id",
    "log_dir": "folder of the processes' logs; default: <output_dir>/processes/<time>",
    "cluster_time_out": "seconds the processes wait for one another at the start; default 600",
}
LOCAL = "127.0.0.1"  # where one host's processes meet
MASTER_PORT = 8118  # msrun's own default
MAX_PROCESSES = 1024


@dataclasses.dataclass
class Job:
    """What one host runs: a command, what it adds to the environment, and the ranks of its processes.

    `alone`: all processes of the run are on this host. `meeting`: where they meet, on this host or another.
    """

    command: list
    environment: dict
    title: str = ""
    ranks: range = range(1)
    alone: bool = True
    meeting: Meeting | None = None


def main(argv=None):
    """Plan, print and run; returns the exit status of what was run."""
    script, arguments = _read_script(argv)
    given, options = _split(script, arguments)
    if given is None:
        print(_usage(script) + "\n\nOptions of the launcher (others go to " + script.program + "):")
        for name, meaning in OWN_OPTIONS.items():
            print(f"  --{name}: {meaning}")
        return 0
    own = {name: options.pop(name) for name in OWN_OPTIONS if name in options}
    for name, value in own.items():
        if name != "dry_run" and (value is True or not value.strip()):
            raise UserError(f"{name} needs a value: {OWN_OPTIONS[name]}")
    jobs, here = plan(script, given, options, own)
    if _flag(own, "dry_run"):
        for job in jobs:
            print((f"# {job.title}\n" if job.title else "") + shown(job))
        return 0
    job = jobs[here()]
    print(f"+ {shown(job)}", flush=True)
    environment = {**os.environ, **job.environment}
    if job.alone and len(job.ranks) == 1:
        os.chdir(ROOT)
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *job.command[1:]], environment)
    from model_utils import processes

    if job.meeting is not None:
        job.meeting.check()
    return processes.run(job, environment)


def _flag(own, name):
    value = str(own.get(name, False)).lower()
    if value not in config.TRUE + config.FALSE:
        raise UserError(f"{name}: {value!r:.40} is not allowed; allowed: true | false")
    return value in config.TRUE


def _read_script(argv):
    """(what the shell script says of itself, the user's arguments)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="python -m model_utils.launch", description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True, help="train.py, eval.py, …")
    parser.add_argument("--target", choices=("auto", "Ascend", "GPU", "CPU"), default="CPU")
    parser.add_argument("--form", action="append", help="NAME=key …; one for each way to call the script")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="option of the program"
    )
    parser.add_argument("--newest", metavar="KEY", help="default of this key: the experiment's output_dir")
    parser.add_argument("--name", default="python -m model_utils.launch … --", help="shown in messages")
    parser.add_argument("--caller", help="folder that relative paths start from")
    script = parser.parse_args(argv[:cut])
    if script.caller is None:
        try:
            script.caller = os.getcwd()
        except OSError as error:
            raise UserError(
                f"the current folder is gone ({error.strerror}); change to another one"
            ) from error
    forms = script.form or [""]
    script.form = [dict(word.split("=", 1) for word in form.split()) for form in forms]
    return script, argv[cut + 1 :]


def _usage(script):
    calls = [" ".join([script.name, *form]) for form in script.form]
    return "usage: " + "  or  ".join(calls) + "  [--config FILE] [--key value …] [--dry_run]"


def _split(script, arguments):
    """({key: value} of the form's arguments, {option: value}); (None, {}) when --help was asked for."""
    leading = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    words, options = arguments[:leading], config.read_arguments(arguments[leading:])
    if "help" in options and not words:
        return None, {}
    form = next((form for form in script.form if len(form) == len(words)), None)
    if form is None:
        raise UserError(f"{len(words)} arguments were given; {_usage(script)}")
    given = {}
    for (name, key), word in zip(form.items(), words, strict=True):
        if not word:
            raise UserError(f"{name} is empty; {_usage(script)}")
        given[key] = word
    return given, options


# Paths: the program runs in the repository's root, the user typed them somewhere else.


def _is_path(key):
    """Whether a key names a file or folder; a method's, which take seconds to import, by their names."""
    if key in COMMON:
        return COMMON[key].path
    named = ("config", "pretrained", "model", "class_names")
    return key in named or key.endswith(("_dir", "_path", "_root", "_file", "_url"))


def _from_caller(key, value, caller):
    """A path as the caller meant it: what exists there, else what the repository has, else new there."""
    if not _is_path(key) or not isinstance(value, str) or not value or "://" in value:
        return value
    if key == "pretrained" and value in ("auto", "none"):
        return value
    value = paths.expanded(value, key)
    if caller == ROOT:
        return value
    here = caller / value
    return value if not os.path.exists(here) and os.path.exists(ROOT / value) else os.path.abspath(here)


# The plan


def plan(script, given, options, own):
    """The jobs of all hosts, and a function that says which of them is this host's.

    Args:
        script: the namespace of `_read_script`.
        given, options: the form's arguments and the program's options, {key: text or True}.
        own: the launcher's options.
    """
    caller = Path(script.caller)
    given = {
        key: (
            os.path.abspath(caller / paths.expanded(word, "rank table"))
            if key == "@rank_table"
            else _from_caller(key, word, caller)
        )
        for key, word in given.items()
    }
    options = {key: _from_caller(key, value, caller) for key, value in options.items()}
    own = {key: _from_caller(key, value, caller) for key, value in own.items()}
    defaults = dict(word.split("=", 1) for word in script.set)
    keys = {key: value for key, value in given.items() if not key.startswith("@")}
    settings = {"device_target": script.target, **defaults, **keys, **options}
    if script.newest and not any(key.endswith(("ckpt_path", "ckpt_file")) for key in settings):
        settings[script.newest] = output_dir(settings)
    program = [script.program, *_as_arguments(settings)]
    devices = _devices(given)
    if "@rank_table" in given:
        return _plan_rank_table(rank_table.read(given["@rank_table"]), program, settings, own)
    environment = _device_environment(script.target, devices)
    count = _count(given, devices)
    if count == 1:
        return [Job([sys.executable, *program], environment)], lambda: 0
    environment |= _processes_environment(script.target, count)
    meeting = Meeting(own.get("master_addr", LOCAL), _port(own, free=True))
    options = {"worker_num": count, "local_worker_num": count, "master_port": meeting.port}
    if "master_addr" in own:
        options["master_addr"] = meeting.address
    command = _msrun(options, settings, own, program)
    return [Job(command, environment, ranks=range(count), meeting=meeting)], lambda: 0


def _as_arguments(settings):
    words = []
    for key, value in settings.items():
        if value is True:
            words.append(f"--{key}")
        elif value.startswith("--"):  # one word, or the value would be taken for the next key
            words.append(f"--{key}={value}")
        else:
            words += [f"--{key}", value]
    return words


def _devices(given):
    text = given.get("@devices")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", text):
        raise UserError(f"DEVICE_IDS: {text!r:.60} is not a list of device numbers such as 0,1,2,3")
    devices = [int(word) for word in text.split(",")]
    if len(set(devices)) < len(devices):
        raise UserError(f"DEVICE_IDS: {text:.60} names a device twice")
    return devices


def _count(given, devices):
    text = given.get("@processes", "1")
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= MAX_PROCESSES:
        raise UserError(f"N: {text!r:.40} processes; it must be a whole number from 1 to {MAX_PROCESSES}")
    if devices is not None and len(devices) != int(text):
        raise UserError(
            f"N is {text}, but DEVICE_IDS names {len(devices)}; give as many devices as processes"
        )
    return int(text)


def _device_environment(target, devices):
    """Which devices the processes see, where the script says it; local rank r takes the r-th of them."""
    if devices is None:
        return {}
    variable = {"GPU": "CUDA_VISIBLE_DEVICES", "Ascend": "ASCEND_RT_VISIBLE_DEVICES"}[target]
    return {variable: ",".join(map(str, devices))}


def _processes_environment(target, count):
    """msrun starts the `python` it finds on PATH; and processes on one CPU share its cores."""
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    if target == "CPU":
        share = str(max(1, len(os.sched_getaffinity(0)) // count))
        names = ("DA_CPU_THREADS", "OMP_NUM_THREADS")
        environment |= {name: share for name in names if not os.environ.get(name)}
    return environment


def _plan_rank_table(table, program, settings, own):
    jobs = []
    local, several = len(table.hosts[0].devices), len(table.hosts) > 1
    port = _port(own, free=not several)
    for index, host in enumerate(table.hosts):
        ranks = range(host.first_rank, host.first_rank + local)
        options = {"worker_num": table.ranks, "local_worker_num": local, "master_port": port}
        if several:
            options |= {"master_addr": own.get("master_addr", table.hosts[0].server_id), "node_rank": index}
        options["rank_table_file"] = str(table.path)
        environment = _processes_environment("Ascend", local)
        if host.devices != tuple(range(local)):
            environment |= _device_environment("Ascend", host.devices)
        title = f"host {host.server_id}: node_rank {index}, ranks {ranks[0]} to {ranks[-1]}"
        if table.ranks == 1:
            command, environment = [sys.executable, *program], _device_environment("Ascend", host.devices)
        else:
            command = _msrun(options, settings, own, program)
        meeting = Meeting(options.get("master_addr", LOCAL), port, here=index == 0)
        jobs.append(Job(command, environment, title, ranks, not several, meeting))
    return jobs, lambda: _node_rank(table, own)


def _node_rank(table, own):
    if "node_rank" not in own:
        return table.node_rank()
    text = str(own["node_rank"])
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) >= len(table.hosts):
        raise UserError(f"node_rank: {text!r:.40} is not a whole number from 0 to {len(table.hosts) - 1}")
    return int(text)


def _port(own, free):
    if "master_port" in own:
        text = str(own["master_port"])
        if not re.fullmatch(r"[0-9]{1,5}", text) or not 1024 <= int(text) <= 65535:
            raise UserError(f"master_port: {text!r:.40} is not a whole number from 1024 to 65535")
        return int(text)
    if not free:
        return MASTER_PORT
    # Free now: two runs started on one machine do not meet at the same port.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _msrun(options, settings, own, program):
    wait = str(own.get("cluster_time_out", 600))
    if not re.fullmatch(r"[0-9]{1,6}", wait) or int(wait) == 0:
        raise UserError(f"cluster_time_out: {wait!r:.40} is not a number of seconds above 0")
    now = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    log_dir = own.get("log_dir") or os.path.join(output_dir(settings), "processes", now)
    # No process's log is followed by msrun (its number is that of none): processes.py shows the first one.
    options = {
        **options,
        "log_dir": os.path.abspath(ROOT / log_dir),
        "join": True,
        "cluster_time_out": int(wait),
        "tail_worker_log": options["worker_num"],
    }
    interpreter = [] if (Path(sys.executable).parent / "python").exists() else ["python3"]
    return ["msrun", *(f"--{name}={value}" for name, value in options.items()), *interpreter, *program]


def output_dir(settings):
    """The output_dir that the program will resolve from these options, without its imports."""
    overlay = config.read_yaml(settings["config"]) if isinstance(settings.get("config"), str) else {}
    layers = (settings, overlay, config.read_yaml(ROOT / "config.yaml"))
    found = next(
        (layer["output_dir"] for layer in layers if "output_dir" in layer), COMMON["output_dir"].default
    )
    return paths.expanded(str(found), "output_dir")


def shown(job):
    """The job as a line that can be pasted into a shell."""
    words = [f"cd {shlex.quote(str(ROOT))} &&"]
    for name, value in job.environment.items():
        if name == "PATH":
            words.append(f'PATH={shlex.quote(value.split(os.pathsep)[0])}:"$PATH"')
        else:
            words.append(f"{name}={shlex.quote(value)}")
    return " ".join([*words, shlex.join(job.command)])


if __name__ == "__main__":
    cli.run(main, check_versions=False)
