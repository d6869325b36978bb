"""How much memory is left, from files as the kernel writes them."""

import pytest

from model_utils import memory

MIB = 2**20


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A function that writes files {path: text} and lets model_utils.memory read them."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(
        memory,
        "CONTAINERS",
        tuple((tmp_path / f"group{number}", *names) for number, (_, *names) in enumerate(memory.CONTAINERS)),
    )

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        return memory.free()

    return write


MACHINE = {
    "meminfo": "MemTotal:       8192 kB\nMemFree:  10 kB\nMemAvailable:   4096 kB\nHugePages_Total:  0\n"
}


def group(number, limit, used, cached):
    names = memory.CONTAINERS[number]
    texts = dict(zip(names[1:3], (limit, used), strict=True))
    texts["memory.stat"] = f"anon 5\n{names[3]} {cached}\nslab 7"
    return {f"group{number}/{name}": f"{text}\n" for name, text in texts.items()}


def test_machine_alone(kernel):
    assert kernel(MACHINE) == (4 * MIB, 8 * MIB)


@pytest.mark.parametrize("number", (0, 1))
def test_the_smaller_of_machine_and_container(kernel, number):
    assert kernel(MACHINE | group(number, 3 * MIB, 2 * MIB, MIB // 2)) == (3 * MIB // 2, 3 * MIB)
    assert kernel(group(number, 64 * MIB, 2 * MIB, 0)) == (4 * MIB, 8 * MIB)
    assert kernel(group(number, 2 * MIB, 3 * MIB, 0)) == (0, 2 * MIB)


def test_a_container_without_a_limit(kernel):
    assert kernel(MACHINE | group(0, "max", MIB, 0)) == (4 * MIB, 8 * MIB)


def test_no_such_files(kernel):
    assert kernel({}) is None
    assert kernel({"meminfo": "MemTotal: 3 kB\n"}) is None


def test_of_this_machine():
    left, total = memory.free()
    assert 0 <= left <= total and total > 2**28
