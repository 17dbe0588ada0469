"""Pages from files: what every report shows, section by section."""
