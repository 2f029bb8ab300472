"""What small boards tell of themselves in sysfs: the power of a Jetson, the supply and the heat of a Raspberry Pi.

Files alone, no command and no library. A Raspberry Pi has none that tells its power: of a Pi 5 `vcgencmd pmic_read_adc`
knows it (a ``--power-command``), of earlier ones an outside meter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")
# The INA3221 of a Jetson: by NVIDIA's driver up to JetPack 4 (iio), by the kernel's own later (hwmon).
DRIVERS = "bus/i2c/drivers/ina3221*/*-00[0-9a-f][0-9a-f]"
# Rails that feed the whole module. Others are parts of them, and adding them would count twice.
WHOLE = ("VDD_IN", "POM_5V_IN")  # Xavier NX, Orin NX and Nano, TX2; Nano, TX1
# Boards without one: each of these is fed by itself, and together they are the module. AGX Orin's VDDQ_VDD2_1V8AO is
# fed by its VIN_SYS_5V0.
TOGETHER = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)


@dataclass(frozen=True)
class Rail:
    """One supply that is measured: its power is the product of what its files say.

    Args:
        files: Voltage and current, or the power.
        watts: What a product of 1 is.
    """

    files: tuple[Path, ...]
    watts: float

    def read(self) -> float:
        """Return the watts that are drawn now.

        Raises:
            OSError, ValueError: It is switched off, or says no number.
        """
        return math.prod(int(file.read_text(encoding="ascii")) for file in self.files) * self.watts


def module_rails(sys: Path = SYS) -> tuple[Rail, ...]:
    """Return the rails that together are all that a Jetson's module draws; none where not all of it is told."""
    rails = {name: rail for chip in sorted(sys.glob(DRIVERS)) for name, rail in _rails(chip)}
    for names in (*((name,) for name in WHOLE), *TOGETHER):
        found = tuple(rails[name] for name in names if name in rails and _tells(rails[name]))
        if len(found) == len(names):
            return found
    return ()


def _rails(chip: Path) -> Iterator[tuple[str, Rail]]:
    for label in chip.glob("hwmon/hwmon*/in[1-3]_label"):
        number = label.name[2]
        files = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        yield _text(label), Rail(files, 1e-6)  # millivolts, milliamperes
    for label in chip.glob("iio*device*/rail_name_[0-2]"):
        yield _text(label), Rail((label.with_name(f"in_power{label.name[-1]}_input"),), 1e-3)  # milliwatts


def _tells(rail: Rail) -> bool:
    try:
        return rail.read() >= 0
    except (OSError, ValueError):
        return False


# Of the Raspberry Pi's firmware, as they are now (`vcgencmd get_throttled`).
UNDERVOLTAGE, SLOWED, HOT = 1 << 0, 1 << 1 | 1 << 2, 1 << 3


def undervoltage(sys: Path = SYS) -> bool:
    """Return whether a Raspberry Pi's supply gives too little, for which it lowers its clock; False if none tells."""
    if _firmware_flags(sys) & UNDERVOLTAGE:
        return True
    chips = [chip for chip in sys.glob("class/hwmon/hwmon*") if _text(chip / "name") == "rpi_volt"]
    return any(_text(chip / "in0_lcrit_alarm") == "1" for chip in chips)


def slowed_for_heat(sys: Path = SYS) -> bool:
    """Return whether the kernel, or a Pi's firmware, holds the CPU's clock down for heat; False if none tells."""
    flags = _firmware_flags(sys)
    if flags & HOT or (flags & SLOWED and not flags & UNDERVOLTAGE):
        return True
    coolers = [device for device in sys.glob("class/thermal/cooling_device*") if "cpufreq" in _text(device / "type")]
    return any(_text(device / "cur_state") not in ("", "0") for device in coolers)


def _firmware_flags(sys: Path) -> int:
    for file in sys.glob("devices/platform/soc*/*firmware*/get_throttled"):
        try:
            return int(_text(file), 16)
        except ValueError:
            continue
    return 0


def _text(path: Path) -> str:
    """Return a file's text; an empty one where it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
