"""What a preference is, and how it is read and written."""
