"""The rules of learning: a client's task, augmentation, encodings, averaging, scores."""
