"""The bundled slice and volume as objective functions of STIR's Python module."""

from pathlib import Path

import numpy as np

import sirf_diffusion.data

FOLDER = Path(sirf_diffusion.data.__file__).parent
NUM_RAYS = 10


def stir_objective(
    example="brain2d", *, num_subsets=2, additive=True, normalisation=True, max_segment=None, prior=None, set_up=True
):
    """The example's likelihood, and its true image as STIR's image."""
    import stir

    folder = FOLDER / example
    objective = stir.PoissonLogLikelihoodWithLinearModelForMeanAndProjData3DFloat()
    data = stir.ProjData.read_from_file(str(folder / "prompts.hs"))
    objective.set_proj_data_sptr(data)
    if additive:
        objective.set_additive_proj_data_sptr(stir.ProjData.read_from_file(str(folder / "additive.hs")))
    if normalisation:
        norm = stir.ProjDataInMemory(stir.ProjData.read_from_file(str(folder / "multiplicative.hs")))
        norm.fill(reciprocal(norm.as_array()).flat)
        objective.set_normalisation_sptr(stir.BinNormalisationFromProjData(norm))
    if max_segment is not None:
        objective.set_max_segment_num_to_process(max_segment)
    matrix = stir.ProjMatrixByBinUsingRayTracing()
    matrix.set_num_tangential_LORs(NUM_RAYS)
    objective.set_projector_pair_sptr(stir.ProjectorByBinPairUsingProjMatrixByBin(matrix))
    if prior is not None:
        objective.set_prior_sptr(prior)
    truth = stir.FloatVoxelsOnCartesianGrid.read_from_file(str(folder / "truth.hv"))
    objective.set_num_subsets(num_subsets)
    if set_up:
        assert objective.set_up(truth).succeeded()
    return objective, truth


def reciprocal(factors: np.ndarray) -> np.ndarray:
    """STIR's normalisation factors of multiplicative ones: it divides by them, and a dead bin has a large one."""
    return np.where(factors > 0, 1 / np.maximum(factors, 1e-30), 1e30).astype(np.float32)
