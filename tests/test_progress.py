"""How far long work is, said in a log as well."""

import sys
import time

from sirf_diffusion.files import progress


def test_a_log_has_whole_lines_now_and_then_and_none_for_short_work(monkeypatch, capsys):
    with progress.progress_bar(3, "short") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    with progress.progress_bar(3, "volumes", "volume") as bar:
        for _ in range(3):
            time.sleep(0.06)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert [line[:13] for line in lines] == ["volumes:  33%", "volumes:  67%", "volumes: 100%"]
    assert all("volume/s]" in line or "s/volume]" in line for line in lines)


def test_what_is_shown_later_has_no_progress(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", progress.Kept())
    with progress.progress_bar(3, "short") as bar:
        bar.update(3)
    assert sys.stderr.getvalue() == ""
