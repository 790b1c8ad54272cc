"""Today's code against the golden record, see ``README.md``."""

from __future__ import annotations

import pytest

from tests.golden.flat import FRAMES, differences
from tests.golden.record import cases, run
from tests.golden.registry import expected, has, is_slow

CASES = [
    pytest.param(name, entry, id=f"{name}-{entry}", marks=[pytest.mark.slow] if is_slow(name, entry) else [])
    for name, entry in cases()
]


@pytest.mark.parametrize(("name", "entry"), CASES)
def test_what_is_computed_is_what_was_recorded(name: str, entry: str) -> None:
    if not has(name):
        pytest.skip(f"the data folder ../shared, beside the repository, is missing: no {name}")
    record = expected(name, entry)
    assert record, f"{entry} of {name} is not recorded: python -m tests.golden.record --write {entry}"
    told = differences(record, {key: one for key, one in run(name, entry).items() if not key.startswith(FRAMES)})
    assert not told, (
        f"{entry} of {name}: {len(told)} of {len(record)} values differ; where that is meant, record again with "
        f"python -m tests.golden.record --write {entry}\n" + "\n".join(told[:20])
    )
