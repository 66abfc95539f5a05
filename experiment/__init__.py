"""What a training does, and what a run leaves on disk."""
