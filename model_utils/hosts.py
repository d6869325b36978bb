"""The hosts of a run, as --hosts names them, and which of them this machine is."""

import contextlib
import ipaddress
import re
import socket

from model_utils.errors import UserError, shortened
from model_utils.optional import require

MAX_HOSTS = 1024
NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z.:_-]{0,254}")  # it becomes an argument
LOOPBACK = ("localhost", "localhost.localdomain", "ip6-localhost")


def parse(text):
    """The hosts of `--hosts A,B,C`, the first one first.

    Raises:
        UserError: an entry is not an address or a name, is given twice, or means whichever machine reads it.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not NAME.fullmatch(name):
            raise UserError(
                f"hosts: {name!r:.60} is no address or host name; write --hosts 10.0.0.1,10.0.0.2"
            )
        if names.count(name) > 1:
            raise UserError(f"hosts: {name} stands there twice; name each host once")
        if len(names) > 1 and _is_loopback(name):
            raise UserError(
                f"hosts: {name} is another machine on each host; give the address the others know"
            )
    if len(names) > MAX_HOSTS:
        raise UserError(f"hosts: {len(names)} of them; at most {MAX_HOSTS}")
    return tuple(names)


def _is_loopback(name):
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name.lower() in LOOPBACK


def names_of_this_machine():
    """Its addresses and its name, a set of texts."""
    interfaces = require("psutil", "to find this machine's addresses").net_if_addrs().values()
    families = (socket.AF_INET, socket.AF_INET6)
    addresses = {entry.address for entries in interfaces for entry in entries if entry.family in families}
    # An IPv6 address on one link carries its interface: fe80::1%eth0.
    return {address.split("%")[0] for address in addresses} | {socket.gethostname()}


def node_rank(names, given, where="--hosts"):
    """The index in `names` of the machine this runs on.

    Args:
        names: as `parse` returns them. given: the text of --node_rank, or None.
        where: what holds the names, for messages.

    Raises:
        UserError: `given` is not an index; or none, or more than one, of the names is this machine's.
    """
    if given is not None:
        return checked(given, len(names))
    here = names_of_this_machine()
    found = [index for index, name in enumerate(names) if name in here or _addresses(name) & here]
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(names[index] for index in found[:2])
        raise UserError(f"hosts: {both} are both this machine; name each host once")
    raise UserError(
        f"{where} has no entry for this host ({', '.join(sorted(here)[:4])}), only for "
        f"{shortened(names, 4)}; correct it, or say which entry this is with --node_rank N"
    )


def checked(text, count):
    """The number in a --node_rank of `count` hosts; UserError if no host has it."""
    if not re.fullmatch(r"[0-9]{1,5}", str(text)) or int(text) >= count:
        raise UserError(f"node_rank: {str(text)!r:.40} is not a whole number from 0 to {count - 1}")
    return int(text)


def _addresses(name):
    """The addresses that a name has here, without loopback ones, which every machine has."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return set()  # an address stands for itself
    try:
        found = {entry[4][0].split("%")[0] for entry in socket.getaddrinfo(name, None)}
    except (OSError, UnicodeError):
        return set()  # not known here: so it is not this machine
    return {address for address in found if not ipaddress.ip_address(address).is_loopback}
