"""Constants of AOTInductor programs: what each program says of their types and shapes, in the source beside its machine code."""

from __future__ import annotations

import io
import re
import zipfile

from rfc_export.engine_files import ODD_ZIP
from rfc_export.errors import ArtifactError

Constants = dict[str, dict[str, tuple[str, list[int]]]]
"""{program: {constant: (dtype, shape)}}"""

WRAPPER = re.compile(r"/data/aotinductor/([^/]+)/[^/]+\.wrapper\.cpp$")
LIBRARY = re.compile(r"/data/aotinductor/([^/]+)/[^/]+\.so$")
CONSTANT = tuple(
    re.compile(rf"constants_info_\[(\d+)\]\.{field} = {value};")
    for field, value in (("dtype", r"cached_torch_dtype_(\w+)"), ("shape", r"\{([\d, L]*)\}"), ("original_fqn", r'"([^"]+)"'))
)
"""Where the C++ that Inductor made lies in its archive, and what it says of a program's constants: type, shape, name."""


def declared_constants(where: str, archive: bytes) -> Constants:
    """The constants of every program whose machine code is in the archive.

    ArtifactError for an archive that is damaged, compressed, or leads elsewhere.
    """
    found: Constants = {}
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            entries = files.infolist()
            if sum(entry.file_size for entry in entries) > len(archive) or any(".." in entry.filename for entry in entries):
                raise ArtifactError(f"{where}: is compressed or holds names that lead elsewhere, which no export writes; it is not opened")
            compiled = {match[1] for entry in entries if (match := LIBRARY.search(entry.filename)) is not None}
            for entry in entries:
                if (match := WRAPPER.search(entry.filename)) is not None and match[1] in compiled:
                    found[match[1]] = _constants(files.read(entry).decode("utf-8", "replace"))
    except ArtifactError:
        raise
    except ODD_ZIP as error:
        raise ArtifactError(f"{where}: cannot be loaded: {error}; export again") from error
    return found


def _constants(source: str) -> dict[str, tuple[str, list[int]]]:
    dtypes, shapes, names = (dict(pattern.findall(source)) for pattern in CONSTANT)
    return {
        name: (dtypes.get(index, "unknown"), [int(size) for size in re.findall(r"\d+", shapes.get(index, ""))])
        for index, name in names.items()
    }
