"""From tasks to unique texts to tokens."""
