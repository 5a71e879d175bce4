"""Phantoms as training volumes, and reading: contrasts, lesions, seeds; batches as functions of the step; memory."""

import pickle
import resource
import zlib
from dataclasses import replace
from functools import lru_cache

import h5py
import numpy as np
import pytest
import torch
from fresh import run

from sirf_diffusion.cli.data import _PHANTOM
from sirf_diffusion.simulation import FIRST_HELD_OUT_SUBJECT, body, parametric, parametric_head
from sirf_diffusion.simulation.lesions import LESION_KINDS
from sirf_diffusion.simulation.tracers import TRACERS
from sirf_diffusion.training.data.augmentation import Augmentation
from sirf_diffusion.training.data.phantom_data import BODIES, PhantomOptions, build_phantoms, simulate_volumes
from sirf_diffusion.training.data.slice_stream import SliceStream, prefetched
from sirf_diffusion.training.data.volume_file import VolumeFile
from sirf_diffusion.training.data.volume_parts import PartStore
from sirf_diffusion.training.data.volumes import Volume

SMALL = {"voxel_size": 4.0}
THORAX = {"body": "thorax", "voxel_size": 10.0}


@lru_cache
def thorax(seed: int = 9100):
    return body.simulate_thorax(seed, (56, 48, 72), 6.0)


@lru_cache
def parametric_head_of(seed: int = 9100):
    return parametric_head.simulate_parametric_head(seed, (56, 64, 56), 4.0)


class TestTrunk:
    def test_builds_arms_and_places_vary(self):
        """Volumes of bodies and of arms (beside the trunk at half its height), and where the lungs end."""
        trunks = [body.simulate_trunk(seed, (40, 36, 56), 8.0) for seed in range(9100, 9112)]
        assert set(trunks[0].organs) == set(body.TRUNK_TISSUES)
        widths = [int((sum(t.organs.values())[20:35].max((0, 1)) > 0.5).sum()) for t in trunks]
        assert max(widths) > 1.25 * min(widths)
        ends = [float(np.average(np.indices(t.mr.shape)[0], weights=t.organs["lung"])) for t in trunks]
        assert max(ends) - min(ends) > 5
        assert np.array_equal(body.simulate_trunk(9100, (40, 36, 56), 8.0).mu, trunks[0].mu)
        for trunk in trunks[:3]:
            total = sum(trunk.organs.values())
            assert total.min() > -1e-5
            assert total.max() < 1 + 1e-5

    def test_breathing_blurs_along_z_and_keeps_the_activity(self):
        activity = np.random.default_rng(0).random((40, 6, 6), np.float32)
        blurred = [body.breathe(activity, 9100, draw, 4.0) for draw in range(6)]
        assert all(b.mean() == pytest.approx(activity.mean(), rel=0.02) for b in blurred)
        assert min(b[18:22].std() for b in blurred) < 0.8 * activity[18:22].std()
        assert np.array_equal(blurred[1], body.breathe(activity, 9100, 1, 4.0))

    @pytest.mark.parametrize("kind", ["trunk", "head-ct"])
    def test_they_come_with_ct(self, kind):
        """Bone brighter than soft tissue, lung darker, air 0; not the T1 image."""
        options = PhantomOptions("fdg", kind, subjects=1, first=9100, voxel_size=8.0 if kind == "trunk" else 4.0)
        volume = simulate_volumes(9100, options)[0]
        assert volume.modality == "CT"
        ct, labels = volume.arrays["anatomy"], volume.arrays["labels"]
        names = dict(enumerate(volume.label_names, 1))
        mean = {name: float(ct[labels == k].mean()) for k, name in names.items() if (labels == k).sum() > 20}
        bone = next(name for name in mean if "bone" in name or "skull" in name)
        soft = "liver" if kind == "trunk" else next(name for name in mean if "grey" in name)
        assert mean[bone] > 1.2 * mean[soft]
        assert float(ct[labels == 0].mean()) < 0.2 * mean[soft]
        if kind == "trunk":
            assert mean["lung"] < 0.5 * mean["liver"]


