"""Texts and JSON from outside, and files that are none."""

import os
import signal

import pytest

from sirf_diffusion.cli.recon import read_list
from sirf_diffusion.files.documents import digest, parse_json, read_bytes, read_json, read_text
from sirf_diffusion.files.interfile import read_exam_info, read_image, read_projection_data
from sirf_diffusion.files.parfile import ParFile
from sirf_diffusion.interop.petsird import bin_events
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.importers import import_model
from sirf_diffusion.patient.readers import read_source
from sirf_diffusion.reconstructors.checkpoint import Checkpoint
from sirf_diffusion.training.configuration import read_configuration
from sirf_diffusion.training.data.manifest import read_manifest
from sirf_diffusion.training.data.volume_file import VolumeFile


@pytest.mark.parametrize(("text", "words"), [
    ("[1", "not JSON"), ('{"a": NaN}', "NaN"), ('{"a": -Infinity}', "-Infinity"), ('{"a": 1e400}', "1e400"),
    ('{"a": ' + "9" * 5000 + "}", "digits"), ("[" * 33 + "]" * 33, "32 levels"), ('{"a":' * 100_000, "32 levels"),
    ('{"a": "\\ud800"}', "surrogates"), ("[]", "expected a JSON dictionary, found list"),
])  # fmt: skip
def test_json_that_is_none_of_ours_is_refused(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        parse_json(text)
    with pytest.raises(ValueError, match=rf"a\.json.*{words}"):
        read_json(tmp_path / "a.json")


def test_json_may_be_32_levels_deep():
    assert parse_json("[" * 32 + "]" * 32, list)


def test_a_text_has_a_size_and_an_encoding(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert read_text(path) == "abc"
    assert read_bytes(path, 6) == b"\xef\xbb\xbfabc"
    for most, content, words in ((5, b"123456", "5 bytes"), (9, b"\xff", "UTF-8")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.txt.*{words}"):
            read_text(path, most)
    with pytest.raises(ValueError, match="folder"):
        read_text(tmp_path)


@pytest.mark.parametrize("name", ["a.hv", "A.HS", "a.v.hdr", "a.h33"])
def test_a_header_of_blank_lines_is_hashed_at_once(tmp_path, name):
    header, data = tmp_path / name, tmp_path / "a.v"
    data.write_bytes(b"1")
    header.write_text("\n" * 500_000 + "!name of data file := a.v\n")
    before = digest(header)
    data.write_bytes(b"2")
    assert digest(header) != before


@pytest.mark.parametrize(("name", "read"), [
    ("a.hv", read_image), ("a.hv", read_exam_info), ("a.hs", read_projection_data), ("a.par", ParFile.read),
    ("a.json", read_json), ("a.toml", read_configuration), ("a.csv", read_manifest), ("a.txt", read_list),
    ("a.nii", read_source), ("a.dcm", read_source), ("a.petsird", lambda path: bin_events(path, None)),
    ("a.pt", lambda path: import_model(path, "out", kind="drunet")), ("a.safetensors", ScoreModel.load),
    ("a.safetensors", Checkpoint.load), ("a.h5", VolumeFile),
])  # fmt: skip
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path, name, read):
    def late(*_):
        raise AssertionError("it waits")

    os.mkfifo(tmp_path / name)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        with pytest.raises((ValueError, OSError)):
            read(tmp_path / name)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
