"""Measurements: every timing of the project is taken here, never asserted in a test."""
