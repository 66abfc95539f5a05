"""What data sets know about images beyond their class: part points, segmentations, superclasses."""
