"""Where extraction runs: the index from the environment, and launchers for one machine or many.

Only ``cli`` imports this package: everything else gets the index as a plain integer.
"""

from batchsweep import __version__

#: Of the package's own version: what runs in a container is what the user has here.
IMAGE = f"batchsweep:{__version__}"
