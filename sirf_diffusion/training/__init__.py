"""Training of score models, from simulated heads or a user's own volumes."""

from .data.augmentation import Augmentation
from .loop import RunOptions
from .recipes import RECIPES, Recipe
from .trainer import train

__all__ = ["RECIPES", "Augmentation", "Recipe", "RunOptions", "train"]
