"""Progress bars, also where nobody can see them."""

import sys

from policy.progress import progress_bar


def test_a_closed_stderr_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar(total=2, unit="step") as bar:
        bar.update(2)
