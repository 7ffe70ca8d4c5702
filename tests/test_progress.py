"""One progress bar: on a terminal, in a notebook, and silent elsewhere."""

import sys
import types

from isd._progress import track


def test_items_pass_through_in_silence(capsys):
    assert list(track(range(3), "Working", progress=False)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_drawn_when_asked_for(capsys):
    assert list(track(iter(range(3)), "Working", total=3, progress=True)) == [0, 1, 2]
    shown = capsys.readouterr()
    assert "Working" in shown.err and shown.out == ""


def test_notebooks_get_plain_text_without_asking_for_widgets(capsys, monkeypatch, recwarn):
    """rich's live display warned at every update of a bar in a notebook without ipywidgets."""
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert list(track(range(3), "Working", progress=True)) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err
    assert not recwarn.list
