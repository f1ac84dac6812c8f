"""Where extraction runs: the index from the environment, and launchers for one machine or many.

Only ``cli`` imports this package: everything else gets the index as a plain integer.
"""
