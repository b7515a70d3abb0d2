"""Write the reference pages from the code: `python docs/make_reference`."""

from pathlib import Path

import commands
import python_api
import recipe_schemas

FOLDER = Path(__file__).resolve().parents[1] / "reference"
PAGES = {"cli.md": commands.page, "recipes.md": recipe_schemas.page, "python.md": python_api.page}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
