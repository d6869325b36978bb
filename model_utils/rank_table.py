"""The rank table: which process runs on which Ascend device of which host, as HCCL's JSON file says it.

    {"version": "1.0", "server_count": "1", "status": "completed", "server_list": [
        {"server_id": "10.0.0.1", "device": [
            {"device_id": "0", "device_ip": "192.1.27.6", "rank_id": "0"}, …]}]}

Numbers may be written as numbers or as text. Version 1.2, which newer CANN writes for super nodes, has a
`super_device_id` for each device and a list of super nodes besides. Either may give a server a `host_ip`.
Source: HCCL's documentation of the ranktable file.
"""

import dataclasses
import ipaddress
import json
import re
from pathlib import Path

from model_utils.errors import UserError

MAX_BYTES = 4 * 2**20  # 10,000 devices take 1 MB
VERSIONS = ("1.0", "1.2")
MAX_RANKS = 65536
MAX_DEVICE_ID = 1023


@dataclasses.dataclass(frozen=True)
class Host:
    """One server of the table: its id (usually its address), its first rank, device ids in rank order.

    `host_ip` is its address if the id is not an address; "" if the table does not say.
    """

    server_id: str
    first_rank: int
    devices: tuple
    host_ip: str = ""

    @property
    def address(self):
        """How the other hosts reach it."""
        return self.host_ip or self.server_id


@dataclasses.dataclass(frozen=True)
class RankTable:
    """A checked rank table. `hosts` are in rank order, each with the same number of devices."""

    path: Path
    hosts: tuple

    @property
    def ranks(self):
        """The number of processes on all hosts."""
        return sum(len(host.devices) for host in self.hosts)


def read(path):
    """Read and check a rank table.

    Raises:
        UserError: the file is unreadable, holds no rank table, or one with which no job can run; the message
            says what is wrong, and where.
    """
    path = Path(path)
    table = _parse(path)
    if not isinstance(table, dict) or not isinstance(table.get("server_list"), list):
        raise _wrong(path, "it must be a JSON object with a server_list")
    if str(table.get("version", "1.0")) not in VERSIONS:
        raise _wrong(path, f"version is {table['version']!r:.40}; versions 1.0 and 1.2 are supported")
    if table.get("status") != "completed":
        raise _wrong(
            path, f"status is {table.get('status')!r:.40}, not 'completed'; wait until it is complete"
        )
    servers = table["server_list"]
    count = _number(path, table.get("server_count"), "server_count", MAX_RANKS)
    if count != len(servers) or not servers:
        raise _wrong(path, f"server_count is {count}, but server_list has {len(servers)} entries")
    hosts = tuple(_host(path, server, index) for index, server in enumerate(servers))
    _check_super_nodes(path, table.get("super_pod_list"), {host.server_id for host in hosts})
    return RankTable(path, _check(path, sorted(hosts, key=lambda host: host.first_rank)))


def _wrong(path, what):
    return UserError(f"rank table {path}: {what}")


def _parse(path):
    try:
        with open(path, "rb") as handle:
            content = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"rank table {path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise _wrong(path, f"it is larger than {MAX_BYTES // 2**20} MiB: no rank table")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"it is not valid JSON ({error})") from error


def _number(path, value, name, limit):
    """A whole number from 0 to `limit`, written as a number or as text."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) > limit:
        raise _wrong(path, f"{name} is {value!r:.40}; it must be a whole number from 0 to {limit}")
    return int(text)


def _host(path, server, index):
    where = f"server_list[{index}]"
    if not isinstance(server, dict) or not isinstance(server.get("device"), list) or not server["device"]:
        raise _wrong(path, f"{where} must be an object with a device list that is not empty")
    name = server.get("server_id")
    # It becomes a command-line argument: an address or a host name and nothing else.
    if not isinstance(name, str) or not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z.:_-]{0,254}", name):
        raise _wrong(path, f"{where}.server_id is {name!r:.60}; it must be an address or a host name")
    ranks = {}
    for number, device in enumerate(server["device"]):
        entry = f"{where}.device[{number}]"
        if not isinstance(device, dict):
            raise _wrong(path, f"{entry} must be an object")
        rank = _number(path, device.get("rank_id"), f"{entry}.rank_id", MAX_RANKS - 1)
        if rank in ranks:
            raise _wrong(path, f"rank_id {rank} is given twice in {where}")
        ranks[rank] = _number(path, device.get("device_id"), f"{entry}.device_id", MAX_DEVICE_ID)
        _check_address(path, device.get("device_ip"), f"{entry}.device_ip")
    devices = tuple(ranks[rank] for rank in sorted(ranks))
    if len(set(devices)) < len(devices):
        raise _wrong(path, f"{where} gives a device_id twice")
    if max(ranks) - min(ranks) + 1 != len(ranks):
        raise _wrong(
            path, f"the rank_ids of {where} must follow one another, not {sorted(ranks)[0]}, … with gaps"
        )
    _check_address(path, server.get("host_ip"), f"{where}.host_ip")
    return Host(name, min(ranks), devices, server.get("host_ip") or "")


def _check_super_nodes(path, pods, servers):
    """super_pod_list, where there is one, names each server once."""
    if pods is None:
        return
    entries = pods if isinstance(pods, list) else [None]
    lists = [entry.get("server_list") if isinstance(entry, dict) else None for entry in entries]
    if not all(isinstance(found, list) and all(isinstance(one, dict) for one in found) for found in lists):
        raise _wrong(path, "super_pod_list must be a list of objects with a server_list each")
    named = [one.get("server_id") for found in lists for one in found]
    wrong = [name for name in named if not isinstance(name, str) or name not in servers]
    if wrong:
        raise _wrong(path, f"super_pod_list names server_id {wrong[0]!r:.60}, which server_list has not")
    missing = sorted(servers - set(named))
    if missing or len(named) > len(servers):
        what = f"does not name server_id {missing[0]}" if missing else "names a server_id twice"
        raise _wrong(path, f"super_pod_list {what}")


def _check_address(path, value, where):
    """An address may be left out: device_ip on a single host without a network between its devices."""
    try:
        if value not in (None, ""):
            ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError as error:
        raise _wrong(path, f"{where} is {value!r:.60}; it must be an IP address") from error


def _check(path, hosts):
    names = [host.server_id for host in hosts]
    twice = [name for name in names if names.count(name) > 1] if len(names) < 5000 else []
    if twice:
        raise _wrong(path, f"server_id {twice[0]} is given twice")
    expected = 0
    for host in hosts:
        if host.first_rank < expected:
            raise _wrong(path, f"rank_id {host.first_rank} is given twice")
        if host.first_rank > expected:
            raise _wrong(path, f"rank_id {expected} is missing")
        expected += len(host.devices)
    sizes = {len(host.devices) for host in hosts}
    if len(sizes) > 1:
        raise _wrong(path, f"all hosts need equally many devices (msrun), not {sorted(sizes)}")
    return tuple(hosts)
