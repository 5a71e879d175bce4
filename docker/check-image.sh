#!/bin/bash
# check-image.sh: the commands of the image do what they are for. Runs when the image is built, and in the tests.
set -euo pipefail

# SIRF's environment; the image's notebook server sets it by itself.
settings=/opt/conda/etc/conda/activate.d/env_sirf.sh
# shellcheck disable=SC1090
[ ! -r "$settings" ] || { set +u; source "$settings"; set -u; }

sirf-diffusion doctor
python -c "import stir_priors; stir_priors.load()"
par=$(python -c "import pathlib, stir_priors; print(pathlib.Path(stir_priors.__file__).parent / 'par')")
# A post-filter needs no data to be checked; its name is compared with those that the compiled programs know.
stir-diffusion check "$par/postfilter_diffusion_denoiser.par"
