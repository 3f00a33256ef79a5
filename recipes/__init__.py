"""Recipes: functions that return a RunConfig. Installed as `lowcomm_recipes`."""
