"""One kind of error for damaged files; a missing library is named with the extra that brings it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import isd
from isd.io._errors import NotInFileError, UnreadableFileError, reading

SALMON = "Name\tLength\tEffectiveLength\tTPM\tNumReads\nENST1\t900\t700\t1\t3\n"
GTF = 'chr1\tx\ttranscript\t1\t2\t.\t+\t.\tgene_id "g1"; transcript_id "t1";\n'


@pytest.mark.parametrize(
    ("library", "name", "text", "read"),
    [
        ("pytximport.importers", "quant.sf", SALMON, isd.io.read_quant),
        ("gtfparse", "a.gtf", GTF, isd.io.read_gene_map),
    ],
)
def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch, library, name, text, read) -> None:
    path = tmp_path / name
    path.write_text(text)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf'{library.split(".")[0]}: pip install "isodiff\[io\]"'):
        read(path)


@pytest.mark.parametrize("error", [AssertionError("odd"), RuntimeError("odd"), EOFError("odd"), KeyError("odd")])
def test_what_libraries_raise_becomes_one_error(error: Exception) -> None:
    with pytest.raises(
        UnreadableFileError, match=r"x\.h5 cannot be read as a thing: odd\. It may be damaged"
    ) as caught:
        with reading(Path("x.h5"), "a thing"):
            raise error
    assert caught.value.__cause__ is error
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), NotInFileError("x"), ImportError("x")])
def test_what_is_not_the_files_fault_stays(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        with reading(Path("x.h5"), "a thing"):
            raise error
    assert caught.value is error
