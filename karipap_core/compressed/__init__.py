"""Compressed model folders: written, recorded, verified, made dense again."""
