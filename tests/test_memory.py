"""Out of memory: whose limit holds, what counts as its end, and where allocations begin to fail."""

import errno
import resource
import signal

import numpy as np
import pytest

from kdexport import cgroup, memory
from kdexport.errors import KDExportError
from kdexport.export.quantize import guarded
from kdexport.onnx import isolated

MIB = 1 << 20


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A made tree of control groups, this process in /a/b of each."""
    own = tmp_path / "own"
    own.write_text("4:memory:/a/b\n3:cpu,cpuacct:/a/b\n0::/a/b\n")
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "OWN", own)

    def write(place, **files):
        folder = tmp_path / "cgroup" / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("_", ".", 1)).write_text(text)

    return write


def test_the_least_limit_of_all_groups_holds_and_files_in_memory_count_as_free(groups):
    groups("a/b", memory_max="max", memory_current="7", memory_stat="inactive_file 1")
    assert (cgroup.memory_limit(), cgroup.memory_left()) == (None, None)
    stat = f"anon 5\ninactive_file {100 * MIB}\nactive_file {20 * MIB}"
    groups("a", memory_max=str(1024 * MIB), memory_current=str(500 * MIB), memory_stat=stat)
    assert (cgroup.memory_limit(), cgroup.memory_left()) == (1024 * MIB, 644 * MIB)
    stat = f"inactive_file 9\ntotal_inactive_file {MIB}\ntotal_active_file 0"
    groups("memory/a/b", memory_limit_in_bytes=str(600 * MIB), memory_usage_in_bytes=str(700 * MIB), memory_stat=stat)
    groups("memory", memory_limit_in_bytes=str((1 << 63) - 4096), memory_usage_in_bytes="9", memory_stat="cache 9")
    assert (cgroup.memory_limit(), cgroup.memory_left()) == (600 * MIB, 0)
    assert "this container (600 MiB)" in memory.message()


def test_a_group_around_this_one_limits_its_cpus_too(groups):
    groups("a/b", cpu_max="max 100000")
    groups("a", cpu_max="150000 100000")
    assert cgroup.cpu_quota() == 1.5


def test_allocations_fail_where_the_containers_memory_ends(monkeypatch):
    set_to = []
    monkeypatch.setattr(memory, "memory_left", lambda: 300 * MIB)
    monkeypatch.setattr(memory, "_data_bytes", lambda: 200 * MIB)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: set_to.append((what, limits[0])))
    memory.hold()
    assert set_to == [(resource.RLIMIT_DATA, 548 * MIB)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (400 * MIB, resource.RLIM_INFINITY))
    memory.hold()  # the user's own limit is less
    monkeypatch.setattr(memory, "memory_left", lambda: None)
    memory.hold()
    assert len(set_to) == 1


@pytest.mark.parametrize(
    ("available", "swap", "container", "left"),
    [(6000, 0, None, 6000), (1000, 0, None, 4000), (6000, 2000, None, 8000), (6000, 0, 300, 300), (200, 0, 5000, 4000)],
)
def test_a_machine_without_containers_has_an_end_too(available, swap, container, left, monkeypatch):
    told = {"MemTotal:": 8000, "MemAvailable:": available, "SwapTotal:": swap, "SwapFree:": swap}
    monkeypatch.setattr(memory, "_kib", lambda file, name: told[name] << 10 if file == "/proc/meminfo" else 0)
    monkeypatch.setattr(memory, "memory_left", lambda: None if container is None else container * MIB)
    assert memory._left() == left * MIB
    monkeypatch.setattr(memory, "_kib", lambda *_: None)  # another system
    assert memory._left() == (None if container is None else container * MIB)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        ValueError("Unable to allocate 3.2 GiB for an array with shape (4, 4)"),
        RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer"),
    ],
)
def test_what_says_that_memory_has_run_out(error):
    assert memory.exhausted(error)
    assert not memory.exhausted(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_child_that_the_kernel_ends_for_memory_is_no_fault_of_onnx_runtime(monkeypatch):
    worker = isolated._Worker()
    monkeypatch.setattr(isolated._Worker, "_current", worker)
    worker._process.send_signal(signal.SIGKILL)
    with pytest.raises(KDExportError, match="out of memory") as caught:
        worker.ask((1, b"", True, 1, (np.zeros(1),)), 20.0)
    assert "batch" in caught.value.hint


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (RuntimeError("std::bad_alloc"), r"std::bad_alloc \(out of memory: ", "leave int8 out"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: ", "TMPDIR"),
        (ValueError("Error parsing message: Wire format was corrupt"), "a file is", "TMPDIR"),
    ],
)
def test_a_quantizer_that_finds_no_room_is_no_quantizer_that_cannot(error, said, hint):
    with pytest.raises(KDExportError, match=f"int8 could not be made: {said}") as caught, guarded("int8"):
        raise error
    assert hint in caught.value.hint


def test_whatever_was_being_done_when_memory_ran_out_is_not_what_is_wrong():
    """A network that "does not take the data", a picture that "cannot be decoded", ..."""
    try:
        try:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")
        except RuntimeError as first:
            raise ValueError("the library's own") from first
    except ValueError:
        told = KDExportError("a picture cannot be decoded: 1.png: ", hint="replace it")
        ours = KDExportError("the device has not enough memory", hint="set micro_batch_size")
    assert told.message.startswith("a picture cannot be decoded: 1.png (out of memory: ")
    assert "data.image_size" in told.hint
    assert "replace it" in told.hint
    assert (ours.message, ours.hint) == ("the device has not enough memory", "set micro_batch_size")
    assert KDExportError("elsewhere", hint="h").message == "elsewhere"
