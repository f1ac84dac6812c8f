"""The Zarr format of the store."""
