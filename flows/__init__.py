"""Prefect flows, the DVC bridge and the command line. No maths lives here."""