class TestThorax:
    def test_axes_and_attenuation(self):
        """x to the left, y to the back, z to the feet; 1/cm."""
        organs, (nz, ny, nx) = thorax().organs, thorax().mr.shape
        assert set(organs) == set(body.TISSUES)

        def centre(name):
            return [float(np.average(g, weights=organs[name])) for g in np.indices((nz, ny, nx))]

        assert centre("liver")[2] < nx / 2 < centre("spleen")[2]
        assert centre("lung")[0] < centre("liver")[0]
        assert centre("kidney")[1] > centre("liver")[1]
        assert centre("myocardium")[2] > nx / 2
        mu = thorax().mu
        assert mu[organs["lung"] > 0.99].max() < 0.04
        assert mu[organs["muscle"] > 0.99].min() == pytest.approx(0.096, rel=0.01)
        assert 0.1 < mu.max() <= 0.1401

    def test_same_seed_same_body(self):
        assert np.array_equal(body.simulate_thorax(9100, (56, 48, 72), 6.0).mr, thorax().mr)

    @pytest.mark.parametrize("tracer", body.BODY_TRACERS)
    def test_activity_and_its_lesions(self, tracer):
        def draw(k):
            return parametric.draw_parametric_activity(
                thorax(), k, body.BODY_TRACERS[tracer], body.HOT_LESIONS, 5.0, in_mr=0.0
            )

        draws, again = [draw(k) for k in range(3)], draw(0)
        assert all(np.array_equal(a, b) for a, b in zip(draws[0], again, strict=True))
        assert not np.array_equal(draws[0][0], draws[1][0])
        for activity, mr, kinds in draws:
            assert activity.min() >= 0
            assert np.isfinite(activity).all()
            assert np.array_equal(mr, thorax().mr)
            assert set(np.unique(kinds)) <= {0, 2, 4}


@pytest.mark.parametrize(("simulated", "spacing", "litres"), [
    (thorax, 0.6, {"lung": (2, 7), "liver": (0.7, 3)}),
    (parametric_head_of, 0.4, {"grey": (0.3, 1.5), "white": (0.3, 1.5)}),
])  # fmt: skip
def test_organs_are_shares_of_a_body(simulated, spacing, litres):
    organs = simulated().organs
    assert min(v.min() for v in organs.values()) >= 0
    assert sum(organs.values()).max() <= 1 + 1e-5
    for name, (least, most) in litres.items():
        assert least < float(organs[name].sum()) * spacing**3 / 1000 < most
    assert not np.array_equal(simulated(9101).mr, simulated().mr)


def test_parametric_heads_have_the_brain_on_top():
    organs = parametric_head_of().organs
    height = {name: np.average(np.arange(56), weights=v.sum((1, 2))) for name, v in organs.items()}
    assert height["grey"] < height["cerebellum"] < height["muscle"]


class TestHeads:
    @staticmethod
    @lru_cache
    def volume(tracer: str, in_mr: float = 0.5, subject: int = 9200) -> Volume:
        pytest.importorskip("nilearn")
        return simulate_volumes(subject, PhantomOptions(tracer=tracer, in_mr=in_mr, **SMALL))[0]

    def test_arrays_belong_together(self):
        arrays, names = self.volume("fdg").arrays, self.volume("fdg").label_names
        assert {a.shape for a in arrays.values()} == {(56, 64, 56)}
        brain = (arrays["labels"] == 1 + names.index("grey")) | (arrays["labels"] == 2)
        mu = arrays["mu"].astype(float)
        assert 0.09 < mu[brain].min() <= mu[brain].max() < 0.12
        # z to the feet: the neck, without brain, at the end
        assert brain[:20].sum() > 20 * max(1, brain[-12:].sum())
        assert arrays["emission"][brain].mean() > 5 * arrays["emission"][arrays["labels"] == 0].mean()
        assert arrays["mask"][brain].mean() > 0.95

    def test_every_tracer_can_be_drawn(self):
        for name, tracer in TRACERS.items():
            assert tracer.name == name
            assert tracer.contrast(5, 0) in tracer.contrasts
        amyloid = TRACERS["amyloid"]
        assert {amyloid.contrasts.index(amyloid.contrast(subject, 0)) for subject in range(12)} == {0, 1}

    def test_lesions_show_in_the_mr_or_do_not(self):
        hidden, shown = (self.volume("fdg", share, 9201).arrays for share in (0.0, 1.0))
        where = hidden["lesions"] > 0
        assert where.any()
        assert np.array_equal(where, shown["lesions"] > 0)
        assert np.array_equal(hidden["emission"], shown["emission"])
        names = {value: name for name, value in LESION_KINDS.items()}
        assert all("not in the MR" in names[v] for v in np.unique(hidden["lesions"][where]))
        assert all(", in the MR" in names[v] for v in np.unique(shown["lesions"][where]))
        ratio = shown["anatomy"][where] / hidden["anatomy"][where]
        away = ratio.mean() - np.median(shown["anatomy"][~where & (hidden["anatomy"] > 0.5)] /
                                        hidden["anatomy"][~where & (hidden["anatomy"] > 0.5)])  # fmt: skip
        assert abs(away) > 0.05


