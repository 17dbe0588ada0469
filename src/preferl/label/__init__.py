"""The labelling service: people compare responses in web pages, and what they say trains a reward model."""
