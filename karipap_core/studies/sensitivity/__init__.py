"""Each weight or layer compressed alone: what it loses, and what foretells it."""
