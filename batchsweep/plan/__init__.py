"""Index -> checkpoint, frozen; what it will cost; prepare."""
