"""Which bin a pair of detectors belongs to, by STIR's numbers."""

from __future__ import annotations

import numpy as np

from .projdata import ProjDataGeometry


class DetectorPairs:
    """Bins of pairs of detectors, as STIR's ``ProjDataInfoCylindricalNoArcCorr::get_bin_for_det_pair`` finds them.

    Detector ``d`` of ``n`` in a ring lies at ``x = R sin(psi)``, ``y = -R cos(psi)`` with
    ``psi = 2 pi d / n + view_offset``, ring 0 at the smallest z.

    Parameters
    ----------
    geometry
        The layout; not arc-corrected, and its views are the scanner's or mashed by a whole number.
    """

    def __init__(self, geometry: ProjDataGeometry) -> None:
        self._geometry = geometry
        views = geometry.scanner.max_num_views
        if geometry.arc_corrected:
            raise ValueError("counts of detector pairs cannot be binned into arc-corrected data: give another template")
        if views % geometry.num_views:
            raise ValueError(f"the template's {geometry.num_views} views do not divide the scanner's {views}")
        num_rings = geometry.scanner.num_rings
        ring1, ring2 = np.ogrid[:num_rings, :num_rings]
        self._sinogram = np.full((num_rings, num_rings), -1, np.int64)
        for segment, part in zip(geometry.segments, geometry.segment_slices(), strict=True):
            # twice the axial position; planes are centred on the scanner
            twice = (ring1 + ring2 - num_rings + 1) * segment.axial_positions_per_ring + segment.num_axial_positions - 1
            difference = ring2 - ring1
            inside = (difference >= segment.min_ring_difference) & (difference <= segment.max_ring_difference)
            inside &= (twice >= 0) & (twice < 2 * segment.num_axial_positions)
            self._sinogram[inside] = part.start + twice[inside] // 2

    def bins(self, detector1: np.ndarray, ring1: np.ndarray, detector2: np.ndarray, ring2: np.ndarray) -> np.ndarray:
        """Index of each pair's bin in the flattened data ``[sinogram, view, tangential]``, -1 where there is none."""
        geometry, n = self._geometry, self._geometry.scanner.num_detectors_per_ring
        # The pair of view v and tangential position t is d1 = v + floor(t / 2), d2 = v - ceil(t / 2) + n / 2, modulo n.
        t = (detector1 - detector2 + n) % n - n // 2
        view = (detector1 - t // 2) % n
        swapped = view >= n // 2
        view = np.where(swapped, view - n // 2, view) // geometry.view_mashing
        tangential = np.where(swapped, -t, t) + geometry.num_tangential_positions // 2
        sinogram = np.where(swapped, self._sinogram[ring2, ring1], self._sinogram[ring1, ring2])
        inside = (sinogram >= 0) & (tangential >= 0) & (tangential < geometry.num_tangential_positions)
        inside &= detector1 != detector2
        index = (sinogram * geometry.num_views + view) * geometry.num_tangential_positions + tangential
        return np.where(inside, index, -1)
