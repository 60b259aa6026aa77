"""Boxes, points and times that know their space; their text; a lint for whole datasets."""
