"""Which images are taken in, and whose they are: a table, or the names in a folder (BIDS, DICOM)."""

from __future__ import annotations

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...files.documents import parse_json, read_json, read_text
from ...files.frames import split_frame
from ...patient.dicom import read_tags
from ...patient.image import UnusableImage
from ...patient.readers import INTERFILE, NIFTI
from .volumes import SPLITS

COLUMNS = ("subject", "image", "mr", "ct", "split")
#: Largest table or sidecar that is read, in bytes.
_LARGEST = 20_000_000
_LONGEST = 4096
#: Last words of the names of files that are no emission images: suffixes of BIDS, and what people call such files.
_OTHER_KINDS = re.compile(
    r"t1|t2|t1w|t2w|t2starw|flair|pdw|mr|mri|mprage|ct|mask|seg|[ad]?seg|probseg|labels?|defacemask|bold|sbref|dwi|epi|"
    r"asl|cbv|mu|u?-?map|mu-?map|ac-?map|atten\w*|phase\w*|magnitude\w*|m0scan|unit1|angio|xfm|ct-?ac|mr-?ac|brainmask"
)
#: The same for any word of a name that does not say PET.
_OTHER_WORDS = re.compile(r"t1w?|t2w|mprage|flair|(brain)?mask|aseg|aparc|mni152\w*|ctac|mrac|u-?map|mumap")
#: An image in a subject's folder, or in one of a session or a modality in that.
_BIDS_SUBJECT = re.compile(r"(?:^|[/\\])(sub-[0-9A-Za-z]+)(?:[/\\](?:ses-[^/\\]+|pet|anat|ct))*[/\\][^/\\]+$")
_BIDS_FOLDERS = {"anat", "func", "dwi", "fmap", "perf", "meg", "eeg", "ieeg", "beh", "micr", "nirs", "motion", "mrs"}
_UNCORRECTED = "PET without attenuation correction"
#: Folders of a BIDS data set that hold its images again, processed or as they came.
_NOT_RAW = ("derivatives", "sourcedata")


@dataclass(frozen=True)
class ImageInput:
    """One image file or DICOM folder, and what is known of it.

    ``subject`` and ``split`` are empty if the file itself or chance has to tell. ``anatomy`` is the anatomical image in
    the same space, of ``modality`` ``MR`` or ``CT``. ``left_out`` says why it is not taken in, without names or paths.
    """

    image: Path
    subject: str = ""
    anatomy: Path | None = None
    modality: str = ""
    split: str = ""
    left_out: str = ""


def find_images(paths: Sequence[Path]) -> list[ImageInput]:
    """Images that names of files and folders mean, with the reason for those that are no emission images.

    A folder stands for the Interfile, NIfTI and ECAT7 files and the DICOM series (one per folder) under it. Left
    out are files whose name, BIDS folder or sidecar tells another kind (``T1w``, ``mask``, ...), series of another
    modality than PT, derivatives and source data of a BIDS data set, and files that tell nothing in a folder where
    others are PET by name (``*_pet``) or modality. What does not exist is kept, to be reported.
    """
    found = []
    for path in paths:
        inside = images_under(path)
        kinds = [_kind(image) for image in inside]
        whose = re.fullmatch(r"sub-[0-9A-Za-z]+", path.resolve().name) if path.is_dir() else None
        for image, kind in zip(inside, kinds, strict=True):
            part = image.relative_to(path).parts[0] if image != path else ""
            reason = "" if kind in ("", "PET") else f"{kind}, not PET"
            if kind == _UNCORRECTED:
                reason = "" if image == path else f"{kind}: give it by itself if it is meant"
            if part in _NOT_RAW and (path / "dataset_description.json").is_file():
                reason = f"in {part} of a BIDS data set: give that folder by itself"
            if not kind and not image.is_dir() and {"PET", _UNCORRECTED} & set(kinds):
                reason = "nothing says that it is PET, as others of its folder do: name it *_pet, or give it by itself"
            found.append(ImageInput(image, whose[0] if whose else "", left_out=reason))
    return found


def images_under(path: Path) -> list[Path]:
    """Images of a folder: files, and folders with DICOM files in them; the path itself if it is no folder of images."""
    if not path.is_dir():
        return [path]
    images = set()
    for file in path.rglob("*"):
        if file.is_file() and not file.name.startswith("."):
            if file.name.lower().endswith(NIFTI + INTERFILE) or _begin(file).startswith(b"MATRIX7"):
                images.add(file)
            elif _is_dicom(file):
                images.add(file.parent)
    return sorted(images) or [path]


