"""The pocket text-to-image model: scenes drawn by program, training, evaluation."""
