"""The routes: one file for each of the things that people come for."""
