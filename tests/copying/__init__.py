"""Copies, backups, and what comes of both."""
