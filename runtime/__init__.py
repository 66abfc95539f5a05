"""How a command runs: its command line, its screen, its processes, its files."""