def read_manifest(path: Path) -> list[ImageInput]:
    """Read a table with a column ``image``, and any of ``subject``, ``mr``, ``ct``, ``split``.

    CSV (separated by commas, semicolons or tabs) with a line of names first, or a JSON list of objects. Names of files
    are relative to the table. A ``participants.tsv`` (BIDS: a column ``participant_id``, any others) stands for the
    images in its subjects' folders, see `find_images`.
    """
    inputs: list[ImageInput] = []
    for number, row in enumerate(_rows(path), start=1):
        where = f"{path}, row {number}"
        row = {name: str(value).strip() for name, value in row.items() if value is not None}
        split = row.get("split", "").replace("n/a", "")
        if split and split not in SPLITS:
            raise ValueError(f"{where}: split must be one of {', '.join(SPLITS)}, or empty, found {split!r}")
        if "participant_id" in row:
            inputs += _images_of(path.parent, row["participant_id"], split, where)
            continue
        unknown = sorted(set(row) - set(COLUMNS))
        if unknown:
            raise ValueError(f"{where}: unknown column {unknown[0]!r}; known are {', '.join(COLUMNS)}")
        if not row.get("image"):
            raise ValueError(f"{where}: no 'image'")
        if any("\0" in value or len(value) > _LONGEST for value in row.values()):
            raise ValueError(f"{where}: a value of more than {_LONGEST} characters, or with a null character")
        if row.get("mr") and row.get("ct"):
            raise ValueError(f"{where}: both 'mr' and 'ct'; one anatomical image per volume")
        anatomy = row.get("mr") or row.get("ct")
        modality = ("MR" if row.get("mr") else "CT") if anatomy else ""
        beside = path.parent / anatomy if anatomy else None
        inputs.append(ImageInput(path.parent / row["image"], row.get("subject", ""), beside, modality, split))
    _check_splits(inputs, path)
    return inputs


def paired(images: Sequence[ImageInput], anatomies: Sequence[Path], modality: str) -> list[ImageInput]:
    """Images and, if any, as many anatomical images in the same order."""
    if not anatomies:
        return list(images)
    taken = sum(not image.left_out for image in images)
    if len(anatomies) != taken:
        raise ValueError(
            f"{taken} images and {len(anatomies)} {modality} images: give one for each image, in the same order, "
            "or a --manifest"
        )
    remaining = iter(anatomies)
    return [i if i.left_out else replace(i, anatomy=next(remaining), modality=modality) for i in images]


def subject_of(source: ImageInput, patient: str = "") -> str:
    """Whose it is: as given; else ``sub-...`` in its path (BIDS); else the patient identifier; else its path."""
    path = split_frame(source.image)[0].resolve()
    found = re.match(r"(sub-[0-9A-Za-z]+)_", path.name) or _BIDS_SUBJECT.search(str(path))
    # What was typed may have it farther up; folders above that are not looked at, since they hold all subjects.
    found = found or re.search(r".*(?:^|[/_\\])(sub-[0-9A-Za-z]+)", str(source.image))
    if source.subject or found:
        return source.subject or found[1]
    return f"patient {patient}" if patient else f"image {path}"


