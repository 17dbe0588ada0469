"""What a run is, and how it survives: configuration, directory, state, devices."""
