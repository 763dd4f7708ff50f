"""Networks: maps on tensors that know nothing of data, files, devices or training."""
