"""Image headers of other programs, translated to STIR's keys: Siemens, and Interfile 3.3 of GATE or (X)MedCon."""

from __future__ import annotations

import os

from .header import Header

_SIEMENS_KEYS = {
    "scale factor (mm/pixel)": "scaling factor (mm/pixel)",
    "image data byte order": "imagedata byte order",
}
_FLOATS = {"short float": "4", "long float": "8"}
_ONE_OF = (
    "number of time frames", "number of energy windows", "number of time slots", "number of time windows",
    "number of detector heads", "number of frame groups", "number of image data types",
)  # fmt: skip
#: Words for axes as STIR has them.
_AXES = (
    ("slice orientation", 1, ("transverse", "transaxial", "unknown")),
    ("matrix initial element", 1, ("right", "unknown")),
    ("matrix initial element", 2, ("anterior", "unknown")),
)
_SLICE_SPACINGS = (
    "centre-centre slice separation (pixels)",
    "center-center slice separation (pixels)",
    "slice thickness (pixels)",
)
_BLOCK_BYTES = 2048


def image_header(path: str | os.PathLike[str]) -> Header:
    """Header of an image in STIR's keys, whoever wrote it."""
    header = Header(path, stir=False)
    if "scale factor (mm/pixel)" in header and "scaling factor (mm/pixel)" not in header:
        for theirs, ours in _SIEMENS_KEYS.items():
            header.rename(theirs, ours)
    elif "number of dimensions" not in header and ("number of slices" in header or "total number of images" in header):
        _from_interfile_33(header)
    else:
        return Header(path)
    for key, index, usual in _AXES:
        if (told := header.text(key, usual[0], index)).lower() not in usual:
            raise header.unsupported(f"'{key} [{index}] := {told}'", f"an image with {usual[0]}")
    for key in _ONE_OF:
        if header.integer(key, 1) > 1:
            raise header.unsupported(f"'{key} := {header.text(key)}'", "the program that wrote it to extract one image")
    return header


def _from_interfile_33(header: Header) -> None:
    # (X)MedCon writes the number of projections of reconstructed images too
    status = header.text("process status", "acquired" if "number of projections" in header else "").lower()
    if status == "acquired":
        raise header.unsupported("an acquisition in Interfile 3.3 ('number of projections')", "STIR")
    sizes = {header.integer(k, minimum=1) for k in ("number of slices", "total number of images") if k in header}
    if len(sizes) != 1:
        raise header.error(f"keys 'number of slices' and 'total number of images' differ ({sizes}): several images?")
    header.put("number of dimensions", "3")
    header.put("matrix size", str(sizes.pop()), 3)
    if (number_format := header.text("number format", "").lower()) in _FLOATS:
        header.put("number format", "float")
        header.put("number of bytes per pixel", header.text("number of bytes per pixel", _FLOATS[number_format]))
    if "data starting block" in header and "data offset in bytes" not in header:
        header.put("data offset in bytes", str(_BLOCK_BYTES * header.integer("data starting block", minimum=0)))
    if header.text("scaling factor (mm/pixel)", "", index=3):
        return
    name = next((name for name in _SLICE_SPACINGS if name in header), _SLICE_SPACINGS[-1])
    spacing, unit = header.number(name), "mm"
    if "medcon" in header.text("conversion program", "").lower():
        pixels = [header.number("scaling factor (mm/pixel)", index=k) for k in (1, 2)]
        spacing, unit = spacing * sum(pixels) / 2, "pixels"
    elif spacing == 1 and abs(header.number("scaling factor (mm/pixel)") - 1) > 0.01:
        advice = "add the key 'scaling factor (mm/pixel) [3]', which is in mm"
        raise header.error(f"key '{name} := {header.text(name)}' may mean one pixel, or 1 mm: {advice}")
    header.warn(f"'{name} := {header.text(name)}' is taken as {unit}")
    header.put("scaling factor (mm/pixel)", repr(spacing), 3)
