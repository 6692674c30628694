"""The command line: the frame around the verbs, the verbs, and the tables that they print."""
