"""The trainable model: layers, sizes, a deeper or smaller model from a trained one, samples, checkpoints."""
