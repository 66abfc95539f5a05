"""Intervals, tables, curves, pictures of maps, pages."""
