"""The rank table: what it says is read right, and whatever is wrong with it is one line."""

import json
import socket

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_utils import hosts, rank_table
from model_utils.errors import UserError


def server(address, ranks, devices=None, **more):
    devices = devices if devices is not None else range(len(ranks))
    entries = [
        {"device_id": str(device), "device_ip": f"192.168.100.{rank % 250 + 1}", "rank_id": str(rank)}
        for rank, device in zip(ranks, devices, strict=True)
    ]
    return {"server_id": address, "device": entries, **more}


def table(*servers, **changes):
    return {
        "version": "1.0",
        "server_count": str(len(servers)),
        "server_list": list(servers),
        "status": "completed",
        **changes,
    }


ONE = server("10.0.0.1", range(8), host_nic_ip="reserve")
TWO = (server("10.0.0.2", range(8, 16)), server("10.0.0.1", range(8)))


def write(folder, content):
    path = folder / "table of ranks.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_one_host(tmp_path):
    read = rank_table.read(write(tmp_path, table(ONE)))
    assert read.ranks == 8
    assert read.hosts == (rank_table.Host("10.0.0.1", 0, tuple(range(8))),)


def test_hosts_come_in_rank_order_and_devices_in_that_of_their_ranks(tmp_path):
    read = rank_table.read(write(tmp_path, table(*TWO))).hosts
    assert [host.server_id for host in read] == ["10.0.0.1", "10.0.0.2"]
    assert [host.first_rank for host in read] == [0, 8]
    mixed = rank_table.read(write(tmp_path, table(server("a", (2, 0, 1), (5, 7, 6)))))
    assert mixed.hosts[0].devices == (7, 6, 5)


def test_numbers_may_be_numbers(tmp_path):
    numbers = table(ONE, server_count=1)
    for device in ONE["device"]:
        numbers["server_list"][0]["device"] = [
            {**device, "rank_id": int(device["rank_id"]), "device_id": int(device["device_id"])}
            for device in ONE["device"]
        ]
    assert rank_table.read(write(tmp_path, numbers)).ranks == 8


def test_this_host_is_found_by_address_or_name(tmp_path):
    addresses = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET
    ]
    for name in (addresses[0], socket.gethostname()):
        servers = server("203.0.113.1", (0, 1)), server(name, (2, 3))
        names = [host.server_id for host in rank_table.read(write(tmp_path, table(*servers))).hosts]
        assert hosts.node_rank(names, None) == 1


def test_no_entry_for_this_host(tmp_path):
    with pytest.raises(UserError, match=r"no entry for this host .*only for 203\.0\.113\.1.*--node_rank"):
        hosts.node_rank(["203.0.113.1"], None, "rank table a.json")


def broken(name, value, where="device"):
    one = json.loads(json.dumps(ONE))
    target = one["device"][3] if where == "device" else one
    if value is None:
        del target[name]
    else:
        target[name] = value
    return table(one)


