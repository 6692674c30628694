"""What is said of measured numbers: intervals, rank correlation, the Pareto front."""
