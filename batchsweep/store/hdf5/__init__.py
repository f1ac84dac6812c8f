"""The HDF5 format of the store."""
