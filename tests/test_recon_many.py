"""A list of reconstructions: each made once, the wrong ones named, on as many workers as there are."""

from __future__ import annotations

import pytest
import torch
from small_scan import write_small_scan

from sirf_diffusion.cli import main
from sirf_diffusion.files.interfile import read_image


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return write_small_scan(tmp_path_factory.mktemp("scan"))


def options(scan, out, more=""):
    data = f"--prompts {scan.prompts_hs} --multiplicative {scan.multiplicative_hs} --additive {scan.additive_hs}"
    return f"{data} --attenuation {scan.mu_hv} --method osem --out {out} {more}"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_line_is_reconstructed_once(scan, tmp_path, capsys, workers):
    studies = tmp_path / "studies.txt"
    lines = [options(scan, tmp_path / "a"), "", "# a note", options(scan, tmp_path / "b", "--set num_iterations=2")]
    studies.write_text("\n".join(lines))
    assert main(["recon-many", str(studies), "--workers", workers]) == 0
    a, b = (read_image(tmp_path / name / "reconstruction.hv")[0] for name in "ab")
    assert not torch.equal(a, b)
    written = (tmp_path / "a" / "reconstruction.v").stat().st_mtime_ns
    said = capsys.readouterr().out
    assert "line 1:" in said
    assert "line 4:" in said
    assert main(["recon-many", str(studies), "--workers", workers]) == 0
    assert "2 of 2 have a result already" in capsys.readouterr().out
    assert (tmp_path / "a" / "reconstruction.v").stat().st_mtime_ns == written


def test_a_wrong_line_is_named_and_the_others_are_made(scan, tmp_path, capsys):
    studies = tmp_path / "studies.txt"
    studies.write_text(f"{options(scan, tmp_path / 'a', '--set nothing=1')}\n{options(scan, tmp_path / 'b')}\n")
    assert main(["recon-many", str(studies)]) == 2
    assert "line 1:" in capsys.readouterr().err
    assert (tmp_path / "b" / "record.json").is_file()


@pytest.mark.parametrize(
    ("text", "message"), [("--prompts p.hs", "line 1: no --out"), ("--out a\n--out=a", "same --out"), ("#", "no line")]
)
def test_a_list_that_makes_no_sense_is_refused(tmp_path, capsys, text, message):
    (tmp_path / "studies.txt").write_text(text)
    assert main(["recon-many", str(tmp_path / "studies.txt")]) == 2
    assert message in capsys.readouterr().err
