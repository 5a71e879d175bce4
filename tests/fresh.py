"""Processes that start fast, PyTorch being there already, and that come from one that never computed.

Neither OpenMP's threads nor those of automatic differentiation survive a fork: a child of the tests' own process hangs.
"""

import multiprocessing

FRESH = multiprocessing.get_context("forkserver")
# Modules of this folder are not found by all versions of Python's server.
FRESH.set_forkserver_preload(
    [
        "sirf_diffusion.cli.recon", "sirf_diffusion.study.reconstruction", "sirf_diffusion.reconstructors.methods",
        "sirf_diffusion.training.trainer", "sirf_diffusion.training.data.volume_file", "h5py", "pytest",
        "matplotlib.backends.backend_agg", "monai.networks.nets.diffusion_model_unet", "safetensors.torch",
        "torch._dynamo", "torch.distributed", "torch.nn.parallel",
    ]
)  # fmt: skip
