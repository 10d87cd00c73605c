"""Rules for all tests, the notebooks' cells among them (nbval makes a test of each cell).

It stands here and not in tests/, because notebooks/ must see it too.
"""

from __future__ import annotations

import os

# Before anything imports torch or a hub client: no network, the small profile, and the two threads
# that everything here is measured on. Notebook kernels inherit all of them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("RFTKIT_PROFILE", "smoke")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a waiting thread leaves a busy core to others

import pytest
from nbval.plugin import IPyNbCell

WAIT_FOR_OUTPUTS = 60  # seconds; nbval's own 5 are too few on a busy machine


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, IPyNbCell):
        item.output_timeout = WAIT_FOR_OUTPUTS


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Cells after a failed one would fail for its reason alone: skip them and name it."""
    if isinstance(item, IPyNbCell):
        failed = getattr(item.parent, "first_failed_cell", None)
        if failed is not None:
            pytest.skip(f"{failed} of this notebook failed")


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> None:
    skipped = call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception)
    if isinstance(item, IPyNbCell) and call.excinfo is not None and not skipped:
        if getattr(item.parent, "first_failed_cell", None) is None:
            item.parent.first_failed_cell = item.name
