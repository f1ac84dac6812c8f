"""What leaves a sweep for other tools: the best arm as a model."""
