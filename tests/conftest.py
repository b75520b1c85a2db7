"""What every test shares: one thread, reproducible randomness, hypothesis profiles."""

from __future__ import annotations

import os

# Set before matplotlib is imported by anything: no test opens a window.
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import HealthCheck, settings

from otflow.proximal import Certificate, ProxResult
from tests.measured import compared, of_test
from tests.names import unsettled
from tests.watched import inside_a_flow, watch

# The contracts are modules of assertions that tests inherit; pytest must rewrite them.
pytest.register_assert_rewrite(
    "otflow.testing.capabilities",
    "otflow.testing.clouds",
    "otflow.testing.functional",
    "otflow.testing.measure",
    "otflow.testing.proximal",
    "otflow.testing.same",
    "otflow.testing.scheme",
    "tests.exact",
)

# Small tensors on several threads are slow whenever another process runs: one, unless
# `make test THREADS=2` asks whether the suite passes with more.
torch.set_num_threads(int(os.environ.get("OTFLOW_TEST_THREADS", "1")))


# Seconds of a slow test at most, with plain instructions on a machine that is shared.
LONGEST = 1200


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what measures, and slow tests; refuse names that differ by process."""
    for item in items:
        if of_test(item.nodeid):
            item.add_marker("measured")
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(LONGEST))
    found = unsettled(item.nodeid for item in items)
    if found:
        msg = f"names of tests hold addresses; give ids: {found[:3]}"
        raise pytest.UsageError(msg)


# The examples are the same on every machine: a suite that passes here passes there.
# `make test EXAMPLES=random` draws new ones, as `make campaign` draws new problems.
settings.register_profile(
    "fixed",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "random", settings.get_profile("fixed"), derandomize=False, print_blob=True
)
settings.load_profile(os.environ.get("OTFLOW_TEST_EXAMPLES", "fixed"))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Compare the numbers of a test with those of the map of the survey."""
    with compared(pyfuncitem):
        return (yield)


@pytest.fixture(autouse=True)
def _reproducible():
    """Start each test from one seed of the CPU; check that it restores the dtype."""
    torch.default_generator.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    assert torch.get_default_dtype() == dtype, "the test changed the default dtype"


@pytest.fixture(autouse=True)
def _solutions(monkeypatch):
    """Fail a test that takes a proximal step for a solution without asking.

    A step that did not converge is no solution: the test must have read one of its
    flags. Steps of a flow are left to the warning of the flow.
    """
    watched, init = [], ProxResult.__init__

    def record(self, *args, **options):
        init(self, *args, **options)
        if isinstance(self.certificate, Certificate) and not inside_a_flow():
            certificate = watch(self.certificate)
            object.__setattr__(self, "certificate", certificate)
            watched.append(certificate)

    monkeypatch.setattr(ProxResult, "__init__", record)
    yield
    taken = [dict(c) for c in watched if c.is_taken_for_a_solution]
    assert not taken, (
        f"{len(taken)} steps did not converge, and no one asked: {taken[0]}"
    )


@pytest.fixture
def generator() -> torch.Generator:
    """Return a generator with a fixed seed."""
    return torch.Generator().manual_seed(0)
