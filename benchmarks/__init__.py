"""Figures that decisions rest on, for anyone to measure again."""
