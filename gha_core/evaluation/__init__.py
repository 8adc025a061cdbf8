"""Scores with their protocol, and the report that shows them."""
