"""Whether a model is good: denoising error, samples, calibration, and the report of them."""
