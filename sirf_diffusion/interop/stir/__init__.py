"""What STIR calls, by way of the compiled module in ``stir_priors``; and parameter files with our blocks."""
