"""What several test files use: the embedded mini, and the task that it knows."""

import pytest

from rftkit.policy import load_policy
from rftkit.task import load_task


@pytest.fixture(scope="module")
def mini():
    return load_policy("embedded:mini")


@pytest.fixture(scope="module")
def genes():
    """(the task, its training rows)"""
    task = load_task("gene_ranking")
    return task, task.rows("train")
