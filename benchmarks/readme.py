"""Generated parts of README stand between two marks; what writes them and what tests them is the same function."""

from __future__ import annotations

import typer


def between_marks(text: str, name: str, content: str) -> str:
    """The text with `content` between the marks of that name; raises BadParameter when it has none."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise typer.BadParameter(f"no marks {begin.strip()} and {end.strip()} in the README")
    return f"{before}{begin}{content}{end}{after}"
