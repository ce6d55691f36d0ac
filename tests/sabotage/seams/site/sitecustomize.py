"""Found by every Python that has this folder on its path: patches torch as SABOTAGE_RECIPE says, once it is imported."""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys


class _AfterTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        # A program may ask for torch's place before it imports it, so the finder stays.
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        load = spec.loader.exec_module

        def load_and_patch(module):
            load(module)
            recipe = importlib.util.spec_from_file_location("sabotage_recipe", os.environ["SABOTAGE_RECIPE"])
            found = importlib.util.module_from_spec(recipe)
            recipe.loader.exec_module(found)
            found.patch(module)

        spec.loader.exec_module = load_and_patch
        return spec


if os.environ.get("SABOTAGE_RECIPE"):
    sys.meta_path.insert(0, _AfterTorch())
