"""How right the package's intervals, verdicts and marks are, on drawn scores and on models whose answer is known."""
