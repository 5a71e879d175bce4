"""Where a name is SIRF's, the number is SIRF's: the embedded engine against stored answers of the real one."""

import json
import math
from pathlib import Path

import pytest
from sirf_probes import probes, result

import sirf_diffusion

STORED = json.loads((Path(__file__).parent / "reference" / "sirf_numbers.json").read_text(encoding="utf-8"))
PROBES = probes()


def assert_same(found, expected, tolerance):
    if not isinstance(expected, list):
        if isinstance(expected, float) and math.isfinite(expected):
            assert found == pytest.approx(expected, rel=tolerance, abs=1e-6)
        else:
            assert found == expected or (math.isnan(found) and math.isnan(expected))
    elif len(expected) == 4 and isinstance(expected[0], list) and not isinstance(expected[1], list):
        # An array: its sums round as its norm does.
        (shape, *numbers), (expected_shape, *stored) = found, expected
        assert shape == expected_shape
        assert numbers == pytest.approx(stored, rel=tolerance, abs=tolerance * stored[1] * math.prod(shape) ** 0.5)
    else:
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, tolerance)


def test_every_probe_is_stored():
    assert list(STORED["numbers"]) == list(PROBES)
    assert len(PROBES) > 200


@pytest.mark.parametrize("name", PROBES)
def test_embedded_engine_answers_as_sirf(name):
    tolerance, call = PROBES[name]
    assert_same(result(sirf_diffusion.get_engine("embedded"), call), STORED["numbers"][name], tolerance)


@pytest.mark.requires_sirf
def test_the_stored_answers_are_those_of_this_sirf():
    from sirf_scan import quiet_sirf

    with quiet_sirf("file") as pet:
        for name in list(PROBES)[::7]:
            assert_same(result(pet, PROBES[name][1]), STORED["numbers"][name], 1e-4)


@pytest.mark.parametrize("name", STORED["names"])
def test_every_name_of_sirf_is_there_or_says_what_to_use_instead(name):
    pet = sirf_diffusion.get_engine("embedded")
    if name in pet.__all__:
        assert getattr(pet, name) is not None
    else:
        with pytest.raises(AttributeError, match=f"has no {name}: use (?!SIRF, by)"):
            getattr(pet, name)
