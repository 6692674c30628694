"""What each weight becomes: curves, budgets, rules, calibration, predictions, and the plan that people exchange."""
