"""Pictures and tables of a sweep."""
