"""What boards publish, on trees of files as their kernels make them."""

import pytest

from kdexport.bench import board
from kdexport.bench.energy import find_meter
from kdexport.bench.host import Surroundings
from kdexport.bench.runner import Series
from kdexport.bench.warnings import _undervoltage
from kdexport.errors import KDExportError


def tree(folder, files):
    """Write files by their paths below /sys."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


def hwmon(chip, *channels, number=2):
    """Return the files of an INA3221 by the kernel's own driver: (label, millivolts, milliamperes) a channel."""
    at = f"bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon{number}"
    files = {f"{at}/name": "ina3221", f"{at}/in7_label": "sum of shunt voltages", f"{at}/in7_input": 999}
    for place, (label, millivolts, milliamperes) in enumerate(channels, 1):
        files |= {f"{at}/in{place}_label": label, f"{at}/in{place}_input": millivolts}
        files |= {f"{at}/curr{place}_input": milliamperes, f"{at}/in{place + 3}_input": 1}  # a shunt's microvolts
    return files


def iio(chip, *channels):
    """Return those by NVIDIA's driver up to JetPack 4: (rail, milliwatts)."""
    files = {}
    for place, (rail, milliwatts) in enumerate(channels):
        at = f"bus/i2c/drivers/ina3221x/{chip}/iio:device{chip[-1]}"
        files |= {f"{at}/rail_name_{place}": rail, f"{at}/in_power{place}_input": milliwatts}
        files |= {f"{at}/in_voltage{place}_input": 5000, f"{at}/in_current{place}_input": milliwatts / 5}
    return files


ORIN_NANO = hwmon("1-0040", ("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 5000, 300))
NANO = iio("6-0040", ("POM_5V_IN", 2100), ("POM_5V_GPU", 300), ("POM_5V_CPU", 700))
TX2 = {
    **iio("0-0040", ("VDD_SYS_GPU", 400), ("VDD_SYS_SOC", 500), ("VDD_4V0_WIFI", 20)),
    **iio("0-0041", ("VDD_IN", 3300), ("VDD_SYS_CPU", 600), ("VDD_SYS_DDR", 800)),
}
AGX_ORIN = {
    **hwmon("1-0040", ("VDD_GPU_SOC", 20000, 200), ("VDD_CPU_CV", 20000, 50), ("VIN_SYS_5V0", 5000, 600)),
    **hwmon("1-0041", ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 100), ("NC", 0, 0), number=3),
}
AGX_XAVIER = {
    **iio("1-0040", ("GPU", 900), ("CPU", 800), ("SOC", 1500)),
    **iio("1-0041", ("CV", 0), ("VDDRQ", 300), ("SYS5V", 1900)),
}


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        (ORIN_NANO, 5 * 1.2),
        (NANO, 2.1),
        (TX2, 3.3),
        (AGX_ORIN, 20 * 0.2 + 20 * 0.05 + 5 * 0.6),  # its DDR is fed by VIN_SYS_5V0: not counted twice
        (AGX_XAVIER, 0.9 + 0.8 + 1.5 + 0 + 0.3 + 1.9),
    ],
    ids=["orin nano", "nano", "tx2", "agx orin", "agx xavier"],
)
@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_the_power_of_a_jetson_is_what_its_whole_module_draws(files, watts, provider, tmp_path):
    meter = find_meter(provider, 0, None, powercap=tmp_path, sys=tree(tmp_path, files))
    joules, seconds = meter.joules(lambda: None)
    assert meter.name == "INA3221"
    assert joules == pytest.approx(watts * seconds)


