"""Files as nobody should write them: a few for every reader, found by Hypothesis, and those that once broke one.

``python -m benchmarks fuzz`` gives each reader many more.
"""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz.campaign import judge, readers

KEPT = Path(__file__).parent / "hostile"
READERS = {name.replace(" ", "-"): kind for name, kind in readers().items()}


@pytest.fixture(scope="module")
def reader_of(tmp_path_factory):
    made = {}

    def reader(name):
        if name not in made:
            made[name] = READERS[name](tmp_path_factory.mktemp("reader"))
        return made[name]

    return reader


@pytest.mark.parametrize("name", READERS)
def test_what_is_right_is_read(reader_of, name):
    reader = reader_of(name)
    assert judge(reader, reader.whole()) == "accepted"


@pytest.mark.parametrize("name", READERS)
def test_whatever_is_wrong_is_refused_or_keeps_the_promises(reader_of, name):
    reader = reader_of(name)

    @settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**63))
    def check(seed):
        assert judge(reader, reader.content(random.Random(seed))) in ("accepted", "refused")

    check()


@pytest.mark.parametrize("path", sorted(KEPT.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_once_broke_a_reader_is_refused(reader_of, path):
    assert judge(reader_of(path.parent.name), path.read_bytes()) == "refused"


def test_a_good_part_of_the_hostile_list_mode_is_read(reader_of):
    """Or else only the reader of the file's parts would be tried, which is not ours."""
    reader = reader_of("PETSIRD")
    ends = [judge(reader, reader.content(random.Random(seed))) for seed in range(60)]
    assert 10 < ends.count("accepted") < 50
