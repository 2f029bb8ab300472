"""What several tests need: the shared real data, where it is at hand."""

import gc
import os
import signal
import tarfile
from pathlib import Path

import pytest

# As the command line does, and as early: the threads of tiny networks spend their time waiting for each other.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell ignores it for what it starts with &, and so would we
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files of few tests that take long: begun first, or one worker is still at them when the other has nothing left.
LONGEST = (
    "test_digits_run.py",
    "test_stage.py",
    "test_guides.py",
    "test_data_free.py",
    "test_page.py",
    "test_odd_networks.py",
    "test_reader.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Let files be handed out in the order in which they were collected."""
    config.option.loadscopereorder = False


def pytest_collection_finish() -> None:
    """Let the garbage collector pass by what the imports have made: half a second each time it looks at all."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """Let the system write when it likes: a test ends processes, never the power, and each wait takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory):
    """Return a function that unpacks an archive of real data once and gives its folder; absent, the test skips."""
    folder = Path(os.environ.get("KDEXPORT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    unpacked: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        archive = folder / f"{name}.tar.xz"
        if not archive.exists():
            pytest.skip(f"the real data {archive.name} is not at hand; set KDEXPORT_TEST_DATA to its folder")
        if name not in unpacked:
            target = tmp_path_factory.mktemp(name)
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")
            unpacked[name] = target
        return unpacked[name]

    return unpack


@pytest.fixture
def load(tmp_path):
    """Return a function that loads data as a run does, with a cache folder of its own."""
    from kdexport.data.datasets import load_data  # not before the environment above is set: it brings torch
    from kdexport.recipe import Data

    return lambda source, seed=0, task=None, **keys: load_data(
        Data(source=str(source), **keys), seed, tmp_path / "cache", task=task
    )
