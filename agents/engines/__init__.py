"""The engines that run and train a model natively, and what is computed with them."""
