"""A switch of two ports that keeps each frame for a while: python -m benchmarks.slow_switch PORT PORT SECONDS

It stands in for `tc netem delay`, which not every kernel has. Each frame that comes in at one port leaves at
the other one SECONDS later. Run it in the namespace that has both ports. Frames must be no larger than the
network allows and carry their checksums: see `plain`, for the interface at the other end.
"""

import argparse
import ctypes
import fcntl
import heapq
import itertools
import select
import socket
import struct
import time

ETH_P_ALL = 3
SIOCETHTOOL = 0x8946
# Of linux/ethtool.h, what the kernel leaves to the device: checksums, gathering, two kinds of segmentation.
OFFLOADS = (0x17, 0x19, 0x1F, 0x24)
OUTGOING = 4


def plain(interface):
    """Have the kernel itself cut and sum what it sends through an interface of this namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for command in OFFLOADS:
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP", interface.encode(), ctypes.addressof(value))
            fcntl.ioctl(probe, SIOCETHTOOL, request)


def forward(ports, seconds):
    """Forward between two ports, for ever."""
    sockets = []
    for port in ports:
        sockets.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
        sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**24)
        sockets[-1].bind((port, 0))
    waiting, order = [], itertools.count()
    while True:
        left = waiting[0][0] - time.monotonic() if waiting else 1.0
        for ready in select.select(sockets, [], [], max(0.0, left))[0]:
            frame, where = ready.recvfrom(2**16)
            if where[2] != OUTGOING:  # what this program has sent itself
                other = sockets[1 - sockets.index(ready)]
                heapq.heappush(waiting, (time.monotonic() + seconds, next(order), other, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, other, frame = heapq.heappop(waiting)
            other.send(frame)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "ports", nargs=2, metavar="PORT", help="two ports, or the word plain and an interface"
    )
    parser.add_argument("seconds", nargs="?", type=float, default=0.0)
    arguments = parser.parse_args()
    if arguments.ports[0] == "plain":
        plain(arguments.ports[1])
    else:
        forward(arguments.ports, arguments.seconds)


if __name__ == "__main__":
    main()
