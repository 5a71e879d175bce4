"""SIRF's objective functions and images, as this package's reconstructors need them."""
