"""Inside the training process: times, samples and appends. Never decides, never prints tables."""
