"""Everything is declared in pyproject.toml; this file keeps `python setup.py` and older tools working."""

from setuptools import setup

setup()
