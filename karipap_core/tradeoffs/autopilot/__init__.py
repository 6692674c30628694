"""The plan for a quality line or a size, found step by step with every plan measured."""
