"""What a trainer was given, as a recipe: the one thing that a run is made of, whoever asks for it."""

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.load import MADE_IN_PYTHON, LoadedRecipe
from rlhfkit.config.recipe import Recipe

__all__ = ["loaded_recipe"]


def loaded_recipe(recipe: Recipe | ControlRecipe, *, by: str) -> LoadedRecipe:
    """The recipe with a text to stand in `recipe.toml`, which says who made it."""
    text = f'{MADE_IN_PYTHON}{by} in Python; all settings stand in config.json.\nname = "{recipe.name}"\n'
    return LoadedRecipe(recipe, text, ())
