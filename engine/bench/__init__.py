"""Timing side by side: programs, their layers, and other engines on the same file."""
