"""transformers models in, transformers models out."""
