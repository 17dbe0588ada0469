"""Shares a finished run: a card that says what a model is, and its way to the Hugging Face Hub."""
