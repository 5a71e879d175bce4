"""Image grids, projection data, scanners and patient positions."""
