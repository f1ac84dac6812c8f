"""Task names -> MTEB tasks, and tasks of one's own."""
