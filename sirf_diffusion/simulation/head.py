"""Head anatomies: a deformed MNI152 brain inside synthesised CSF, skull, scalp, face and neck.

The MNI152 maps (Fonov et al., NeuroImage 47:S102, 2009, doi:10.1016/S1053-8119(09)70884-5) that nilearn
ships end at the brain's surface. Everything around it is drawn here from distance maps, ellipsoids and
smooth random fields; no two subjects share a shape. Nothing is claimed about real anatomy beyond what
a score model needs to see: layers, cavities and structures of the right sizes with ever different borders.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ..geometry.checks import check_real, check_seed

Array = NDArray[np.float32]

#: Centre of the brain in MNI coordinates (x right, y anterior, z superior), mm.
BRAIN_CENTRE = (0.0, -18.0, 8.0)
#: Height of the phantom's middle plane relative to the brain's centre, mm: room for face and neck below.
CENTRE_HEIGHT = -22.0

#: Deep grey structures: name -> (centre in MNI mm for the right side, radii in mm).
DEEP_GREY = {
    "caudate": ((13.0, 12.0, 10.0), (5.0, 11.0, 9.0)),
    "putamen": ((26.0, 3.0, 2.0), (6.0, 13.0, 9.0)),
    "thalamus": ((11.0, -19.0, 7.0), (7.5, 12.0, 8.0)),
}


@dataclass(frozen=True)
class HeadAnatomy:
    """One subject's tissues as volume fractions, arrays ``[z, y, x]`` float32 in [0, 1].

    Axes: ``x`` to the left, ``y`` to the back (row 0 is the nose), ``z`` to the top of the head. STIR's ``z`` of a
    patient who is scanned head first runs the other way: files of training volumes are turned.

    Attributes
    ----------
    tissues
        Fractions by name; they sum to 1 inside the head and to 0 in air.
    regions
        Masks used for regional uptake: deep grey structures, cerebellum.
    t1, voxel_size
        T1-weighted MR, brain about 1; isotropic voxel size in mm.
    """

    tissues: dict[str, Array]
    regions: dict[str, Array]
    t1: Array
    voxel_size: float
    seed: int

    @property
    def mu(self) -> Array:
        """Attenuation at 511 keV in 1/cm (soft tissue 0.096, bone 0.14, fat 0.09)."""
        bone = self.tissues["skull"] + self.tissues["face_bone"]
        inside = sum(self.tissues.values())
        return (0.096 * inside + (0.14 - 0.096) * bone - 0.006 * self.tissues["scalp"]).astype(np.float32)

    @property
    def labels(self) -> NDArray[np.uint8]:
        """1 plus the position in ``tissues`` of what fills most of a voxel; 0 in air."""
        shares = np.stack([1 - sum(self.tissues.values()), *self.tissues.values()])
        return np.argmax(shares, axis=0).astype(np.uint8)

    @property
    def brain(self) -> Array:
        """Fraction of grey and white matter."""
        return self.tissues["grey"] + self.tissues["white"]


def simulate_anatomy(seed: int, shape: tuple[int, int, int] = (112, 128, 112), voxel_size: float = 2.0) -> HeadAnatomy:
    """Draw one subject; the default covers 224 x 256 x 224 mm ``(z, y, x)``.

    ``seed``, the subject's number, is the only source of randomness; ``voxel_size`` in mm, from 1 to 4.
    """
    check_seed("seed", seed)
    check_real("voxel_size (mm)", voxel_size, 1.0, 4.0)
    rng = np.random.default_rng([20, seed])
    x, y, z = _patient_axes(shape, voxel_size)
    mni, size = _warp(rng, x, y, z, voxel_size)
    grey, white, t1 = (_sample(volume, mni) for volume in _templates())

    noise = [smooth_field(rng, shape, width / voxel_size) for width in (10.0, 10.0)]
    parenchyma = _soft(grey + white - 0.42 + 0.04 * noise[1], 0.07)
    white_share = _soft(white - grey + 0.06 * noise[0] + 0.06 * rng.standard_normal(), 0.10)
    hull, distance = _hull(parenchyma > 0.5, voxel_size)
    tissues = {"grey": parenchyma * (1 - white_share), "white": parenchyma * white_share}

    layers, head = _head_layers(rng, distance, x, y, z, size, voxel_size)
    outside_brain = np.clip(1 - parenchyma, 0, 1)
    tissues["csf"] = outside_brain * np.maximum(hull, layers["csf"])
    rest = np.clip(outside_brain - tissues["csf"], 0, 1)
    for name in ("skull", "scalp"):
        tissues[name] = rest * layers[name]
        rest = np.clip(rest - tissues[name], 0, 1)
    rest = rest * head
    tissues.update(_face_and_neck(rng, rest, x, y, z, size, voxel_size))

    regions = {name: _paired_ellipsoid(mni, *spec) for name, spec in DEEP_GREY.items()}
    regions["cerebellum"] = _soft(-mni[2] - 14 - 0.35 * (mni[1] + 40), 4.0) * _soft(-mni[1] - 38, 4.0)
    deep = np.clip(sum(regions[name] for name in DEEP_GREY), 0, 1) * parenchyma
    moved = deep * tissues["white"] * 0.8
    tissues["grey"], tissues["white"] = tissues["grey"] + moved, tissues["white"] - moved
    tissues = {name: values.astype(np.float32) for name, values in tissues.items()}
    return HeadAnatomy(tissues, regions, _mr(rng, tissues, t1, parenchyma, shape, voxel_size), voxel_size, seed)


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], width: float) -> Array:
    """A Gaussian random field of zero mean and unit variance; ``width`` is the smoothing SD in voxels."""
    from scipy.ndimage import gaussian_filter

    step = max(1, int(width / 2))
    coarse = rng.standard_normal([int(np.ceil(n / step)) + 2 for n in shape]).astype(np.float32)
    coarse = gaussian_filter(coarse, width / step, mode="wrap")
    coarse /= coarse.std()
    # In double precision, which the rounding of the coordinates needs; several times as fast as SciPy's zoom.
    values = torch.from_numpy(coarse).double()[None, None]
    fine = torch.nn.functional.interpolate(values, scale_factor=step, mode="trilinear", align_corners=True)[0, 0]
    return fine[tuple(slice(0, n) for n in shape)].float().numpy()


def _patient_axes(shape: tuple[int, int, int], voxel_size: float) -> tuple[Array, Array, Array]:
    """Patient coordinates (x right, y anterior, z superior; mm, brain centre at 0) of the voxels, broadcastable."""
    nz, ny, nx = shape
    z = (np.arange(nz) - (nz - 1) / 2) * voxel_size + CENTRE_HEIGHT
    y = -(np.arange(ny) - ny // 2) * voxel_size
    x = -(np.arange(nx) - nx // 2) * voxel_size
    return tuple(axis.astype(np.float32) for axis in (x[None, None, :], y[None, :, None], z[:, None, None]))


def _warp(rng: np.random.Generator, x: Array, y: Array, z: Array, voxel_size: float) -> tuple[list[Array], Array]:
    """MNI coordinates (x, y, z) at each voxel: rotation, scaling, shear and two scales of smooth displacement."""
    from scipy.spatial.transform import Rotation

    shape = (z.size, y.size, x.size)
    size = rng.uniform(0.86, 1.12) * rng.uniform(0.94, 1.06, 3)
    rotation = Rotation.from_euler("xyz", rng.normal(0, [8.0, 6.0, 8.0]), degrees=True).as_matrix()
    matrix = rotation @ np.diag(1 / size) @ (np.eye(3) + rng.normal(0, 0.03, (3, 3)))
    shift = rng.normal(0, [4.0, 5.0, 4.0])
    points = [np.broadcast_to(axis, shape) - offset for axis, offset in zip((x, y, z), shift, strict=True)]
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    coordinates = []
    for row in range(3):
        warped = sum(matrix[row, col] * points[col] for col in range(3)) + BRAIN_CENTRE[row]
        warped = warped + rng.uniform(2.0, 6.0) * smooth_field(rng, shape, 22.0 / voxel_size)
        warped = warped + rng.uniform(0.5, 1.5) * smooth_field(rng, shape, 10.0 / voxel_size)
        coordinates.append(warped.astype(np.float32) * np.float32(mirror if row == 0 else 1.0))
    return coordinates, size


@lru_cache(maxsize=1)
def _templates() -> tuple[tuple[Array, NDArray[np.float64]], ...]:
    """Grey matter, white matter and T1 of the MNI152 average at 2 mm, each with the inverse of its affine."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise ImportError('simulated heads need nilearn: pip install "sirf-diffusion[train]"') from error
    load = (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template, datasets.load_mni152_template)
    images = [template(resolution=1) for template in load]
    # Every second voxel: nilearn's own resampling to 2 mm gives the same values in 20 times as long.
    halved = np.diag([2.0, 2.0, 2.0, 1.0])
    return tuple((np.asarray(i.dataobj, np.float32)[::2, ::2, ::2], np.linalg.inv(i.affine @ halved)) for i in images)


