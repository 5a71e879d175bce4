"""Expectation maximisation: OSEM, MAP-EM, BSREM."""
