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
import os
import shlex
import sys
from pathlib import Path

from model_utils import cli, config, hosts, jobs, over_ssh, paths
from model_utils.errors import UserError
from model_utils.jobs import Job  # noqa: F401 - what `plan` returns
from model_utils.keys import COMMON

ROOT = config.ROOT
OWN_OPTIONS = {
    "dry_run": "print the command and the environment of each host, run nothing",
    "hosts": "several hosts: their addresses or names, A,B,…; start the same command on each of them",
    "ssh": "several hosts: true starts all of them over ssh from here; also a command as 'ssh -p 2222'",
    "master_addr": "several hosts: address of the first one; default: the first of the list",
    "master_port": "port the processes meet at, 1024 to 65535; default: a free one; with several hosts 8118, "
    "and the next one for the launchers",
    "node_rank": "several hosts: which one this is, 0 for the first; default: found by address or name",
    "log_dir": "folder of the processes' logs; default: <output_dir>/processes/<time>",
    "cluster_time_out": "seconds the processes wait for one another at the start; default 600",
}


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
        if name not in ("dry_run", "ssh") and (value is True or not value.strip()):
            raise UserError(f"{name} needs a value: {OWN_OPTIONS[name]}")
    if (ssh := over_ssh.command(own.pop("ssh", False))) is not None:
        return _over_ssh(ssh, script, argv, given, options, own)
    planned, here = plan(script, given, options, own)
    if _flag(own, "dry_run"):
        for job in planned:
            print((f"# {job.title}\n" if job.title else "") + jobs.shown(job))
        return 0
    job = planned[here()]
    print(f"+ {jobs.shown(job)}", flush=True)
    over_ssh.obey_input()
    environment = {**os.environ, **job.environment}
    if job.alone and len(job.ranks) == 1:
        os.chdir(ROOT)
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *job.command[1:]], environment)
    from model_utils import processes

    if job.meeting is not None:
        job.meeting.check()
    return processes.run(job, environment)


def _over_ssh(ssh, script, argv, given, options, own):
    """Start all hosts from here; returns the status of the first one."""
    if "hosts" not in own or "node_rank" in own:
        raise UserError("ssh: it starts all of --hosts A,B,…; name them, and leave out --node_rank")
    plan(script, given, options, own)  # what is wrong is said here, once
    names = hosts.parse(own["hosts"])
    words = _without_ssh(list(sys.argv[1:] if argv is None else argv), script.caller)
    planned = over_ssh.commands(ssh, names, words)
    for name, command in zip(names, planned, strict=True):
        print(
            f"# host {name}\n{shlex.join(command)}" if _flag(own, "dry_run") else f"+ {shlex.join(command)}"
        )
    sys.stdout.flush()
    return 0 if _flag(own, "dry_run") else over_ssh.run(planned, names)


def _without_ssh(argv, caller):
    """The launcher's words on another host: not --ssh and --dry_run, but the folder that paths start from."""
    cut = argv.index("--")
    own, rest = argv[:cut], argv[cut + 1 :]
    kept = []
    while rest:
        word = rest.pop(0)
        if word.split("=", 1)[0] not in ("--ssh", "--dry_run"):
            kept.append(word)
        elif "=" not in word and rest and not rest[0].startswith("--"):
            rest.pop(0)
    return [*own, *([] if "--caller" in own else ["--caller", caller]), "--", *kept]


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
    """Whether a key names a file or folder. A method takes seconds to import; its keys are told by name."""
    if key in COMMON:
        return COMMON[key].path
    named = ("config", "pretrained", "model", "class_names")
    return key in named or key.endswith(("_dir", "_path", "_root", "_file", "_url"))


def _from_caller(key, value, caller):
    """A path as the caller meant it: in their folder, unless it exists in the repository only."""
    if not _is_path(key) or not isinstance(value, str) or not value or "://" in value:
        return value
    if key == "pretrained" and value in ("auto", "none"):
        return value
    value = paths.expanded(value, key)
    if caller == ROOT:
        return value
    here = caller / value
    return value if not os.path.exists(here) and os.path.exists(ROOT / value) else os.path.abspath(here)


def plan(script, given, options, own):
    """The jobs of all hosts, and a function that says which of them is this host's.

    Args:
        script: the namespace of `_read_script`.
        given, options: the form's arguments and the program's options, {key: text or True}.
        own: the launcher's options.
    """
    caller = Path(script.caller)
    given = {key: _given_from_caller(key, word, caller) for key, word in given.items()}
    options = {key: _from_caller(key, value, caller) for key, value in options.items()}
    own = {key: _from_caller(key, value, caller) for key, value in own.items()}
    defaults = dict(word.split("=", 1) for word in script.set)
    keys = {key: value for key, value in given.items() if not key.startswith("@")}
    settings = {"device_target": script.target, **defaults, **keys, **options}
    if script.newest and not any(key.endswith(("ckpt_path", "ckpt_file")) for key in settings):
        settings[script.newest] = jobs.output_dir(settings)
    mine = {key: value for key, value in given.items() if key.startswith("@")}
    return jobs.plan(script, settings, mine, own)


def _given_from_caller(key, word, caller):
    """An argument of the form; a rank table is a file, unless it is a list of devices."""
    if key != "@rank_table":
        return _from_caller(key, word, caller)
    if jobs.is_devices(word) and not (caller / word).exists():
        return word
    return os.path.abspath(caller / paths.expanded(word, "rank table"))


if __name__ == "__main__":
    cli.run(main, check_versions=False)
