"""A checkpoint on disk: which tensors it holds, what each weight is, and how one is read."""
