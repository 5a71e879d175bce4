"""Fitting the network to the scan: DDIP and steerable."""