class TestFiles:
    def test_file_is_the_same_whoever_made_it(self, tmp_path):
        options = PhantomOptions(tracer="any", subjects=3, first=7, **THORAX)
        build_phantoms(tmp_path / "one.h5", options, workers=1)
        with pytest.raises(KeyboardInterrupt):
            build_phantoms(tmp_path / "two.h5", options, workers=1, progress=_interrupt)
        assert len(list((tmp_path / "two.h5.parts").glob("*.h5"))) == 1
        build_phantoms(tmp_path / "two.h5", options, workers=1)
        one, two = VolumeFile(tmp_path / "one.h5"), VolumeFile(tmp_path / "two.h5")
        assert one.fingerprint == two.fingerprint
        assert [i.split for i in one.infos] == [i.split for i in two.infos]
        assert one.infos[0].has_anatomy
        assert torch.equal(one.volume(1, "anatomy"), two.volume(1, "anatomy"))

    def test_a_file_that_the_disk_does_not_take_leaves_its_parts(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError("File too large")

        monkeypatch.setattr(PartStore, "_finish", full)
        with pytest.raises(OSError, match="File too large"):
            write_volumes(tmp_path / "a.h5", 2)
        monkeypatch.undo()
        assert [len(list(tmp_path.glob(name))) for name in ("a.h5", "a.h5.parts/*.h5")] == [0, 2]
        assert len(write_volumes(tmp_path / "a.h5", 2)) == 2

    def test_held_out_subjects_need_to_be_asked_for(self, tmp_path):
        near = PhantomOptions(subjects=2, first=FIRST_HELD_OUT_SUBJECT - 1, **THORAX)
        for held_out in (False, True):
            with pytest.raises(ValueError, match="--held-out"):
                build_phantoms(tmp_path / "a.h5", near, held_out=held_out)
        beyond = PhantomOptions(subjects=1, first=FIRST_HELD_OUT_SUBJECT, **THORAX)
        with pytest.raises(ValueError, match="kept for examples"):
            build_phantoms(tmp_path / "a.h5", beyond)
        build_phantoms(tmp_path / "a.h5", beyond, held_out=True, workers=1)
        assert [i.split for i in VolumeFile(tmp_path / "a.h5").infos] == ["test"]

    @pytest.mark.parametrize(("values", "words"), [
        ({"tracer": "water"}, "tracer for body head must be one of fdg.*found 'water'"),
        ({"body": "leg"}, "body must be"),
        ({"body": "thorax", "tracer": "tau"}, "for body thorax"), ({"voxel_size": 9.0}, "voxel_size"),
        ({"subjects": 0}, "subjects"), ({"in_mr": 2.0}, r"in \[0, 1\]"),
    ])  # fmt: skip
    def test_bad_options_are_named(self, values, words):
        with pytest.raises(ValueError, match=words):
            PhantomOptions(**values)


def test_help_names_every_tracer():
    words = _PHANTOM.split("tracers:")[1].split('"any"')[0].split()
    assert words == [word for kind, tracers in BODIES.items() for word in (kind, *tracers)]


def _interrupt():
    raise KeyboardInterrupt


def write_volumes(path, count=6, shape=(20, 24, 28), anatomy=True):
    """A file whose volume k has the value k + 1 inside."""
    with PartStore(path, "phantoms", {}, (2.0, 2.0, 2.0)).held() as store:
        for k in range(count):
            emission = np.zeros(shape, np.float32)
            emission[3:-3, 3:-3, 3:-3] = 1
            volume = Volume({"emission": emission * (k + 1), "mask": emission > 0}, (2.0, 2.0, 2.0), f"s{k}", "x", 1.0)
            if anatomy and k % 2 == 0:
                volume.arrays["anatomy"] = 10 * volume.arrays["emission"]
            store.write(f"{k}", volume)
        store.assemble([(f"{k}", f"{k}") for k in range(count)], (1, 0, 0), 0)
    return VolumeFile(path)


PLAIN = Augmentation(0, 0, 0, 0, 0, (1, 1), (1, 1), (1, 1))


class TestSliceStream:
    @pytest.fixture
    def file(self, tmp_path):
        return write_volumes(tmp_path / "a.h5")

    @pytest.mark.parametrize("memory_mb", [400, 0.1])
    def test_batch_depends_on_seed_and_step_only(self, tmp_path, file, memory_mb):
        file = VolumeFile(file.path, memory_mb=memory_mb)
        stream = SliceStream(file, (16, 24), 3, anatomy=True, slices_per_volume=4)
        assert stream.streams == (memory_mb < 1)
        wanted = [stream.batch(step, 6) for step in range(8)]
        fresh = SliceStream(VolumeFile(file.path, memory_mb=memory_mb), (16, 24), 3, anatomy=True, slices_per_volume=4)
        for step in (5, 0, 7):
            images, planes = fresh.batch(step, 6)
            assert torch.equal(images, wanted[step][0])
            assert torch.equal(planes, wanted[step][1])
        assert images.shape == (6, 2, *images.shape[-1:] * 2)
        other = SliceStream(file, (16, 24), 4, anatomy=True).batch(0, 6)[0]
        assert other.shape != wanted[0][0].shape or not torch.equal(other, wanted[0][0])

    @pytest.mark.parametrize("memory_mb", [400, 0.25])
    def test_two_processes_see_the_batch_of_one(self, file, memory_mb):
        file = VolumeFile(file.path, memory_mb=memory_mb)
        stream = SliceStream(file, (16,), 0, slices_per_volume=2)
        for step in range(4):
            images, planes = stream.batch(step, 8)
            for rank in (0, 1):
                part, part_planes = stream.batch(step, 8, rank, 2)
                assert torch.equal(part, images[rank::2])
                assert torch.equal(part_planes, planes[rank::2])

    def test_streaming_reads_each_volume_once_a_pass_and_keeps_within_its_memory(self, tmp_path):
        file = write_volumes(tmp_path / "b.h5", count=40, shape=(16, 16, 16), anatomy=False)
        size = 16**3 * 2
        file.memory = 16 * size
        stream = SliceStream(file, (16,), 0, slices_per_volume=4, augmentation=PLAIN)
        assert stream.window == 16
        reads, held = [], []
        original = file._open

        def counting():
            reads.append(1)
            return original()

        file._open = counting
        seen = set()
        steps = 3 * 40 * 4 // 8
        for step in range(steps):
            images, _ = stream.batch(step, 8)
            seen |= {round(float(i.max())) for i in images}
            held.append(file._held())
        assert seen == set(range(1, 41))
        assert max(held) <= file.memory
        passes = steps * 8 / 4 / 40
        assert len(reads) <= 1.05 * 40 * passes + stream.window

    def test_processes_share_the_reading(self, tmp_path):
        file = write_volumes(tmp_path / "c.h5", count=40, shape=(16, 16, 16), anatomy=False)
        file.memory = 16 * 16**3 * 2
        seen = []
        for rank in (0, 1):
            stream = SliceStream(file, (16,), 0, slices_per_volume=4)
            file.forget(set())
            stream.batch(0, 8, rank, 2)
            for step in range(20):
                stream.batch(step, 64, rank, 2)
            seen.append({k for k, _ in file._kept})
        assert not seen[0] & seen[1]

    def test_anatomy_moves_with_the_emission_image(self, file):
        still = Augmentation(gamma_share=0, intensity=(1, 1), anatomy_intensity=(1, 1))
        images, _ = SliceStream(file, (24,), 1, anatomy=True, augmentation=still).batch(0, 32)
        has = images[:, 1].amax((1, 2)) > 0
        assert has.any()
        assert not has.all()
        assert torch.allclose(images[has, 1], 10 * images[has, 0], rtol=1e-2, atol=0.05)

    def test_patches_are_cubes_of_the_volume(self, file):
        patches = SliceStream(file, (18,), 0, anatomy=True, augmentation=PLAIN, cubes=True).batch(0, 5)[0]
        assert patches.shape == (5, 2, 18, 18, 18)
        assert patches[:, 0].amax((1, 2, 3)).min() >= 1
        whole = SliceStream(file, (32,), 0, augmentation=PLAIN, cubes=True).batch(0, 3)[0]
        assert {round(float(p.sum())) for p in whole} <= {
            round(float(file.volume(k).float().sum())) for k in range(len(file))
        }

    def test_unusable_choices_are_named(self, tmp_path, file):
        with pytest.raises(ValueError, match="no anatomical images"):
            SliceStream(write_volumes(tmp_path / "d.h5", anatomy=False), (16,), 0, anatomy=True)
        with pytest.raises(ValueError, match="planes"):
            SliceStream(file, (16,), 0, planes=(3,))
        with pytest.raises(ValueError, match="rotation"):
            Augmentation(rotation=-1)
        with pytest.raises(ValueError, match=r"shift must be a number in \[0, 1\]"):
            Augmentation(shift=1.1)
        with pytest.raises(ValueError, match="lesions must be"):
            Augmentation(lesions=-1)

    def test_slices_that_their_crop_has_room_for_stay_where_they_are_without_shift(self):
        image = torch.rand(1, 16, 12)
        moved, unmoved = (
            replace(PLAIN, shift=shift).slices(np.random.default_rng(0), image, 0, 16, (2, 2, 2))[0]
            for shift in (0.5, 0.0)
        )
        assert torch.allclose(unmoved, torch.nn.functional.pad(image[0], (2, 2)), atol=1e-6)
        assert not torch.allclose(unmoved, moved, atol=0.1)

    @pytest.mark.parametrize("cubes", [False, True])
    def test_uptake_varies_and_has_lesions_where_there_is_some(self, file, cubes):
        def batch(step, **changes):
            change = replace(PLAIN, **changes)
            return SliceStream(file, (16,), 0, (0,), anatomy=True, augmentation=change, cubes=cubes).batch(step, 8)[0]

        plain = batch(0)
        assert torch.equal(batch(0, uptake_sd=0.5, lesions=2), plain)  # of a share of 0
        for sd, lesions in ((0.2, 0), (0.0, 2)):
            varied = batch(0, uptake_share=1.0, uptake_sd=sd, lesions=lesions)
            assert torch.equal(varied[:, 1], plain[:, 1])
            factors = (varied[:, 0] / plain[:, 0])[plain[:, 0] > 0.3]
            unchanged = float(((factors - 1).abs() < 1e-3).float().mean())
            assert 0.05 < float(factors.log().std()) < 0.6
            assert (unchanged < 0.1) if sd else (unchanged > 0.2)
        some = [bool((image == still).all()) for image, still in zip(batch(1, uptake_share=0.5), batch(1), strict=True)]
        assert 0 < sum(some) < 8

    def test_works_in_another_process(self, file):
        copy = pickle.loads(pickle.dumps(file))
        assert torch.equal(copy.volume(2), file.volume(2))


def one_pass(path):
    """Largest memory, in MB, before and after."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file = VolumeFile(path, memory_mb=100)
    stream = SliceStream(file, (96,), 0, slices_per_volume=2)
    for step in range(len(file) * 2 // 8):
        stream.batch(step, 8)
    print(before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def large_file(path, volumes, shape):
    """A file of zeros, which take little room on the disk: one compressed plane, written again and again."""
    write_volumes(path, 1, anatomy=False).close()
    plane = zlib.compress(bytes(2 * shape[1] * shape[2]))
    with h5py.File(path, "a") as file:
        template = file["volumes/00000"]
        for k in range(volumes):
            group = file.create_group(f"volumes/1{k:04d}")
            emission = group.create_dataset("emission", shape, "f2", chunks=(1, *shape[1:]), compression="gzip")
            for z in range(shape[0]):
                emission.id.write_direct_chunk((z, 0, 0), plane)
            group.attrs.update(template.attrs)
            group.attrs.update({f"occupancy_{a}": np.ones(n, "f4") for a, n in zip("zyx", shape, strict=True)})
        del file["volumes/00000"]


def test_a_pass_over_a_large_file_keeps_to_its_memory(tmp_path):
    large_file(tmp_path / "large.h5", 26, (100, 256, 256))  # 0.34 GB
    code, output = run(one_pass, str(tmp_path / "large.h5"), cwd=tmp_path)
    assert code == 0, output
    before, after = map(float, output.split())
    assert after - before < 250


class TestPrefetch:
    def test_order_errors_and_closing(self):
        assert list(prefetched(lambda s: 2 * s, range(50), depth=3)) == [2 * s for s in range(50)]

        def fails(step):
            if step == 2:
                raise OSError("disk")
            return step

        results = prefetched(fails, range(5))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(OSError, match="disk"):
            next(results)

        import threading

        before = threading.active_count()
        endless = prefetched(lambda s: s, iter(int, 1))
        next(endless)
        assert threading.active_count() == before + 1
        endless.close()
        assert threading.active_count() == before
