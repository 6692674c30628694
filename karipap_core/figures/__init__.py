"""Plotly figures from core objects alone, for the pages and for notebooks."""
