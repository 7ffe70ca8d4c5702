"""One page that says whether generated cells can be trusted."""

from __future__ import annotations

from isd.report._report import report

__all__ = ["report"]
