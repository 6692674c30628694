"""Every architecture that the installed transformers can build, tiny and at random, through the whole chain."""
