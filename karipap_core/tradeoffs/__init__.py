"""Compression against accuracy: points, sweeps, baselines, ranking, comparison, autopilot."""
