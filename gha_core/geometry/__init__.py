"""The neutral head as a signed distance field, and the networks that move and colour it."""
