"""One progress bar: on a terminal, in a notebook, and silent elsewhere."""

import sys
import types

from isd._progress import Bar, plain_lines, track
from isd.settings import settings


def kernel(running):
    """A module like ``ipykernel.kernelapp``, in a kernel or only imported."""
    module = types.ModuleType("ipykernel.kernelapp")
    module.IPKernelApp = types.SimpleNamespace(initialized=lambda: running)
    return module


def test_items_pass_through_in_silence(capsys):
    assert list(track(range(3), "Working", progress=False)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_drawn_when_asked_for(capsys):
    assert list(track(iter(range(3)), "Working", total=3, progress=True)) == [0, 1, 2]
    shown = capsys.readouterr()
    assert "Working" in shown.err and shown.out == ""


def test_notebooks_get_plain_text_without_asking_for_widgets(capsys, monkeypatch, recwarn):
    """rich's live display warned at every update of a bar in a notebook without ipywidgets."""
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", kernel(running=True))
    assert list(track(range(3), "Working", progress=True)) == [0, 1, 2]
    assert "3/3" in capsys.readouterr().err
    assert not recwarn.list


def test_a_log_file_gets_plain_lines_in_place_of_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(settings, "progress", None)
    # a library that imports it makes no notebook
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", kernel(running=False))
    written = []
    with plain_lines(written.append, every=0.0):
        assert list(track(range(2), "Working")) == [0, 1]
        assert list(track(range(2), "Silent", progress=False)) == [0, 1]
        assert list(track(iter("ab"), "Unknown length")) == ["a", "b"]
    assert [line.split(",")[0] for line in written] == [
        "Working: 1 of 2", "Working: 2 of 2", "Unknown length: 1", "Unknown length: 2",
    ]  # fmt: skip
    assert all(line.endswith("0.0 min") for line in written)
    with plain_lines(written.append, every=60.0):
        list(track(range(2), "Too short to tell"))
    list(track(range(2), "Nobody asked"))
    assert len(written) == 4 and capsys.readouterr() == ("", "")


def test_settings_silence_lines_and_a_bar_replaces_them(capsys, monkeypatch):
    written = []
    with plain_lines(written.append, every=0.0):
        monkeypatch.setattr(settings, "progress", False)
        list(track(range(2), "Silent"))
        list(track(range(2), "Bar", progress=True))
    assert not written and "Bar" in capsys.readouterr().err


def test_a_bar_begins_at_what_is_done_and_says_more(capsys, monkeypatch):
    bar = Bar("Working", 10, 4)
    bar.move(7, "loss 2")
    bar.close()
    assert " 7/10 " in (shown := capsys.readouterr().err) and "loss 2" in shown
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", kernel(running=True))
    bar = Bar("Working", 10, 4)
    bar.move(7, "loss 2")
    bar.close()
    assert "7/10" in (shown := capsys.readouterr().err) and "loss 2" in shown


def test_a_narrow_terminal_shortens_the_bar_and_not_the_numbers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    bar = Bar("Working", 10, 0)
    bar.move(7, "loss 2")
    bar.close()
    # a machine that stands still for a moment has it drawn in between, too
    *_, line = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(line) <= 50 and all(part in line for part in ("Working", "7/10", "left", "loss 2"))