def _sample(template: tuple[Array, NDArray[np.float64]], mni: list[Array]) -> Array:
    """Trilinear values of a template at MNI coordinates, zero outside."""
    from scipy.ndimage import map_coordinates

    volume, to_index = template
    index = [to_index[row, row] * mni[row] + to_index[row, 3] for row in range(3)]
    return map_coordinates(volume, index, order=1, mode="constant", output=np.float32)


def _soft(field: Array, width: float) -> Array:
    """A smooth step: 0 below, 1 above zero, over about ``4 * width``."""
    return (1 / (1 + np.exp(-np.clip(field / width, -30, 30)))).astype(np.float32)


def _paired_ellipsoid(mni: list[Array], centre: tuple[float, ...], radii: tuple[float, ...]) -> Array:
    """An ellipsoid on the right and its mirror image on the left, soft-edged."""
    return _soft(_ellipsoid(np.abs(mni[0]), mni[1], mni[2], centre, radii), 0.08)


def _hull(brain: NDArray[np.bool_], voxel_size: float) -> tuple[Array, Array]:
    """The brain closed over its sulci and ventricles (radius 9 mm), and the signed distance from it in mm."""
    from scipy.ndimage import distance_transform_edt as edt
    from scipy.ndimage import label

    labels, _ = label(brain)
    counts = np.bincount(labels.ravel())
    brain = labels == 1 + int(np.argmax(counts[1:]))
    grown = edt(~brain, sampling=voxel_size) <= 9.0
    closed = (edt(grown, sampling=voxel_size) > 9.0) | brain
    distance = edt(~closed, sampling=voxel_size) - edt(closed, sampling=voxel_size)
    distance = distance.astype(np.float32)
    return _soft(-distance, 0.5 * voxel_size), distance