def assign_splits(
    subjects: Sequence[str], fractions: Sequence[float], seed: int, fixed: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Give every subject one split, at random, with numbers as near to the fractions as they get.

    Fractions for training, validation and test need not sum to 1; a positive one gets at least one subject as long as
    there are as many subjects as positive fractions. Subjects in ``fixed`` keep their split; the order does not matter.

    Examples
    --------
    >>> sorted(assign_splits(["a", "b", "c", "d", "a"], (0.5, 0.25, 0.25), seed=0).values())
    ['test', 'train', 'train', 'validation']
    """
    shares = check_fractions(fractions)
    splits = dict(fixed or {})
    everyone = sorted(set(subjects))
    exact = shares / shares.sum() * len(everyone)
    goal = np.floor(exact).astype(int)
    for k in np.argsort(goal - exact, kind="stable")[: len(everyone) - goal.sum()]:
        goal[k] += 1
    for k in np.flatnonzero((shares > 0) & (goal == 0)):
        if goal.max() > 1:
            goal[int(np.argmax(goal))] -= 1
            goal[k] += 1
    have = Counter(splits[s] for s in everyone if s in splits)
    free = [s for s in everyone if s not in splits]
    order = np.random.default_rng([25, seed]).permutation(len(free))
    room = [k for k in range(3) for _ in range(max(0, goal[k] - have[SPLITS[k]]))]
    for place, index in enumerate(order):
        splits[free[index]] = SPLITS[room[place] if place < len(room) else int(np.argmax(shares))]
    return {s: splits[s] for s in everyone}


def check_fractions(fractions: Sequence[float]) -> np.ndarray:
    """Shares for training, validation and test, if they are such."""
    shares = np.asarray(fractions, float)
    if shares.shape != (3,) or not np.isfinite(shares).all() or shares.min() < 0 or shares.sum() <= 0:
        raise ValueError(f"fractions must be three numbers, none negative and not all zero, found {tuple(fractions)}")
    return shares


def _kind(path: Path) -> str:
    """``PET`` if name, sidecar or modality say so, or `_UNCORRECTED`; empty if they say nothing, else what they say."""
    path = split_frame(path)[0]
    if path.is_dir() or (path.is_file() and _is_dicom(path)):
        modality = _modality(path)
        return {"PT": "PET", "": "", _UNCORRECTED: modality}.get(modality, f"DICOM of modality {modality}")
    stem = re.sub(r"(\.nii|\.v)?\.\w+$", "", path.name, flags=re.IGNORECASE)
    sidecar, told = path.with_name(f"{stem}.json"), {}
    if sidecar.is_file():
        with contextlib.suppress(ValueError):
            told = read_json(sidecar, most=_LARGEST)
    modality, suffix = told.get("Modality", ""), stem.rsplit("_", 1)[-1]
    if modality in ("MR", "CT", "NM", "US", "SEG"):
        return f"an image of modality {modality} by its sidecar"
    if modality in ("PT", "PET") or suffix.lower() == "pet":
        attenuation = str(told.get("AttenuationCorrection", "")).strip().lower()
        return _UNCORRECTED if attenuation in ("no", "none") or re.search(r"_rec-nac(stat|dyn)", stem) else "PET"
    if _OTHER_KINDS.fullmatch(suffix.lower()):
        return f"{suffix} by its name"
    words = re.split(r"[_+.\s-]+", stem.lower())
    if not {"pet", "suv", "suvr"} & set(words) and (other := next(filter(_OTHER_WORDS.fullmatch, words), None)):
        return f"{other} by its name"
    if stem.startswith("sub-") and "_" in stem:
        return "a BIDS name with another suffix than pet"
    return "in a BIDS folder of another kind" if path.parent.name in _BIDS_FOLDERS else ""


def _is_dicom(file: Path) -> bool:
    return file.suffix.lower() in (".dcm", ".ima") or _begin(file)[128:] == b"DICM"


def _begin(file: Path) -> bytes:
    with file.open("rb") as content:
        return content.read(132)


def _modality(path: Path) -> str:
    """Modality of a DICOM series; empty if that cannot be told, which reading it will explain."""
    try:
        header = read_tags(path)[0][1]
        corrections = str(header.get("CorrectedImage") or "")
    except (UnusableImage, ImportError):
        return ""
    if header.get("Modality") == "PT" and corrections and "ATTN" not in corrections:
        return _UNCORRECTED
    return re.sub(r"\W", "", str(header.get("Modality", "")))[:16]


def _images_of(root: Path, participant: str, split: str, where: str) -> list[ImageInput]:
    """Images in the BIDS folder of a participant."""
    if not re.fullmatch(r"[0-9A-Za-z-]{1,64}", participant):
        raise ValueError(f"{where}: participant_id must be letters and digits as in sub-01, found {participant!r}")
    subject = participant if participant.startswith("sub-") else f"sub-{participant}"
    folder = root / subject
    if folder.is_dir():
        found = [replace(i, subject=subject, split=split) for i in find_images([folder]) if i.image != folder]
        if any(not image.left_out for image in found):
            return found
    return [ImageInput(folder, subject, split=split, left_out="no image *_pet of this participant")]


def _rows(path: Path) -> list[dict[str, str]]:
    text = read_text(path, _LARGEST)
    if path.suffix.lower() == ".json":
        try:
            rows = parse_json(text, list)
        except ValueError as error:
            raise ValueError(f"{path} is no table: {error}") from error
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path} must be a list of objects, each with a key 'image'")
    else:
        lines, rows = [line for line in text.splitlines() if line.strip()], []
        first = lines[0] if lines else ""
        try:
            for number, row in enumerate(csv.DictReader(lines, delimiter=max(",;\t", key=first.count)), 1):
                if None in row:
                    raise ValueError(f"{path}, row {number}: more values than columns")
                rows.append({name.strip().lower(): value for name, value in row.items()})
        except csv.Error as error:
            raise ValueError(f"{path} is no table: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows: expected the columns {', '.join(COLUMNS)}, of which 'image' is needed")
    return rows


def _check_splits(inputs: list[ImageInput], path: Path) -> None:
    splits: dict[str, str] = {}
    for source in inputs:
        subject = subject_of(source)
        if source.split and splits.setdefault(subject, source.split) != source.split:
            raise ValueError(
                f"{path}: subject {subject!r} is in both {splits[subject]} and {source.split}; a model "
                "is not to be judged on subjects that it was trained on"
            )
