"""The demo subject: a synthetic person, filmed by a synthetic studio, stored as a raw capture.

``python -m gha_core.synthetic OUT --seed N`` writes one; every seed is another person.
"""
