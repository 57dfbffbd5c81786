"""A lab for each test, so that tests can run side by side: `pytest -n 8 tests/lab`."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fixtures import giving_up_after
from tests.support.lab.network import Lab, Network, bare_network, missing
from tests.support.lab.trial import Pace

# Beyond the lengths of its faults, for a test that waits for what never comes.
TEST_LIMIT = 300.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "lengths(short, full): how many seconds the fault lasts, in turn"
    )
    config.addinivalue_line("markers", "configured(relay, agent): their TOML, above the tables")
    config.addinivalue_line("markers", "peers: about others than us, at full lengths only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--lab-full"):
        return
    left_out = [item for item in items if item.get_closest_marker("peers")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`length` is each of the marker's, by the option."""
    if "length" in metafunc.fixturenames:
        (marker,) = metafunc.definition.iter_markers("lengths")
        full = metafunc.config.getoption("--lab-full")
        lengths = marker.kwargs["full" if full else "short"]
        metafunc.parametrize("length", lengths, ids=[f"{length:g}s" for length in lengths])


@pytest.fixture
def pace(pytestconfig: pytest.Config) -> Pace:
    if pytestconfig.getoption("--lab-full"):
        return Pace(before=3.0, after=20.0)
    return Pace(before=1.0, after=1.5)


@pytest.fixture(autouse=True)
def no_test_hangs(request: pytest.FixtureRequest) -> Iterator[None]:
    limit = TEST_LIMIT
    if "length" in request.fixturenames:
        limit += 2 * float(request.getfixturevalue("length"))
    with giving_up_after(limit):
        yield


@pytest.fixture(scope="session")
def possible() -> None:
    """Fail with the reason where there can be no lab: never left out in silence."""
    if reason := missing():
        pytest.fail(reason, pytrace=False)


@pytest.fixture
def network(possible: None, pytestconfig: pytest.Config) -> Iterator[Network]:
    """Namespaces and the path between them; nothing runs there."""
    with bare_network(seed=pytestconfig.getoption("--lab-seed")) as lab:
        yield lab


@pytest.fixture(scope="session")
def enrolled(possible: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lab in which an agent joined a relay, made once a run."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers of this run
    with (folder / "enrolling").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "enrolled").exists():
            (folder / "enrolling-now").mkdir()
            with Lab(folder / "enrolling-now"):
                pass
            (folder / "enrolling-now").rename(folder / "enrolled")
    return folder / "enrolled"


@pytest.fixture
def lab(enrolled: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    marker = request.node.get_closest_marker("configured")
    config = marker.kwargs if marker else {}
    with Lab(
        tmp_path,
        seed=request.config.getoption("--lab-seed"),
        relay_config=config.get("relay", ""),
        agent_config=config.get("agent", ""),
        enrolled=enrolled,
    ) as lab:
        yield lab
        said = lab.describe()
    print(said)  # seen when the test fails
    assert "Traceback" not in said