WRONG = {
    "not JSON": ("{", "not valid JSON"),
    "nested a million deep": ("[" * 100_000, "not valid JSON"),
    "a list": ([], "JSON object with a server_list"),
    "no server_list": ({"status": "completed"}, "JSON object with a server_list"),
    "version": (table(ONE, version="1.1"), "version is '1.1'"),
    "status": (table(ONE, status="initializing"), "status is 'initializing'"),
    "no status": ({k: v for k, v in table(ONE).items() if k != "status"}, "status is None"),
    "server_count": (table(ONE, server_count="2"), "server_count is 2, but server_list has 1"),
    "server_count huge": (table(ONE, server_count="9" * 5000), "server_count is"),
    "server_count missing": (
        {k: v for k, v in table(ONE).items() if k != "server_count"},
        "server_count is None",
    ),
    "no server": (table(), "server_list has 0"),
    "rank given twice": (broken("rank_id", "4"), "rank_id 4 is given twice"),
    "rank missing": (table(server("a", (0, 1, 3))), "must follow one another"),
    "first rank missing": (table(server("a", (1, 2))), "rank_id 0 is missing"),
    "rank missing between hosts": (table(server("a", (0, 1)), server("b", (3, 4))), "rank_id 2 is missing"),
    "ranks of two hosts overlap": (
        table(server("a", (0, 1)), server("b", (1, 2))),
        "rank_id 1 is given twice",
    ),
    "rank negative": (broken("rank_id", "-1"), "rank_id is '-1'"),
    "rank no number": (broken("rank_id", "²"), "rank_id is '²'"),
    "rank a float": (broken("rank_id", 1.0), "rank_id is 1.0"),
    "rank true": (broken("rank_id", True), "rank_id is True"),
    "rank left out": (broken("rank_id", None), "rank_id is None"),
    "rank huge": (broken("rank_id", "70000"), "rank_id is '70000'"),
    "device given twice": (broken("device_id", "4"), "gives a device_id twice"),
    "device_ip": (broken("device_ip", "10.0.0.999"), "must be an IP address"),
    "server_id is an option": (broken("server_id", "--join=False", "server"), "address or a host name"),
    "server_id is shell": (broken("server_id", "a;rm -rf ~", "server"), "address or a host name"),
    "server given twice": (table(server("a", (0,)), server("a", (1,))), "server_id a is given twice"),
    "no device": (table({"server_id": "a", "device": []}), "device list that is not empty"),
    "device is no object": (table({"server_id": "a", "device": [1]}), "must be an object"),
    "hosts of different size": (table(server("a", (0, 1)), server("b", (2,))), "equally many devices"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line(name, tmp_path):
    content, said = WRONG[name]
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        rank_table.read(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_missing_unreadable_and_huge_files(tmp_path):
    for path, said in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=said):
            rank_table.read(path)
    huge = tmp_path / "huge.json"
    with open(huge, "wb") as handle:
        handle.truncate(2**40)
    with pytest.raises(UserError, match="larger than 4 MiB"):
        rank_table.read(huge)
    binary = tmp_path / "binary.json"
    binary.write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="not valid JSON"):
        rank_table.read(binary)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["0", "1", "completed"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "version",
                    "status",
                    "server_list",
                    "server_count",
                    "device",
                    "rank_id",
                    "device_id",
                    "server_id",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON)
def test_any_json_is_a_table_or_a_user_error(content, tmp_path):
    path = write(tmp_path, json.dumps(content))
    try:
        assert rank_table.read(path).ranks > 0
    except UserError as error:
        assert "\n" not in str(error)


SUPER = [{"super_pod_id": "0", "server_list": [{"server_id": "node-1"}, {"server_id": "node-0"}]}]


def of_super_nodes(**changes):
    """A table as newer CANN writes it: names in the place of addresses, ids in the super node."""
    servers = [server(f"node-{node}", range(2 * node, 2 * node + 2)) for node in range(2)]
    for entry in servers:
        for device in entry["device"]:
            device["super_device_id"] = str(114098183 + int(device["rank_id"]))
    return table(*servers, version="1.2", **{"super_pod_list": SUPER, **changes})


def test_version_1_2_with_and_without_host_ip(tmp_path):
    without = rank_table.read(write(tmp_path, of_super_nodes()))
    assert [host.address for host in without.hosts] == ["node-0", "node-1"]
    content = of_super_nodes()
    for node, entry in enumerate(content["server_list"]):
        entry["host_ip"] = f"10.0.0.{node + 1}"
    read = rank_table.read(write(tmp_path, content))
    assert [host.address for host in read.hosts] == ["10.0.0.1", "10.0.0.2"]
    assert read.ranks == 4


@pytest.mark.parametrize(
    "pods, said",
    [
        ("all", "super_pod_list must be a list"),
        ([{"server_list": "node-0"}], "super_pod_list must be a list"),
        ([{"server_list": [{"server_id": "node-9"}]}], "names server_id 'node-9', which server_list has not"),
        ([{"server_list": [{"server_id": 5}]}], "names server_id 5, which server_list has not"),
        ([{"server_list": [{"server_id": "node-0"}]}], "does not name server_id node-1"),
        (SUPER + SUPER, "names a server_id twice"),
    ],
)
def test_wrong_super_nodes_are_one_line(tmp_path, pods, said):
    path = write(tmp_path, of_super_nodes(super_pod_list=pods))
    with pytest.raises(UserError, match=f"rank table .*{said}"):
        rank_table.read(path)


def test_a_wrong_host_ip_is_one_line(tmp_path):
    content = of_super_nodes()
    content["server_list"][0]["host_ip"] = "node-0; ls"
    with pytest.raises(UserError, match=r"server_list\[0\].host_ip is 'node-0; ls'"):
        rank_table.read(write(tmp_path, content))
