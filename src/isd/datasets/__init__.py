"""Data sets: a simulator of isoform counts whose truth is known, and published results."""

from isd.datasets._published import published_results
from isd.datasets._simulated import simulated

__all__ = ["published_results", "simulated"]
