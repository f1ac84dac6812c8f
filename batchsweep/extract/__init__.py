"""One index: corpus -> forward pass -> store."""
