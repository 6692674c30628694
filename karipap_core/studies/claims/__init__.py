"""What papers claim, and the nearest honest experiment to each."""
