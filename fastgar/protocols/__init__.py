"""Learning in which no machine is trusted."""
