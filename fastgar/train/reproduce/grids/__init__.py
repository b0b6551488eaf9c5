"""The grids: a file for each, which carries its settings, its tables and its figures."""
