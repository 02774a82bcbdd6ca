"""Tests that each need a process of their own: run this folder by itself (python -m pytest tests/isolated)."""
