"""Studies of a model: claims of papers on trial, the Ising check of the engine, sensitivity of each weight."""
