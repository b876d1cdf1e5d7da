"""The evaluator: compares each new model with the run's base model on images that nobody trained on."""
