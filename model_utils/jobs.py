"""What each host of a run executes: one process, or `msrun` with several, on one host or on more."""

import dataclasses
import datetime
import os
import re
import shlex
import socket
import sys
from pathlib import Path

from model_utils import config, hosts, paths, rank_table
from model_utils.errors import UserError
from model_utils.keys import COMMON
from model_utils.meeting import Meeting, Team

ROOT = config.ROOT
LOCAL = "127.0.0.1"  # where one host's processes meet
MASTER_PORT = 8118  # msrun's own default; the launchers of several hosts meet at the next one
MAX_PROCESSES = 1024
ONE_HOST = ("infer.py", "eval_onnx.py")  # programs that are one process
DEVICES = re.compile(r"[0-9]{1,4}(,[0-9]{1,4})*")


@dataclasses.dataclass
class Job:
    """What one host runs: a command, what it adds to the environment, and the ranks of its processes.

    `meeting`: where the processes meet, on this host or another; None for one process. `team`: this host
    among those of the run; None where the run is on one.
    """

    command: list
    environment: dict
    title: str = ""
    ranks: range = range(1)
    meeting: Meeting | None = None
    team: Team | None = None

    @property
    def alone(self):
        """Whether all processes of the run are on this host."""
        return self.team is None


def plan(script, settings, given, own):
    """The jobs of all hosts, and a function that says which of them is this host's.

    Args:
        script: the program and the target, as `launch._read_script` reads them.
        settings: {key: text or True} of the program. given: the launcher's own arguments, {@key: text}.
        own: the launcher's options.
    """
    names = _hosts(script, given, own)
    settings, given = _devices_from_table(dict(settings), dict(given))
    if "@rank_table" in given:
        return _with_rank_table(rank_table.read(given["@rank_table"]), script, settings, own)
    if names and script.target != "CPU" and "device_id" in settings and "@devices" not in given:
        # Under msrun each process takes the first device it sees.
        given["@devices"] = str(settings.pop("device_id"))
    devices = _devices(given)
    local = _count(given, devices)
    count = local * len(names or [LOCAL])
    several = len(names) > 1
    program = [script.program, *_as_arguments(settings)]
    environment = _device_environment(script.target, devices)
    if count == 1:
        jobs = [Job([sys.executable, *program], environment)]
    elif not several:
        environment |= _processes_environment(script.target, local)
        meeting = Meeting(own.get("master_addr", LOCAL), chosen_port(own, free=True))
        options = {"worker_num": count, "local_worker_num": count, "master_port": meeting.port}
        if "master_addr" in own:
            options["master_addr"] = meeting.address
        jobs = [Job(_msrun(options, settings, own, program), environment, "", range(count), meeting)]
    else:
        environment |= _processes_environment(script.target, local)
        jobs = [
            _job_of_host(index, names, local, {}, environment, script, settings, own)
            for index in range(len(names))
        ]
    return jobs, lambda: hosts.node_rank(names, own.get("node_rank")) if names else 0


def _hosts(script, given, own):
    """The names in --hosts, () without it; UserError where it does not fit the rest."""
    if "hosts" not in own:
        if "node_rank" in own and "@rank_table" not in given:
            raise UserError("node_rank: which of several hosts this is; name them with --hosts A,B")
        return ()
    names = hosts.parse(own["hosts"])
    if script.program in ONE_HOST:
        raise UserError(f"hosts: {script.program} is one process; start it on one host, without --hosts")
    if "node_rank" in own:
        hosts.checked(own["node_rank"], len(names))
    return names


def _devices_from_table(settings, given):
    """If a list of devices takes the place of a rank table, start one process for each of them."""
    word = given.get("@rank_table")
    if word is not None and is_devices(word):
        del given["@rank_table"]
        given |= {"@devices": word, "@processes": str(word.count(",") + 1)}
    return settings, given


