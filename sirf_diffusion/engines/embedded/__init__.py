"""The engine that needs nothing but PyTorch: STIR Interfile files, projector, likelihood and SIRF-like names."""
