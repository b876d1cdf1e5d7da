"""From a Hugging Face ViT to ONNX training artifacts, and the native engine that runs them."""
