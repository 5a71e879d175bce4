"""Several processes: the posterior samples of one study, and lists of studies."""

import json
import pickle

import h5py
import pytest
import torch
from small_scan import write_conditional_model

from sirf_diffusion.cli import main
from sirf_diffusion.files.interfile import read_image
from sirf_diffusion.reconstructors.methods import METHODS
from sirf_diffusion.study.execution import Execution
from sirf_diffusion.study.reconstruction import Study, reconstruct
from sirf_diffusion.study.shares import merge, share_out

pytestmark = pytest.mark.usefixtures("undrawn")
UNADAPTED = [name for name, m in METHODS.items() if m.samples and m.own_adaptation is None and not m.default_model]


def options(scan, model, out, *more):
    return ["recon", *scan.options, "--model", str(model), "--out", str(out), *more]


def test_two_processes_make_the_samples_of_one(small_scan, tmp_path, capsys):
    """With a model that is shown an anatomical image."""
    model = write_conditional_model(tmp_path / "guided.safetensors", voxel_size=4.0)
    guided = ("--anatomical", small_scan.mr_hv, "--guidance", "0.5")
    more = ("--samples", "3", "--set", "num_steps=3", "--seed", "5", *guided)
    assert main(options(small_scan, model, tmp_path / "one", *more)) == 0
    assert main(options(small_scan, model, tmp_path / "two", *more, "--workers", "2")) == 0
    assert "in 2 shares" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "two").iterdir()}
    samples, images = [], []
    for name in ("one", "two"):
        with h5py.File(tmp_path / name / "samples.h5") as file:
            samples.append(torch.from_numpy(file["samples"][:]))
        images.append(
            torch.stack([read_image(tmp_path / name / f"{f}.hv")[0] for f in ("reconstruction", "uncertainty")])
        )
    largest = float(samples[0].max())
    assert torch.allclose(*samples, rtol=1e-4, atol=1e-5 * largest)
    assert torch.allclose(*images, rtol=1e-4, atol=1e-5 * largest)
    one, two = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("one", "two"))
    assert one["settings"] == two["settings"]
    assert one.keys() | {"shares"} == two.keys()
    assert one["log_likelihood"] == pytest.approx(two["log_likelihood"], rel=1e-6)
    assert one["distribution"]["message"] == two["distribution"]["message"]
    assert [share["members"] for share in two["shares"]] == [[0, 1], [2]]


def test_two_workers_of_a_cluster_make_the_samples_of_one_process(small_scan, small_model, tmp_path):
    distributed = pytest.importorskip("dask.distributed", reason='needs pip install "dask[distributed]"')
    more = ("--samples", "3", "--set", "num_steps=2", "--method", "hqs")
    assert main(options(small_scan, small_model, tmp_path / "one", *more)) == 0
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        more += ("--cluster", cluster.scheduler_address)
        assert main(options(small_scan, small_model, tmp_path / "two", *more)) == 0
    a, b = (read_image(tmp_path / name / "reconstruction.hv")[0] for name in ("one", "two"))
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.max()))
    assert len(json.loads((tmp_path / "two" / "record.json").read_text())["shares"]) == 2


@pytest.mark.parametrize("method", UNADAPTED)
def test_costs_add_up(small_acquisition, small_model, method):
    from sirf_diffusion.models import ScoreModel

    settings = {"model": ScoreModel.load(small_model), "num_samples": 4, "settings": {"num_steps": 2}}
    study = Study(small_acquisition, method, **settings)
    whole = study.run()
    shares = [reconstruct(small_acquisition, method, **settings, members=members) for members in share_out(4, 3)]
    merged = merge(study, shares[::-1])
    assert torch.allclose(merged.samples, whole.samples, rtol=1e-4, atol=1e-5 * float(whole.image.max()))
    record, apart = whole.record, merged.record
    assert apart["network_evaluations"] == record["network_evaluations"]
    assert apart["projections"]["forward"] == pytest.approx(sum(s.record["projections"]["forward"] for s in shares))
    # Only what each share has to find out for itself is done more than once.
    assert record["projections"]["back"] <= apart["projections"]["back"] < 3 * record["projections"]["back"]
    for mine, theirs in zip(apart["trace"], record["trace"], strict=True):
        assert mine["num_inner"] == theirs["num_inner"]
        assert mine["network_evaluations"] == theirs["network_evaluations"]
    assert merged.trace == whole.trace or merged.trace.log_likelihood == pytest.approx(
        whole.trace.log_likelihood, rel=1e-6
    )


def test_missing_samples_are_not_overlooked(small_acquisition, small_model):
    options = {"model": str(small_model), "num_samples": 3, "settings": {"num_steps": 2}}
    share = reconstruct(small_acquisition, "hqs", **options, members=(0, 2))
    with pytest.raises(ValueError, match="samples 0 to 2 once each"):
        merge(Study(small_acquisition, "hqs", **options), [share])


@pytest.mark.parametrize(("more", "words"), [
    (("--method", "ddip", "--workers", "2"), "adapt one network"),
    (("--adapt", "steerable", "--workers", "2"), "adapt one network"),
    (("--method", "map-score", "--workers", "2"), "one image"),
    (("--workers", "2", "--cluster", "tcp://nowhere:1"), "--workers is for this machine"),
])  # fmt: skip
def test_what_cannot_be_shared_is_refused(small_scan, small_model, tmp_path, capsys, more, words):
    assert main(options(small_scan, small_model, tmp_path / "out", *more)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_shares_are_even():
    for samples, workers in ((8, 3), (2, 5), (5, 1), (7, 7)):
        shares = share_out(samples, workers)
        assert [k for share in shares for k in share] == list(range(samples))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def line(scan, out, more=""):
    return f"{' '.join(scan.options)} --method osem --out {out} {more}"


def copied(thing):
    """What comes out of another process."""
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_line_is_reconstructed_once(small_scan, tmp_path, capsys, monkeypatch, workers):
    if workers == "2":
        there = lambda self, function, jobs: map(copied, map(copied(function), copied(jobs)))  # noqa: E731
        monkeypatch.setattr(Execution, "results", there)
    studies = tmp_path / "studies.txt"
    first, second = line(small_scan, tmp_path / "a"), line(small_scan, tmp_path / "b", "--set num_iterations=2")
    frame = first.replace("prompts.hs", "prompts.hs#1")
    assert frame != first
    studies.write_text(f"{frame} # a note\n\n# a note\n{second}")
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
    record = json.loads((tmp_path / "a" / "record.json").read_text())
    assert record["settings"]["files"]["prompts"].endswith("prompts.hs#1")
    # Other data of the same name are no result of these.
    with (small_scan.folder / "prompts.s").open("r+b") as data:
        kept = data.read(4)
        data.seek(0)
        data.write(bytes(4) if kept != bytes(4) else b"\0\0\x80?")
    assert main(["recon-many", str(studies), "--workers", workers]) == 2
    assert "holds another result: contents.prompts differ" in capsys.readouterr().err


def test_a_wrong_line_is_named_and_the_others_are_made(small_scan, tmp_path, capsys):
    studies = tmp_path / "studies.txt"
    studies.write_text(f"{line(small_scan, tmp_path / 'a', '--set nothing=1')}\n{line(small_scan, tmp_path / 'b')}\n")
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
