"""Studies with the project's own commands: python -m research.NAME."""
