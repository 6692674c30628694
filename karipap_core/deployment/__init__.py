"""From a compressed folder to one that is served: memory, ways to serve, fallback, shadow runs, the checklist."""
