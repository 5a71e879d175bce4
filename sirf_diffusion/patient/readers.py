"""Images from files, with their place in the patient: Interfile, NIfTI, DICOM, ECAT7.

Whatever the format, the result is an array with an affine map from its indices to patient coordinates in mm, in the
axes of DICOM and ITK: LPS (x to the left, y to the back, z to the head).
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.frames import choose_frame, split_frame
from ..geometry.exam import HEAD_FIRST_SUPINE, POSITIONS, Position, position_of
from .dicom import read_dicom
from .image import LPS_OF_RAS, SourceImage, UnusableImage, check_affine, check_values, optional, reading, usable
from .resampling import stir_grid

logger = logging.getLogger(__name__)

NIFTI = (".nii", ".nii.gz")
INTERFILE = (".hv", ".h33", ".v.hdr")
#: What NIfTI's codes of qform and sform stand for.
_PLACES = {1: "scanner", 2: "another image", 3: "Talairach's template", 4: "MNI template", 5: "template"}
_MILLIMETRES = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
#: qform and sform further apart than this, at a corner of the image, are two places, mm.
_TWO_PLACES = 1.0
#: ECAT7's codes: images of 8 and 16 bits, how the patient lies, and subheader values in cm.
_ECAT_IMAGES = (6, 7)
_ECAT_POSITIONS = {
    0: ("feet_in", "prone"), 1: ("head_in", "prone"), 2: ("feet_in", "supine"), 3: HEAD_FIRST_SUPINE, 8: None,
}  # fmt: skip
_ECAT_CM = ("pixel_size", "offset")
#: Reasons that an Interfile image cannot be used, by a word of the error.
_REASONS = {"finite": "values that are not finite", "time frames: choose": "several time frames and none is chosen"}
#: No gzip file is more than this many times smaller than what it holds.
_MAX_COMPRESSION = 1100


def read_source(path: str | os.PathLike[str], assumed: str | None = None) -> SourceImage:
    """Read one image, an Interfile header, NIfTI, DICOM or ECAT7 file, or a folder with one DICOM series, and check it.

    ``NAME#2`` is the second time frame of a dynamic image, of any format. ``assumed``: axes of images that do not tell
    theirs, three letters such as ``RAS``. Raises UnusableImage if it cannot be read, is not one three-dimensional
    image, has values that are not finite or all the same, or its place in the patient is unknown or impossible, and
    ImportError if the package that reads this format is not installed.
    """
    named, (path, frame) = path, split_frame(path)
    if not path.exists():
        raise UnusableImage("no such file", str(path))
    begin = b""
    if not path.is_dir():
        if not path.is_file():  # a pipe would be waited for
            raise UnusableImage("no regular file", str(path))
        with path.open("rb") as file:
            begin = file.read(132)
    name = path.name.lower()
    if path.is_dir() or begin[128:] == b"DICM":
        image = read_dicom(path, frame)
    elif name.endswith(NIFTI):
        image = _read_nifti(path, assumed, frame)
    elif begin.startswith(b"MATRIX7"):
        image = _read_ecat(path, frame)
    elif name.endswith(INTERFILE) or b"INTERFILE" in begin.upper():
        image = _read_interfile(named)
    else:
        raise UnusableImage("unknown kind of file: Interfile, NIfTI, DICOM files or folders and ECAT7 are read")
    check_values(image.values)
    check_affine(image.affine, sheared=image.kind == "DICOM")
    return image


def read_labels(path: str | os.PathLike[str]) -> SourceImage:
    """A label image (Interfile, NIfTI, DICOM, ECAT7): whole numbers, 0 for what is in no region.

    Raises
    ------
    ValueError
        If it cannot be read, or its values are no labels.
    """
    image = usable(read_source, path, "the label image ")
    if image.values.min() < 0 or not np.array_equal(image.values, np.round(image.values)):
        raise ValueError(
            f"the label image {path} must hold whole numbers from 0, one for each region: it is no label image"
        )
    return image


def read_frames(path: Path) -> list[SourceImage]:
    """Frames of a dynamic image: a NIfTI file with four axes, a folder of images in the order of their names, or one
    image as `read_source` reads it; checked as there, and on one grid.
    """
    names: list[str | os.PathLike[str]] = [path]
    if path.is_file() and path.name.lower().endswith(NIFTI):
        with reading("no readable NIfTI image"):
            shape = optional("nibabel", "NIfTI").load(path).shape
        if len(shape) > 3 and shape[3] > 1:
            names = [f"{path}#{number}" for number in range(1, shape[3] + 1)]
    elif path.is_dir():
        names = sorted(p for p in path.iterdir() if p.name.lower().endswith(NIFTI + INTERFILE)) or names
    frames = []
    for number, name in enumerate(names, start=1):
        try:
            frames.append(read_source(name))
        except UnusableImage as error:
            if len(names) == 1:
                raise
            raise UnusableImage(f"frame {number}: {error.reason} (NAME#N is one frame)", error.detail) from error
    for frame in frames:
        if not frame.shares_grid(frames[0]):
            raise UnusableImage("its frames are not on one grid")
    return frames


def patient_position(header_file: str | os.PathLike[str]) -> Position | None:
    """Position of the patient as an Interfile header tells it; None if it does not.

    Raises UnusableImage if it tells another one than head or feet first, supine or prone.
    """
    from ..files.interfile import read_exam_info

    try:
        return position_of(read_exam_info(header_file))
    except ValueError as error:
        raise UnusableImage("its patient position cannot be used", str(error)) from error


def _read_interfile(path: str | os.PathLike[str]) -> SourceImage:
    from ..files.interfile import InterfileError, read_image

    try:
        image, geometry = read_image(path)
    except InterfileError as error:
        words = str(error)
        reason = next((r for w, r in _REASONS.items() if w in words), "no readable Interfile image")
        raise UnusableImage(reason, str(error)) from error
    position = patient_position(path)
    affine = stir_grid(geometry, position or HEAD_FIRST_SUPINE).affine
    return SourceImage(image.numpy(), affine, "Interfile", position=position)


def _read_nifti(path: Path, assumed: str | None, frame: int | None) -> SourceImage:
    # Not by SimpleITK: it reads damaged files as zeros, and NaN as 0, without a word.
    nibabel = optional("nibabel", "NIfTI")
    with reading("no readable NIfTI image"):
        image = nibabel.load(path)
        header, dtype = image.header, image.get_data_dtype()
        with nibabel.openers.ImageOpener(path) as file:  # nibabel changes sizes of 0 and less
            sizes = type(header)(file.read(header.template_dtype.itemsize), check=False)["pixdim"][1:4]
        values = _array(image, path, frame) if dtype.kind in "iuf" else None
        places = [(int(header[f"{n}_code"]), getattr(header, f"get_{n}")(), n) for n in ("sform", "qform")]
        millimetres = _MILLIMETRES[header.get_xyzt_units()[0]]
        spacing = [millimetres * float(v) for v in header.get_zooms()[:3]]
    if not (sizes > 0).all():
        raise UnusableImage(f"voxel sizes (pixdim) of {', '.join(f'{v:g}' for v in sizes)}: they must be positive")
    if values is None:
        raise UnusableImage(f"values of type {dtype}: whole or real numbers are expected")
    if values.ndim != 3:
        raise UnusableImage(f"an image of shape {values.shape} instead of one volume")
    scale = np.diag([millimetres] * 3 + [1.0])
    places = [(code, LPS_OF_RAS @ scale @ affine, name) for code, affine, name in places if code > 0]
    if places:
        return SourceImage(values, _scanners_place(places, values.shape, path), "NIfTI")
    if assumed is None:
        raise UnusableImage("its orientation is unknown (no qform, no sform): set it (data build takes --assume RAS)")
    return SourceImage(values, _assumed_affine(assumed, spacing, values.shape), "NIfTI")


def _read_ecat(path: Path, frame: int | None) -> SourceImage:
    """One time frame of ECAT7; its axes are the scanner's, as STIR's are."""
    ecat = optional("nibabel", "ECAT7").ecat
    with path.open("rb") as file:
        # a list of more than 31 frames goes on in another block; nibabel would follow a circle for ever
        if int.from_bytes(file.read(520)[516:], "big") > 2:
            raise UnusableImage("an ECAT7 file with more than 31 time frames: one image is expected")
    with reading("no readable ECAT7 image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frames need not be stored in their order
        image = ecat.EcatImage.from_filename(str(path))
        frames, header = image.get_subheaders(), image.header
        kind, lies = int(header["file_type"]), int(header["patient_orientation"])
        if kind not in _ECAT_IMAGES:
            raise UnusableImage(f"an ECAT7 file of type {kind}: an image is expected")
        # The lowest nine bits number the frame, the others plane, gate, data and bed.
        numbers = {int(n) & 511: row for row, n in enumerate(image.get_mlist()[:, 0]) if n > 0}
        if len(numbers) != len(frames.subheaders):
            raise UnusableImage("an ECAT7 file with several gates or bed positions: one image is expected")
        row = numbers[sorted(numbers)[_chosen(frame, len(numbers))]]
        sub = frames.subheaders[row]
        stored = math.prod(float(sub[f"{a}_dimension"]) for a in "xyz")
        if not 0 < stored <= path.stat().st_size:
            raise UnusableImage(f"no readable ECAT7 image: {stored:g} voxels in {path.stat().st_size} bytes")
        # nibabel mirrors axes by this word, and adds offsets in cm to mm: neither is used
        values = frames.data_from_fileobj(row, orientation="neurological")[::-1, ::-1, ::-1]
        place = {n: np.asarray([float(sub[f"{a}_{n}"]) for a in "xyz"]) for n in _ECAT_CM}
    if lies not in _ECAT_POSITIONS:
        raise UnusableImage(f"its patient position (ECAT7 code {lies}) is none of head or feet first, supine or prone")
    if (position := _ECAT_POSITIONS[lies]) is None:
        logger.warning("%s does not say how the patient lay: taken for head first, supine", path)
    size, offset = (10 * place[name] for name in _ECAT_CM)
    signs = np.asarray(POSITIONS[position or HEAD_FIRST_SUPINE], float)
    affine = np.diag([*(signs * size), 1.0])
    affine[:3, 3] = signs * (offset - size * (np.asarray(values.shape) - 1) / 2)
    return SourceImage(np.asarray(values, np.float32), affine, "ECAT7", position=position)


def _chosen(frame: int | None, number: int) -> int:
    """The index of the time frame to read, from 0."""
    try:
        return choose_frame(frame, number) - 1
    except ValueError as error:
        raise UnusableImage(str(error)) from error


def _array(image: Any, path: Path, frame: int | None) -> NDArray[np.float32]:
    promised = float(np.prod([float(n) for n in image.shape])) * image.get_data_dtype().itemsize
    if promised > _MAX_COMPRESSION * path.stat().st_size:
        raise UnusableImage(f"no readable NIfTI image: {promised:.3g} bytes in a file of {path.stat().st_size}")
    shape = image.shape[:3], [n for n in image.shape[3:] if n != 1]
    if len(shape[1]) > 1:
        raise UnusableImage(f"an image of shape {image.shape} instead of one volume")
    index = _chosen(frame, math.prod(shape[1]))
    place = tuple(index if n != 1 else 0 for n in image.shape[3:])
    return np.asarray(image.dataobj[(..., *place)], dtype=np.float32)


def _scanners_place(
    places: list[tuple[int, NDArray[np.float64], str]], shape: tuple[int, ...], path: Path
) -> NDArray[np.float64]:
    """Of qform and sform the one in the scanner's coordinates; in doubt an error that names both places."""
    (code, affine, name), *other = sorted(places, key=lambda p: (min(p[0], 3), p[2] == "qform"))
    for other_code, other_affine, other_name in other:
        pairs = ((name, code), (other_name, other_code))
        corners = np.asarray(np.meshgrid(*[(0, n - 1) for n in shape], [1])).reshape(4, -1)
        apart = float(np.linalg.norm((affine - other_affine) @ corners, axis=0).max())
        said = " and ".join(f"its {n} (code {c}: {_PLACES.get(c, 'unknown')})" for n, c in pairs)
        if not apart <= _TWO_PLACES and (code != 1 or other_code < 3):
            raise UnusableImage(
                f"{said} put it at two places, {apart:.3g} mm apart: set the code of the one that is not meant to 0"
            )
        if apart > _TWO_PLACES:
            logger.info("%s: %s are %.3g mm apart: the scanner's is taken", path, said, apart)
    if code > 2:
        logger.warning(
            "%s is in the coordinates of a template (%s code %d), not of a scanner: register it to the patient",
            path, name, code,
        )  # fmt: skip
    return affine


def _assumed_affine(letters: str, spacing: list[float], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine of an array whose axes point to these sides of the patient, centred on zero."""
    sides = ["RLAPSI".find(letter) for letter in letters.upper()]
    if sorted(side // 2 for side in sides) != [0, 1, 2]:
        raise ValueError(f"--assume must be three letters, one of L R, one of P A, one of S I, found {letters!r}")
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, side in enumerate(sides):
        affine[side // 2, axis] = (1 - 2 * (side % 2)) * spacing[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return LPS_OF_RAS @ affine
