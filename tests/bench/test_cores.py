"""Which cores are chosen, on machines that are made up as folders."""

import pytest

from kdexport.bench import host
from kdexport.bench.host import choose


def machine(folder, cpus):
    """``cpus``: for each CPU number what its folder says."""
    for number, files in enumerate(cpus):
        for name, text in files.items():
            path = folder / f"cpu{number}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
    return folder


def siblings(text):
    return {"topology/thread_siblings_list": text}


def test_only_the_fastest_kind_is_used_and_turned_round(tmp_path):
    little, big = {"cpu_capacity": 430}, {"cpu_capacity": 1024}
    machine(tmp_path, [{**(little if cpu < 4 else big), **siblings(cpu)} for cpu in range(8)])
    assert [choose(1, turn, range(8), tmp_path) for turn in range(5)] == [[4], [5], [6], [7], [4]]
    assert choose(2, 1, range(8), tmp_path) == [6, 7]
    assert choose(4, 1, range(8), tmp_path) == [4, 5, 6, 7]
    assert choose(5, 0, range(8), tmp_path) is None  # they would be of two kinds
    assert choose(1, 0, [0, 1, 2, 3], tmp_path) == [0]  # the big ones are not for this process
    assert choose(2, 0, [0, 1, 6], tmp_path) is None


def test_threads_do_not_share_a_physical_core(tmp_path):
    machine(tmp_path, [siblings(f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}") for cpu in range(8)])
    assert choose(2, 0, range(8), tmp_path) == [0, 2]
    assert choose(2, 1, range(8), tmp_path) == [4, 6]
    assert choose(4, 0, range(8), tmp_path) == [0, 2, 4, 6]
    assert choose(5, 0, range(8), tmp_path) is None
    assert choose(1, 0, [1, 3, 4, 5], tmp_path) == [1]


def test_cores_are_told_apart_by_number_and_package_where_siblings_are_not_listed(tmp_path):
    topology = [{"topology/core_id": cpu // 2 % 2, "topology/physical_package_id": cpu % 2} for cpu in range(8)]
    machine(tmp_path, topology)
    assert choose(2, 0, range(8), tmp_path) == [0, 2]  # of one package, though it has every other number
    assert choose(4, 0, range(8), tmp_path) == [0, 2, 1, 3]
    assert choose(5, 0, range(8), tmp_path) is None


def test_without_a_capacity_the_highest_clock_counts(tmp_path):
    clocks = [5_500_000, 5_500_000, 5_700_000, 4_300_000]  # a favoured core is no other kind
    machine(tmp_path, [{"cpufreq/cpuinfo_max_freq": clock, **siblings(cpu)} for cpu, clock in enumerate(clocks)])
    assert [choose(1, turn, range(4), tmp_path) for turn in range(4)] == [[0], [1], [2], [0]]


@pytest.mark.parametrize(("threads", "turn", "chosen"), [(1, 3, [3]), (2, 1, [2, 3]), (2, 2, [0, 1]), (4, 0, None)])
def test_a_machine_that_tells_nothing_has_cores_all_alike(tmp_path, threads, turn, chosen):
    assert choose(threads, turn, range(4), tmp_path / "absent") == chosen


def test_nothing_is_chosen_where_the_system_names_no_cpus(tmp_path):
    assert choose(1, 0, [], tmp_path) is None


def test_slowing_down_for_heat_is_seen(tmp_path, monkeypatch):
    counts = {"thermal_throttle/core_throttle_count": 2, "thermal_throttle/package_throttle_count": 3}
    machine(tmp_path, [counts, counts])
    assert host.throttle_events(tmp_path) == 10
    assert host.throttle_events(tmp_path / "absent") is None
    events = iter([10, 11, 11, 11, None, None])
    monkeypatch.setattr(host, "throttle_events", lambda: next(events))
    assert [host.Watch(lambda: 0.0).result().throttled for _ in range(3)] == [True, False, False]
