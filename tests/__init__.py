"""Tests, in the folders of what they test; what several share is in helpers.py, and no test imports another."""