@pytest.mark.parametrize(
    "files",
    [
        {},
        hwmon("1-0040", ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 5000, 300)),  # parts of a whole that is not told
        hwmon("1-0040", ("VDD_GPU_SOC", 20000, 200), ("VDD_CPU_CV", 20000, 50)),
        hwmon("1-0040", ("VDD_IN", "", 1200)),  # a channel that is switched off
        hwmon("1-0040", ("VDD_IN", 5000, -40)),
        {"bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon2/in1_label": "VDD_IN"},  # no current
        {"bus/i2c/drivers/ina3221x/bind": "", "bus/i2c/drivers/ina3221/module/x": ""},
        {"class/hwmon/hwmon1/name": "rpi_volt", "class/hwmon/hwmon1/in0_lcrit_alarm": 0},  # a Raspberry Pi
        {"class/hwmon/hwmon1/name": "rp1_adc", "class/hwmon/hwmon1/in1_input": 1480},  # a Raspberry Pi 5
        {"bus/i2c/drivers/ina2xx/1-0041/hwmon/hwmon3/power1_input": 176000},  # of a battery board: of what is not known
    ],
)
def test_where_not_the_whole_module_is_told_there_is_no_power(files, tmp_path):
    assert find_meter("CPUExecutionProvider", 0, None, powercap=tmp_path, sys=tree(tmp_path, files)) is None


def test_a_command_and_a_packages_counter_come_before_the_rails(tmp_path):
    tree(tmp_path, ORIN_NANO)
    assert find_meter("CPUExecutionProvider", 0, "echo 1", powercap=tmp_path, sys=tmp_path).name == "command"
    tree(tmp_path, {f"intel-rapl:0/{name}": text for name, text in (
        ("name", "package-0"), ("energy_uj", 1), ("max_energy_range_uj", 9)
    )})  # fmt: skip
    assert find_meter("CPUExecutionProvider", 0, None, powercap=tmp_path, sys=tmp_path).name == "RAPL"


def test_rails_that_fall_silent_are_an_error_in_words_and_single_readings_are_left_out(tmp_path):
    meter = find_meter("CPUExecutionProvider", 0, None, powercap=tmp_path, sys=tree(tmp_path, ORIN_NANO))
    power = tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon2/curr1_input"
    joules, seconds = meter.joules(power.unlink)
    assert joules / seconds == pytest.approx(6.0)
    with pytest.raises(KDExportError, match="the power of this board cannot be read"):
        meter.joules(lambda: None)


FIRMWARE = "devices/platform/soc/soc:firmware/get_throttled"  # of a Pi up to 4
FIRMWARE_5 = "devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"


@pytest.mark.parametrize(
    ("files", "low", "hot"),
    [
        ({}, False, False),
        ({"class/hwmon/hwmon1/name": "rpi_volt", "class/hwmon/hwmon1/in0_lcrit_alarm": 1}, True, False),
        ({"class/hwmon/hwmon1/name": "rpi_volt", "class/hwmon/hwmon1/in0_lcrit_alarm": 0}, False, False),
        ({"class/hwmon/hwmon1/name": "nct6775", "class/hwmon/hwmon1/in0_lcrit_alarm": 1}, False, False),
        ({FIRMWARE: "50005"}, True, False),  # too little voltage, and slowed for it, now and before
        ({FIRMWARE: "50000"}, False, False),  # before only
        ({FIRMWARE_5: "e0008"}, False, True),  # the soft limit of temperature
        ({FIRMWARE: "20002"}, False, True),
        ({FIRMWARE: "d000d"}, True, True),
        ({FIRMWARE: "nothing"}, False, False),
        ({"class/thermal/cooling_device0/type": "cpufreq-cpu0", "class/thermal/cooling_device0/cur_state": 2}, 0, 1),
        (
            {"class/thermal/cooling_device0/type": "thermal-cpufreq-0", "class/thermal/cooling_device0/cur_state": 1},
            0,
            1,
        ),
        (
            {"class/thermal/cooling_device0/type": "thermal-cpufreq-0", "class/thermal/cooling_device0/cur_state": 0},
            0,
            0,
        ),
        ({"class/thermal/cooling_device1/type": "pwm-fan", "class/thermal/cooling_device1/cur_state": 3}, 0, 0),
    ],
)
def test_a_board_that_slows_down_says_why(files, low, hot, tmp_path):
    tree(tmp_path, files)
    assert (board.undervoltage(tmp_path), board.slowed_for_heat(tmp_path)) == (low, hot)


def test_too_little_voltage_is_told_beside_the_figures():
    rounds = [Surroundings(undervoltage=True), Surroundings()]
    told = "too little voltage from the supply in 1 of 2 rounds: the board slows down"
    assert _undervoltage(Series(None, 1, surroundings=rounds)) == told
    assert _undervoltage(Series(None, 1, surroundings=rounds[1:])) == ""
