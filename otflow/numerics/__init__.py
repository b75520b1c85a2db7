"""Iterations and linear systems on vectors: no measure is known here."""