def _head_layers(
    rng: np.random.Generator, distance: Array, x: Array, y: Array, z: Array, size: Array, voxel_size: float
) -> tuple[dict[str, Array], Array]:
    """CSF, skull and scalp shells of varying thickness, and the fraction of each voxel inside the head."""
    shape = distance.shape

    def thickness(low: float, high: float, variation: float) -> Array:
        return rng.uniform(low, high) * np.exp(variation * smooth_field(rng, shape, 14.0 / voxel_size))

    csf, skull, scalp = thickness(1.5, 4.5, 0.3), thickness(4.0, 9.0, 0.25), thickness(3.0, 9.0, 0.3)
    edge = 0.4 * voxel_size
    in_csf = _soft(csf - distance, edge)
    in_skull = _soft(csf + skull - distance, edge)
    in_cap = _soft(csf + skull + scalp - distance, edge)

    sx, sy, sz = size
    bumps = 3.0 * smooth_field(rng, shape, 12.0 / voxel_size)
    face = _ellipsoid(x, y, z, (0, 42 * sy, -72 * sz), (62 * sx, 58 * sy, rng.uniform(58, 78) * sz))
    jaw = _ellipsoid(x, y, z, (0, 30 * sy, -110 * sz), (50 * sx, 62 * sy, 45 * sz))
    neck_radius = np.sqrt((x / (rng.uniform(48, 66) * sx)) ** 2 + ((y + 22 * sy) / (rng.uniform(50, 68) * sy)) ** 2)
    neck = np.where(z < -35 * sz, (1 - neck_radius) * 55, -10.0)
    lower = np.maximum(np.maximum(face, jaw) * 55, neck) + bumps
    head = np.maximum(in_cap, _soft(lower, edge))

    # the base of the skull is pierced and ends: shells fade out towards face and neck
    base = _soft(z + rng.uniform(48, 60) * sz + 0.25 * y, 4.0)
    shells = {"csf": in_csf, "skull": in_skull * base, "scalp": in_cap * base}
    return shells, head


