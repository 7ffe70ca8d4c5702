"""Pages are kept between steps and given back afterwards."""

import json
import subprocess
import sys
import threading

import pytest

from isd import _memory
from isd._memory import kept_pages

SETTINGS = {-4: "mmap_max", -3: "mmap_threshold", -1: "trim_threshold"}

MEASURE = """
import json, resource, torch
from isd._memory import kept_pages

def faults(n=20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        torch.zeros(10 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20

out = {"before": faults()}
with kept_pages():
    faults()  # small objects among large blocks: the heap settles after a few
    out["within"] = faults()
    blocks = [torch.zeros(10 << 20) for _ in range(6)]
    del blocks
    out["full"] = resident()
out["empty"] = resident()
print(json.dumps(out))
"""


@pytest.mark.skipif(_memory._allocator() is None, reason="another C library, or its settings are the user's")
def test_memory_that_is_freed_is_used_again_without_new_pages_and_goes_back_in_the_end():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["within"] < 0.5 * seen["before"]
    assert seen["empty"] < seen["full"] - 100  # MB, of the 240 that were freed within


@pytest.fixture
def asked(monkeypatch):
    """What the allocator is told, in order."""
    calls = []

    def mallopt(parameter, value):
        calls.append((SETTINGS[parameter], value))
        return 1

    def malloc_trim(pad):
        calls.append(("trim", pad))
        return 1

    monkeypatch.setattr(_memory, "_allocator", lambda: (mallopt, malloc_trim))
    return calls


KEEP = [("mmap_max", 0), ("trim_threshold", 2**31 - 1)]
GIVE_BACK = [("mmap_max", 65536), ("mmap_threshold", 32 << 20), ("trim_threshold", 64 << 20), ("trim", 0)]


def test_nested_blocks_end_with_the_outer_one(asked):
    with kept_pages():
        with kept_pages():
            pass
        assert asked == KEEP
    assert asked == KEEP + GIVE_BACK


def test_an_error_gives_memory_back_too(asked):
    with pytest.raises(RuntimeError, match="in the block"), kept_pages():
        raise RuntimeError("in the block")
    assert asked == KEEP + GIVE_BACK


def test_blocks_of_several_threads_end_with_the_last(asked):
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with kept_pages():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(10)
    with kept_pages():
        pass
    assert asked == KEEP
    leave.set()
    thread.join()
    assert asked == KEEP + GIVE_BACK


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_settings_of_the_environment_are_left_alone(name, monkeypatch):
    monkeypatch.setenv(name, "glibc.malloc.arena_max=1" if name.startswith("G") else "1")
    assert _memory._allocator() is None
    with kept_pages():
        assert _memory._depth == 0


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    assert _memory._allocator() is None
    with kept_pages():
        assert _memory._depth == 0
