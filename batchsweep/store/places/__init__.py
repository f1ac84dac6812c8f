"""Where a store's bytes lie: local directories and object stores."""
