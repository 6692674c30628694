"""LoRA adapters as PEFT saves them: read, as an update of their own, and merged into the model they belong to."""
