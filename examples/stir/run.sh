#!/bin/sh
# Simulates one slice of a PET scanner with STIR's own tools, and reconstructs it with every sample parameter file.
#   examples/stir/run.sh [FOLDER]        (results/stir unless given)
# Needs STIR's programs on the PATH and, once, `stir-diffusion build`. Takes less than two minutes on one core.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=${1:-results/stir}

for program in forward_project calculate_attenuation_coefficients stir_math poisson_noise; do
    command -v "$program" >/dev/null || {
        echo "$0: STIR's $program is not on the PATH; add the bin folder of STIR to it" >&2
        exit 2
    }
done
command -v stir-diffusion >/dev/null || {
    echo "$0: stir-diffusion is not on the PATH; activate the environment that sirf-diffusion is installed in" >&2
    exit 2
}

mkdir -p "$out"
cp "$here"/../../stir_priors/par/* "$here"/*.par "$out"
example=$here/../../sirf_diffusion/data/brain2d
cp "$example"/truth.* "$example"/mu.* "$example"/prompts.s "$out"
cp "$example"/prompts.hs "$out"/template.hs # the scanner and the size of the sinogram
cd "$out"

# say COMMAND...: run it with its messages in a file, and show the file only if the command fails
say() {
    echo "+ $*"
    "$@" >messages.log 2>&1 || {
        code=$?
        cat messages.log >&2
        exit $code
    }
}

echo "--- data"
say forward_project line_integrals.hs truth.hv template.hs projector.par
say calculate_attenuation_coefficients --ACF acf.hs mu.hv template.hs projector.par
# Normalisation: attenuation, and 0.08 counts per unit of the line integrals. About 140000 true coincidences.
say stir_math -s --including-first --times-scalar 12.5 norm.hs acf.hs
say stir_math -s --mult --power -1 trues.hs line_integrals.hs norm.hs
# Background: 1.4 counts in each bin, 30 % of the prompts. STIR's additive sinogram is that times the normalisation.
say stir_math -s --including-first --times-scalar 0 --add-scalar 1.4 background.hs trues.hs
say stir_math -s --mult additive.hs background.hs norm.hs
say stir_math -s mean.hs trues.hs background.hs
say poisson_noise prompts mean.hs 1 1
say stir_math --including-first --times-scalar 0 --add-scalar 1 uniform.hv truth.hv

echo "--- reconstructions"
say stir-diffusion run OSMAPOSL osem.par
cp osem_9.hv osem.hv
say stir-diffusion run OSMAPOSL OSMAPOSL_diffusion_score.par
say stir-diffusion run OSSPS OSSPS_diffusion_score.par
say stir-diffusion run OSMAPOSL OSMAPOSL_annealed_MAP.par
say stir-diffusion run OSMAPOSL OSMAPOSL_DDS.par
say stir-diffusion run postfilter denoised.hv osem.hv postfilter_diffusion_denoiser.par
say stir-diffusion run --python-module smooth_prior OSMAPOSL OSMAPOSL_python_prior.par

echo "--- distance to the truth (NRMSE)"
python3 "$here"/compare.py truth.hv osem.hv map_score_36.hv ossps_score_72.hv annealed_36.hv dds_63.hv denoised.hv \
    python_prior_36.hv
