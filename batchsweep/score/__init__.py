"""(arm, task) -> main score, by MTEB's own evaluators."""
