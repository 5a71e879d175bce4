"""Reverse diffusion: the loop, its parts, and the methods made of them."""
