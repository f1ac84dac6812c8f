"""A loaded model -> pooled states of every layer, and label-free metrics."""
