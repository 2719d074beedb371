"""Where runs go besides our own files. One exporter a file; none runs in the training process."""
