"""A model in GGUF files: where they are, their header, their configuration, tensors and vocabulary."""
