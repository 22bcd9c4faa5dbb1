"""Changelog-backed state."""
