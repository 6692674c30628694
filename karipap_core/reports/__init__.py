"""Measured runs as one HTML file that needs no network, with CSV, JSON and plans beside it."""
