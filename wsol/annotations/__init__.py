"""What is known of images beyond their class."""