def _ellipsoid(x: Array, y: Array, z: Array, centre: tuple[float, ...], radii: tuple[float, ...]) -> Array:
    """Positive inside, 1 at the centre, 0 on the surface."""
    return 1 - np.sqrt(
        ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 + ((z - centre[2]) / radii[2]) ** 2
    )


def _face_and_neck(
    rng: np.random.Generator, rest: Array, x: Array, y: Array, z: Array, size: Array, voxel_size: float
) -> dict[str, Array]:
    """Share what is neither brain nor cap among muscle, fat, bone, glands, mucosa and air."""
    shape = rest.shape
    sx, sy, sz = size

    def random_part(width: float, threshold: float) -> Array:
        return _soft(smooth_field(rng, shape, width / voxel_size) - threshold, 0.12)

    def organ(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
        jitter = rng.normal(0, 2.5, 3)
        scale = rng.uniform(0.8, 1.25)
        moved = (centre[0] * sx + jitter[0], centre[1] * sy + jitter[1], centre[2] * sz + jitter[2])
        return _soft(_ellipsoid(np.abs(x), y, z, moved, tuple(scale * r for r in radii)) * 10, 0.8)

    spine = _soft(11 - np.sqrt(x**2 + (y + 32 * sy) ** 2) + 0 * z, 1.0) * _soft(-z - 62 * sz, 2.0)
    parts = {
        "air": np.maximum.reduce(
            [organ((0, 55, -62), (9, 26, 20)), organ((20, 52, -68), (10, 13, 14)), organ((0, 12, -110), (8, 9, 60))]
        )
        * random_part(8.0, -0.6),
        "eyes": organ((32, 70, -38), (12, 12, 12)),
        "glands": np.maximum(organ((52, 18, -72), (9, 15, 20)), organ((24, 28, -102), (9, 12, 9))),
        "face_bone": np.maximum(spine, random_part(7.0, 1.1)),
        "mucosa": np.maximum(organ((0, 40, -82), (18, 22, 9)), random_part(5.0, 1.5)),
        "fat": random_part(8.0, 0.4),
    }
    tissues = {}
    for name, part in parts.items():
        share = rest * part
        rest = rest - share
        if name != "air":
            tissues[name] = share
    tissues["muscle"] = rest
    return tissues


def _mr(
    rng: np.random.Generator, tissues: dict[str, Array], t1: Array, parenchyma: Array, shape: tuple, voxel_size: float
) -> Array:
    """T1-weighted contrast: the template's texture in the brain, drawn intensities elsewhere, a bias field, noise."""
    level = {"grey": 0.72, "white": 1.0, "csf": 0.22, "skull": 0.12, "scalp": 1.1, "eyes": 0.3, "glands": 0.7}
    level |= {"face_bone": 0.2, "mucosa": 0.55, "fat": 1.15, "muscle": 0.5}
    image = sum(rng.uniform(0.9, 1.1) * level[name] * fraction for name, fraction in tissues.items())
    texture = np.clip(t1 / 0.75, 0, 1.4)
    image = np.where(parenchyma > 0.5, 0.7 * image + 0.3 * texture, image)
    image = image * np.exp(0.08 * smooth_field(rng, shape, 40.0 / voxel_size))
    return np.abs(image + 0.02 * rng.standard_normal(shape)).astype(np.float32)
