"""Runs side by side: what each gained, and what it forgot for it."""
