"""Files: Interfile, parameter files, weights, and how results are written."""
