"""What is tried on Karipap besides its tests: long, random and unkind. Each command prints a table of figures."""
