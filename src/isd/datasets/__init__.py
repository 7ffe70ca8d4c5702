"""Data sets: a simulator of isoform counts whose truth is known, published results and weights."""

from isd.datasets._published import published_results
from isd.datasets._scimilarity import fetch_scimilarity
from isd.datasets._simulated import simulated

__all__ = ["fetch_scimilarity", "published_results", "simulated"]
