"""How messages travel between nodes."""
