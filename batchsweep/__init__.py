"""Which (model, training checkpoint, layer) gives the best text embeddings, at a fraction of the cost."""
