"""Data sets: a simulator of isoform counts whose truth is known."""

from isd.datasets._simulated import simulated

__all__ = ["simulated"]
