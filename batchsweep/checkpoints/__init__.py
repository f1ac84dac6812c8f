"""Which checkpoints there are: names, schedules, sources, audit, identical weights."""
