"""Training of score models from simulated heads."""

from .recipes import RECIPES, Recipe
from .trainer import train

__all__ = ["RECIPES", "Recipe", "train"]
