"""Benchmark tasks through EleutherAI's lm-evaluation-harness, from the hub, from local files, or made here."""
