"""Only what pyproject.toml cannot say: the wheel carries `recipes/` as the package `lowcomm_recipes`."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(".", include=["lowcomm", "lowcomm.*"]),
        *find_packages("kernels", include=["lowcomm_kernels", "lowcomm_kernels.*"]),
        "lowcomm_recipes",
        "lowcomm_recipes.integrations",
    ],
    package_dir={"lowcomm": "lowcomm", "lowcomm_kernels": "kernels/lowcomm_kernels", "lowcomm_recipes": "recipes"},
)
