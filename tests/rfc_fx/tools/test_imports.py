"""The drawing of the imports is current, and counts floors as they are."""

from pathlib import Path

from rfc_fx.tools.imports import BEGIN, END, PACKAGE, drawing, floors, folders_of, graph_of, reduced


def test_the_drawing_in_the_readme_is_that_of_the_code() -> None:
    text = (PACKAGE / "README.md").read_text()
    between = text.partition(BEGIN)[2].partition(END)[0]
    assert between.strip() == drawing(), "run python -m rfc_fx.tools.imports --write"


def test_floors_are_the_longest_chain_of_imports(tmp_path: Path) -> None:
    package = tmp_path / "house"
    for name, text in {
        "__init__.py": "from house.roof import tiles",
        "ground/__init__.py": "",
        "ground/floor.py": "import io",
        "first.py": "from house.ground import floor\nif TYPE_CHECKING:\n    from house.roof import tiles",
        "roof/tiles.py": "import house.first\nfrom house.ground.floor import x",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    graph = graph_of(package)
    assert graph["roof.tiles"] == {"first", "ground.floor"}
    assert floors(graph) == 3  # tiles, first, floor
    assert folders_of(graph) == {"ground": set(), "first": {"ground"}, "roof": {"first", "ground"}}
    assert reduced(folders_of(graph)) == {"ground": set(), "first": {"ground"}, "roof": {"first"}}
    assert floors(folders_of(graph)) == 3
