"""An execution provider is one entry: everything that asks for it is shown with a toy one."""

import onnxruntime
import pytest

from kdexport.bench import devices, doctor, energy, session
from kdexport.bench.plan import Condition, Settings
from kdexport.bench.process import ChildError
from kdexport.errors import DeviceError

TOY = devices.Provider(
    "toy", "ToyExecutionProvider", "pip install toy", numbered=True, memory="toy", behind=("CUDAExecutionProvider",)
)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(devices, "ALL", (*devices.ALL, TOY))


def test_a_toy_provider_needs_one_entry(toy, monkeypatch):
    device = devices.find(["toy:1"], ["ToyExecutionProvider"], {"fast": "1"})[0]
    assert (device.name, device.provider) == ("toy:1", "ToyExecutionProvider")
    assert device.options == {"fast": "1", "device_id": "1"}
    with pytest.raises(DeviceError, match="device 'toy' is not there") as caught:
        devices.find(["toy"], ["CPUExecutionProvider"], {})
    assert caught.value.hint == "pip install toy"
    with pytest.raises(DeviceError) as caught:
        devices.find(["toi"], ["CPUExecutionProvider"], {})
    assert "did you mean 'toy'?" in caught.value.hint

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["ToyExecutionProvider"])
    chosen = session._providers(device.provider, device.options, None)
    assert chosen == [
        ("ToyExecutionProvider", {"fast": "1", "device_id": "1"}),
        ("CUDAExecutionProvider", {"device_id": "1"}),
        "CPUExecutionProvider",
    ]

    def dies(_provider):
        raise ChildError("it broke")

    monkeypatch.setattr(doctor, "probe", dies)
    check = doctor._provider("ToyExecutionProvider")
    assert (check.name, check.fix) == ("device toy", "pip install toy")


def test_copies_are_timed_where_the_data_lie_elsewhere(toy, monkeypatch):
    asked = []

    class Played:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def ask(self, **task):
            asked.append(task["do"])
            return {"host_to_device": 1.0, "device_to_host": 2.0}, b""

    monkeypatch.setattr(energy, "Child", Played)
    for name in ("toy", "cpu"):
        (device,) = devices.find([name], ["ToyExecutionProvider", "CPUExecutionProvider"], {})
        found = energy.measure("m", {"batch_size": 1}, Condition(device, 1, (1,)), Settings(), None, 1, None)
        assert (found.transfer_ms is not None) == (name == "toy")
    assert asked == ["load", "prepare", "transfers"]
