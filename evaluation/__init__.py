"""What an evaluation opens, and where its maps come from."""
