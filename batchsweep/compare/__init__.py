"""What makes two settings score apart: one convention changed at a time."""
