import stat
import time

import pytest

from kdexport.bench.energy import Counter, PowerCommand, find_meter, per_run_mj
from kdexport.errors import KDExportError


def rapl(folder, microjoules):
    zone = folder / "intel-rapl:0"
    zone.mkdir()
    (zone / "energy_uj").write_text(str(microjoules))
    (zone / "max_energy_range_uj").write_text("1000000")
    (folder / "intel-rapl:0:0").mkdir()  # the core's part of package 0: not counted twice
    return zone / "energy_uj"


def test_rapl_is_read_and_its_wrap_undone(tmp_path):
    counter = rapl(tmp_path, 900_000)
    meter = find_meter("CPUExecutionProvider", 0, None, powercap=tmp_path)
    joules, _ = meter.joules(lambda: counter.write_text("150000"))
    assert joules == pytest.approx(0.25)


def test_idle_is_subtracted():
    readings = iter([(10 * 0.5, 0.5), (30 * 0.1, 0.1)])  # 10 W at rest, 30 W at work

    class Meter:
        name = "test"

        def joules(self, work):
            work()
            return next(readings)

    assert per_run_mj(Meter(), lambda: 100, lambda: None) == pytest.approx(20 * 0.1 / 100 * 1e3)


def test_no_more_than_at_rest_is_not_a_figure():
    assert per_run_mj(Counter("test", lambda: 0.0), lambda: 5, lambda: time.sleep(0.01)) is None


def test_without_a_meter_there_is_none(tmp_path):
    assert find_meter("CPUExecutionProvider", 0, None, powercap=tmp_path) is None
    assert find_meter("QNNExecutionProvider", 0, None, powercap=tmp_path) is None


def test_a_command_that_prints_watts(tmp_path):
    script = tmp_path / "watts"
    script.write_text("#!/bin/sh\necho 7.5\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    meter = find_meter("CPUExecutionProvider", 0, str(script))
    joules, seconds = meter.joules(lambda: time.sleep(0.3))
    assert joules / seconds == pytest.approx(7.5)


@pytest.mark.parametrize("command", [("echo", "watt"), ("true",), ("/no/such/command",)])
def test_a_command_without_a_number_is_told(command):
    with pytest.raises(KDExportError, match="--power-command"):
        PowerCommand("command", command).watts()