def is_devices(word):
    """Whether a word is a list of device numbers such as 0,1,2,3."""
    return bool(DEVICES.fullmatch(word))


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
    if not is_devices(text):
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
    variable = {"GPU": "CUDA_VISIBLE_DEVICES"}.get(target, "ASCEND_RT_VISIBLE_DEVICES")
    return {variable: ",".join(map(str, devices))}


def _processes_environment(target, count):
    """msrun starts the `python` it finds on PATH; and processes on one CPU share its cores."""
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    if target == "CPU":
        share = str(max(1, len(os.sched_getaffinity(0)) // count))
        names = ("DA_CPU_THREADS", "OMP_NUM_THREADS")
        environment |= {name: share for name in names if not os.environ.get(name)}
    return environment


def _job_of_host(index, names, local, more, environment, script, settings, own):
    """The job of one of several hosts. more: options of msrun besides."""
    address, port = own.get("master_addr", names[0]), chosen_port(own, free=False)
    options = {"worker_num": local * len(names), "local_worker_num": local, "master_port": port}
    options |= {"master_addr": address, "node_rank": index, **more}
    ranks = range(index * local, (index + 1) * local)
    title = f"host {names[index]}: node_rank {index}, ranks {ranks[0]} to {ranks[-1]}"
    command = _msrun(options, settings, own, [script.program, *_as_arguments(settings)])
    facts = {"hosts": ",".join(names), "processes per host": str(local), "program": script.program}
    team = Team(names, index, address, port + 1, patience(own), facts)
    return Job(command, environment, title, ranks, Meeting(address, port, here=index == 0), team)


def _with_rank_table(table, script, settings, own):
    if "hosts" in own:
        raise UserError("hosts: the rank table names them already; leave out --hosts, or give device numbers")
    names = tuple(host.address for host in table.hosts)
    local, more = len(table.hosts[0].devices), {"rank_table_file": str(table.path)}
    program, jobs = [script.program, *_as_arguments(settings)], []
    for index, host in enumerate(table.hosts):
        environment = _processes_environment("Ascend", local)
        if host.devices != tuple(range(local)):
            environment |= _device_environment("Ascend", host.devices)
        if len(names) > 1:
            jobs.append(_job_of_host(index, names, local, more, environment, script, settings, own))
            continue
        title = f"host {host.address}: node_rank 0, ranks 0 to {local - 1}"
        meeting = Meeting(LOCAL, chosen_port(own, free=True))
        options = {"worker_num": local, "local_worker_num": local, "master_port": meeting.port, **more}
        if local == 1:
            command, environment = [sys.executable, *program], _device_environment("Ascend", host.devices)
        else:
            command = _msrun(options, settings, own, program)
        jobs.append(Job(command, environment, title, range(local), meeting))
    return jobs, lambda: hosts.node_rank(names, own.get("node_rank"), f"rank table {table.path}")


def chosen_port(own, free):
    """The number of --master_port; without it a free one, or that of several hosts."""
    if "master_port" in own:
        text, last = str(own["master_port"]), 65535 if free else 65534
        if not re.fullmatch(r"[0-9]{1,5}", text) or not 1024 <= int(text) <= last:
            raise UserError(f"master_port: {text!r:.40} is not a whole number from 1024 to {last}")
        return int(text)
    if not free:
        return MASTER_PORT
    # Free now: two runs started on one machine do not meet at the same port.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def patience(own):
    """The seconds of --cluster_time_out."""
    wait = str(own.get("cluster_time_out", 600))
    if not re.fullmatch(r"[0-9]{1,6}", wait) or int(wait) == 0:
        raise UserError(f"cluster_time_out: {wait!r:.40} is not a number of seconds above 0")
    return int(wait)


def _msrun(options, settings, own, program):
    now = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"
    log_dir = own.get("log_dir") or os.path.join(output_dir(settings), "processes", now)
    # No process's log is followed by msrun (its number is that of none): processes.py shows the first one.
    options = {
        **options,
        "log_dir": os.path.abspath(ROOT / log_dir),
        "join": True,
        "cluster_time_out": patience(own),
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
